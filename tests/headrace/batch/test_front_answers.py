"""How answers are put together: files in bodies, masks in strings, kept files."""

import base64
import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.batch import answers
from headrace.batch.answers import encode_outcome
from headrace.batch.contract import Result
from headrace.batch.media_store import MediaStore
from headrace.batch.service import Outcome
from stream.errors import AtCapacity, NotFound


def encoded(pipeline, body, blobs, urls=None):
    outcome = Outcome(pipeline, "m", Result(body, blobs), "real", (), 0.0, 0.0)
    return json.loads(encode_outcome(outcome, urls or {}))


def content(url):
    return base64.b64decode(url.partition(",")[2], validate=True)


@given(
    files=st.lists(st.binary(max_size=100), min_size=1, max_size=6),
    text=st.text(st.characters(exclude_categories=["Cs"])),
    data=st.data(),
)
def test_every_file_is_found_again_where_it_was_named(files, text, data):
    blobs = {f"{index}.png": file for index, file in enumerate(files)}
    order = data.draw(st.permutations(list(blobs)))
    body = {"text": text, "images": [{"blob": name, "seed": 1, "note": text} for name in order], "z": [text]}
    found = encoded("text-to-image", body, blobs)
    assert [content(image["url"]) for image in found["images"]] == [blobs[name] for name in order]
    assert (found["text"], found["z"], found["images"][0]["note"]) == (text, [text], text)


@given(st.lists(st.lists(st.lists(st.floats(-9, 9)))), st.permutations(["masks", "scores", "logits"]))
def test_masks_are_the_same_json_as_the_engine_wrote(value, order):
    text = json.dumps(value).encode()
    every = {"masks": {"blob": "m.json"}, "scores": [0.5], "logits": {"blob": "l.json"}}
    body = {key: every[key] for key in order}
    found = encoded("segment-anything-2", body, {"m.json": text, "l.json": b"[true]"})
    assert json.loads(found["masks"]) == value
    assert (json.loads(found["logits"]), json.loads(found["scores"])) == ([True], [0.5])


def test_files_are_encoded_in_pieces_that_fit_together(monkeypatch):
    monkeypatch.setattr(answers, "PIECE", 6)
    for size in range(20):
        body = {"images": [{"blob": "0.png"}]}
        found = encoded("upscale", body, {"0.png": bytes(range(size))})
        assert content(found["images"][0]["url"]) == bytes(range(size))
    assert answers.PIECE % 3 == 0


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), max_size=30))
def test_kept_files_are_bounded_and_expire(history):
    store, now, kept = MediaStore(100, 50.0), 0.0, []
    try:
        for size, pause in history:
            now += pause
            url = store.put("0.png", bytes(size), now)
            kept.append((url.rpartition("/")[2], size, now))
            assert store.held <= 100
            for name, length, begun in kept:
                try:
                    assert store.find(name, now).stat().st_size == length
                    assert now - begun < 50
                except NotFound:
                    assert now - begun >= 50 or sum(s for _, s, b in kept if b >= begun) > 100
            assert store.find(kept[-1][0], now)
        assert len({name for name, _, _ in kept}) == len(kept)
    finally:
        store.close()
    assert store.held == 0


def test_a_file_that_is_being_written_keeps_nobody_waiting_and_leaves_nothing_when_it_must_go(monkeypatch):
    store, found = MediaStore(10, 1000), []
    first = store.put("0.png", b"x")
    write = Path.write_bytes

    def write_slowly(path, data):
        monkeypatch.setattr(Path, "write_bytes", write)
        looking = threading.Thread(target=lambda: found.append(store.has(first)), daemon=True)
        looking.start()
        looking.join(5)
        store.put("1.png", bytes(10))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_slowly)
    late = store.put("2.png", b"late")
    assert found == [True]
    assert not store.has(late)
    assert store.held == 10
    assert len(list(store._folder.iterdir())) == 1
    store.close()


def test_what_is_larger_than_the_store_is_not_kept():
    store = MediaStore(10, 1)
    with pytest.raises(AtCapacity):
        store.put("0.png", bytes(11))
    store.close()


def test_a_store_that_is_closed_leaves_no_folder():
    store = MediaStore(10, 1000)
    path = store.find(store.put("0.png", b"x").rpartition("/")[2])
    assert path.read_bytes() == b"x"
    store.close()
    assert not path.parent.exists()
    with pytest.raises(NotFound):
        store.find(path.name)

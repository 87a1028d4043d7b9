"""Workflows that are kept: names that stay in the folder, whole writes, bounds, etags."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.library.names import Library
from headrace.library.store import (
    MAX_NAME,
    PreconditionFailed,
    StoreLimits,
    WorkflowStore,
    checked_name,
    default_folder,
)
from stream.errors import Conflict, InvalidInput, InvalidWorkflow, NotFound, SinkError, TooLarge

ONE = b'{"1":  {"class_type": "X", "inputs": {}}}'


@pytest.fixture
def store(tmp_path: Path) -> WorkflowStore:
    return WorkflowStore(tmp_path / "kept", StoreLimits(count=3, each=100, total=150))


@given(st.text(max_size=MAX_NAME + 5))
def test_whatever_is_a_name_stays_in_the_folder(name: str) -> None:
    try:
        sound = checked_name(name)
    except InvalidInput as error:
        assert error.field == "name"
        return
    path = Path("/folder") / f"{sound}.json"
    assert path.parent == Path("/folder")
    assert os.path.normpath(path) == str(path)
    assert len(path.name.encode()) < 255
    assert checked_name(sound) == sound


@pytest.mark.parametrize("name", ["night sky", "Größe (2)", "a", "v1.2 final", "it's_me@home", "日本"])
def test_names_that_people_give_are_taken(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", ".hidden", "a/b", "../a", "a\\b", "a\0", "a\n", "a.json", "a.PNG", " a", "a ", "a."),
        "{}",
        "-rf",
        "x" * (MAX_NAME + 1),
        None,
        3,
    ],
)
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(InvalidInput):
        checked_name(name)


def test_what_is_kept_comes_back_byte_for_byte_and_goes(store: WorkflowStore) -> None:
    assert store.list() == []
    kept, created = store.put("night sky", ONE)
    assert created
    assert store.read("night sky") == (ONE, kept)
    assert store.load("night sky") == json.loads(ONE)
    assert store.list() == [kept]
    again, created = store.put("night sky", ONE + b" ")
    assert not created
    assert again.etag != kept.etag
    store.remove("night sky")
    assert "night sky" not in store
    for action in (store.read, store.remove):
        with pytest.raises(NotFound):
            action("night sky")
    assert [path.name for path in store.folder.iterdir()] == [".lock"]


def test_an_etag_guards_against_what_others_wrote(store: WorkflowStore) -> None:
    kept, _ = store.put("a", ONE, create=True)
    with pytest.raises(PreconditionFailed, match="already"):
        store.put("a", ONE, create=True)
    changed, _ = store.put("a", ONE + b" ", match=kept.etag)
    for action in (
        lambda: store.put("a", b"{}", match=kept.etag),
        lambda: store.remove("a", match=kept.etag),
    ):
        with pytest.raises(PreconditionFailed, match="has changed"):
            action()
    assert store.read("a") == (ONE + b" ", changed)
    with pytest.raises(PreconditionFailed, match="not there"):
        store.put("b", ONE, match="*")
    store.put("a", ONE, match="*")


def test_size_and_number_are_bounded_and_the_message_has_the_limit(store: WorkflowStore) -> None:
    with pytest.raises(TooLarge, match="101 bytes; at most 100"):
        store.put("a", b"x" * 101)
    store.put("a", b"x" * 100)
    with pytest.raises(TooLarge, match="151 bytes; 150"):
        store.put("b", b"x" * 51)
    # What takes its own place counts once.
    store.put("a", b"x" * 99)
    for name in "bc":
        store.put(name, b"{}")
    with pytest.raises(TooLarge, match="3 workflows"):
        store.put("d", b"{}")
    store.put("c", b"[]")


def test_files_put_there_by_hand_are_read_and_links_are_not(store: WorkflowStore, tmp_path: Path) -> None:
    store.folder.mkdir()
    (tmp_path / "secret.json").write_bytes(ONE)
    (store.folder / "link.json").symlink_to(tmp_path / "secret.json")
    (store.folder / "folder.json").mkdir()
    (store.folder / "notes.txt").write_bytes(ONE)
    (store.folder / "mine.json").write_bytes(ONE)
    (store.folder / "long.json").write_bytes(b" " * 101)
    assert store.names() == ["long", "mine"]
    assert store.load("mine") == json.loads(ONE)
    with pytest.raises(NotFound):
        store.read("link")
    with pytest.raises(TooLarge):
        store.read("long")
    before = {kept.name: kept.etag for kept in store.list()}
    (store.folder / "mine.json").write_bytes(ONE + b" ")
    assert {kept.name: kept.etag for kept in store.list()}["mine"] != before["mine"]


def test_writers_at_the_same_time_leave_one_whole_file(store: WorkflowStore) -> None:
    contents = [json.dumps({"1": {"class_type": letter * 40}}).encode() for letter in "abcdef"]
    done: list[bool] = []

    def write(content: bytes) -> None:
        # Each as a process of its own would: with an object of its own.
        done.append(WorkflowStore(store.folder, store.limits).put("x", content)[1])

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(done) == [False] * 5 + [True]
    assert store.read("x")[0] in contents


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="cannot be kept in"):
        WorkflowStore(tmp_path / "file" / "kept").put("a", ONE)


def test_bundled_names_come_first_and_stay_as_they_are(tmp_path: Path) -> None:
    library = Library(tmp_path)
    (tmp_path / "edges.json").write_bytes(ONE)
    (tmp_path / "own.json").write_bytes(ONE)
    (tmp_path / "broken.json").write_bytes(b"{")
    assert "edges" in library.bundled
    assert library.kept() == ["broken", "own"]
    assert library.load("edges") != json.loads(ONE) == library.load("own")
    assert library.names_of(json.loads(ONE)) == ["own"]
    assert library.names_of(library.load("edges")) == ["edges"]
    assert library.names_of({}) == []
    library.check_own("own")
    with pytest.raises(Conflict, match="comes with Headrace"):
        library.check_own("edges")
    with pytest.raises(NotFound, match=r"did you mean own.*kept are broken, own"):
        library.load("owm")
    with pytest.raises(InvalidWorkflow, match="broken is not JSON"):
        library.load("broken")
    for name in ("../own", "/etc/passwd", str(tmp_path / "own.json"), "own.json", ""):
        with pytest.raises(NotFound):
            library.load(name)


def test_the_folder_is_that_of_the_environment_or_of_this_account() -> None:
    assert default_folder({"HOME": "/h"}) == Path("/h/.local/share/headrace/workflows")
    assert default_folder({"XDG_DATA_HOME": "/d", "HOME": "/h"}) == Path("/d/headrace/workflows")
    assert default_folder({"HEADRACE_WORKFLOWS": "/w", "HOME": "/h"}) == Path("/w")

"""``headrace process`` as a person runs it: real files, a real engine, real exit statuses."""

import os
import subprocess
import sys
from pathlib import Path

import av
import pytest
from live_rig import INVERT

from benchmarks import barcode
from benchmarks import clip as clips

ROOT = Path(__file__).parents[2]


def headrace(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=ROOT, env={**os.environ, **(env or {})}
    )


def source(folder: Path, **recipe) -> Path:
    chosen = {"width": 192, "height": 128, "seconds": 2, "bitrate": 600_000}
    path = folder / "clip.mp4"
    clips.write(clips.Recipe(**{**chosen, **recipe}), path)
    return path


def frames(path: Path) -> list[av.VideoFrame]:
    with av.open(path) as container:
        return list(container.decode(video=0))


def test_every_frame_of_a_file_comes_out_once_in_order_and_at_its_time(tmp_path):
    clip, out = source(tmp_path), tmp_path / "out.mp4"
    done = headrace("process", clip, out, "--workflow", "passthrough")
    assert done.returncode == 0, done.stderr
    before, after = frames(clip), frames(out)
    assert [barcode.read_number(f.to_ndarray(format="rgb24")) for f in after] == list(range(60))
    assert [round(f.time, 3) for f in after] == [round(f.time, 3) for f in before]
    assert "60 frames" in done.stderr
    assert "encode" in done.stderr


def test_sound_that_nobody_touches_is_copied_as_it_is(tmp_path):
    clip, out = source(tmp_path), tmp_path / "out.mp4"
    headrace("process", clip, out, "--workflow", "passthrough")

    def packets(path: Path) -> list[bytes]:
        with av.open(path) as container:
            return [bytes(p) for p in container.demux(audio=0) if p.dts is not None]

    assert packets(out) == packets(clip)


def test_a_workflow_file_and_its_parameters_are_applied(tmp_path):
    import json

    workflow = {
        **INVERT,
        "2": {
            "class_type": "ImageBlend",
            "_meta": {"title": "Mix"},
            "inputs": {"image1": ["1", 0], "image2": ["4", 0], "blend_factor": 0.0, "blend_mode": "normal"},
        },
        "4": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    }
    clip, out, file = source(tmp_path), tmp_path / "out.mkv", tmp_path / "mix.json"
    file.write_text(json.dumps(workflow))
    done = headrace("process", clip, out, "-w", file, "--param", "mix.blend_factor=1.0")
    assert done.returncode == 0, done.stderr
    marks = [barcode.read(f.to_ndarray(format="rgb24")) for f in frames(out)]
    assert all(mark is not None and mark.inverted for mark in marks)


@pytest.mark.parametrize(
    ("suffix", "recipe"),
    [
        ("mkv", {"audio": "libopus"}),
        ("ts", {}),
        ("mp4", {"audio": None}),
        ("mov", {"width": 191, "height": 127}),
    ],
)
def test_other_containers_and_sizes_work(tmp_path, suffix, recipe):
    if recipe.get("width") == 191:
        clip = tmp_path / "odd.mkv"
        _write_odd(clip)
    else:
        clip = source(tmp_path, **recipe)
    out = tmp_path / f"out.{suffix}"
    done = headrace("process", clip, out, "-w", "edges")
    assert done.returncode == 0, done.stderr
    assert len(frames(out)) == (30 if "odd" in clip.name else 60)


def _write_odd(path: Path) -> None:
    import numpy as np

    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 191, 127, "yuv444p"
        for i in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((127, 191, 3), i * 8, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_a_size_can_be_asked_for(tmp_path):
    clip, out = source(tmp_path), tmp_path / "out.mp4"
    done = headrace("process", clip, out, "-w", "passthrough", "--size", "96x96")
    assert done.returncode == 0, done.stderr
    assert {(f.width, f.height) for f in frames(out)} == {(96, 96)}


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nothing.mp4", "out.mp4"], 2, "nothing.mp4"),
        (["README.md", "out.mp4"], 1, "README.md"),
        (["{clip}", "out.nosuchformat"], 1, "out.nosuchformat"),
        (["{clip}", "out.mp4", "-w", "edgs"], 1, "edges"),
        (["{clip}", "out.mp4", "-w", "edges", "-p", "canny.low_threshold=9"], 2, "low_threshold"),
        (["{clip}", "out.mp4", "-w", "edges", "-p", "canny.low"], 2, "node.input=value"),
        (["{clip}", "out.mp4", "--size", "big"], 2, "WIDTHxHEIGHT"),
        (["{clip}", "out.mp4", "--preset", "warp"], 2, "ultrafast"),
        (["{clip}", "out.mp4", "--processor", "nomodule:X"], 1, "nomodule"),
        (["{clip}", "{clip}", "-y"], 2, "same file"),
        (["{clip}", "no/folder/out.mp4"], 2, "no/folder"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_and_leaves_no_file(tmp_path, arguments, status, words):
    clip = source(tmp_path, seconds=0.5)
    done = headrace("process", *(a.format(clip=clip) if "{" in a else _place(a, tmp_path) for a in arguments))
    assert (done.returncode, words in done.stderr) == (status, True), done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4"]


def _place(argument: str, folder: Path) -> str:
    return str(folder / argument) if argument.startswith(("out.", "no/")) else argument


def test_a_file_is_not_overwritten_unasked(tmp_path):
    clip, out = source(tmp_path, seconds=0.5), tmp_path / "out.mp4"
    out.write_bytes(b"precious")
    done = headrace("process", clip, out)
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    assert out.read_bytes() == b"precious"


def test_without_torch_the_message_names_the_extra(tmp_path):
    clip = source(tmp_path, seconds=0.5)
    hidden = tmp_path / "hide"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "found = PathFinder.find_spec\n"
        "def find_spec(name, path=None, target=None):\n"
        "    return None if name == 'torch' else found(name, path, target)\n"
        "PathFinder.find_spec = find_spec\n"
    )
    done = headrace("process", clip, tmp_path / "out.mp4", env={"PYTHONPATH": str(hidden)})
    assert done.returncode == 2
    assert "headrace[engine]" in done.stderr


def test_an_engine_that_dies_over_a_file_costs_no_frame(tmp_path):
    clip, out = source(tmp_path), tmp_path / "out.mp4"
    mark = tmp_path / "died"
    done = headrace(
        "process",
        clip,
        out,
        "--processor",
        "tests.live.live_processors:DiesOnce",
        env={"DIES_ONCE": str(mark)},
    )
    assert done.returncode == 0, done.stderr
    assert mark.exists()
    assert [barcode.read_number(f.to_ndarray(format="rgb24")) for f in frames(out)] == list(range(60))


def test_a_processor_that_fails_fails_the_file_with_its_words(tmp_path):
    clip, out = source(tmp_path), tmp_path / "out.mp4"
    done = headrace("process", clip, out, "--processor", "tests.live.live_processors:RaisesSometimes")
    assert done.returncode == 1
    assert "every third frame" in done.stderr
    assert not out.exists()

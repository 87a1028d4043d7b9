"""``headrace process`` as a person runs it: real files, a real engine, real exit statuses."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
import pytest_asyncio
from av.stream import Disposition
from live_rig import INVERT

from byoc.mock import barcode
from byoc.mock import clip as clips
from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from headrace.process import ProcessOptions, make_job
from stream.codecs.audio_encoder import AudioEncoder
from stream.codecs.video_encoder import VideoEncoder, VideoEncoderSettings
from stream.errors import SinkError, SourceError
from stream.files import MAX_EARLY_PACKETS, FileJob, FileSink
from stream.frames import AudioFrame, Picture
from stream.pipeline import PipelineSettings
from stream.processor import FrameProcessor
from stream.units import EncodedUnit

ROOT = Path(__file__).parents[2]


def headrace(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=ROOT, env={**os.environ, **(env or {})}
    )


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine() -> AsyncIterator[Engine]:
    """One engine for the tests that look at files alone; those of the program start their own."""
    async with Engine(EngineSettings(name="file", device="cpu", extra_path=(str(ROOT),))) as engine:
        await engine.wait_ready(60)
        yield engine


SHARED = pytest.mark.asyncio(loop_scope="module")


async def convert(engine: Engine, clip: Path, out: Path, **options: Any) -> FileJob:
    """What ``headrace process`` does with these options, in an engine that is there already."""
    job = make_job(ProcessOptions(clip, out, engine.settings, **options), engine)
    # The loop outlives the test, its threads do not.
    with ThreadPoolExecutor() as pool:
        asyncio.get_running_loop().set_default_executor(pool)
        await job.run()
    return job


FRAMES = 30
"""Of a clip of a second."""


def source(folder: Path, **recipe) -> Path:
    chosen = {"width": 192, "height": 128, "seconds": 1, "bitrate": 600_000}
    path = folder / "clip.mp4"
    clips.write(clips.Recipe(**{**chosen, **recipe}), path)
    return path


def frames(path: Path) -> list[av.VideoFrame]:
    with av.open(path) as container:
        return list(container.decode(video=0))


@SHARED
async def test_sound_that_nobody_touches_is_copied_as_it_is(engine, tmp_path):
    clip, out = source(tmp_path), tmp_path / "out.mp4"
    await convert(engine, clip, out)

    def packets(path: Path) -> list[bytes]:
        with av.open(path) as container:
            return [bytes(p) for p in container.demux(audio=0) if p.dts is not None]

    assert packets(out) == packets(clip)


def test_every_frame_comes_out_once_in_order_and_at_its_time_as_a_workflow_file_says(tmp_path):
    workflow = {
        **INVERT,
        "2": {
            "class_type": "ImageBlend",
            "_meta": {"title": "Mix"},
            "inputs": {"image1": ["1", 0], "image2": ["4", 0], "blend_factor": 0.0, "blend_mode": "normal"},
        },
        "4": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    }
    clip, out, file = source(tmp_path), tmp_path / "out.mp4", tmp_path / "mix.json"
    file.write_text(json.dumps(workflow))
    done = headrace("process", clip, out, "-w", file, "--param", "mix.blend_factor=1.0")
    assert done.returncode == 0, done.stderr
    before, after = frames(clip), frames(out)
    marks = [barcode.read(f.to_ndarray(format="rgb24")) for f in after]
    assert all(mark is not None and mark.inverted for mark in marks)
    assert [mark.number for mark in marks] == list(range(FRAMES))
    assert [round(f.time, 3) for f in after] == [round(f.time, 3) for f in before]
    assert f"{FRAMES} frames" in done.stderr
    assert "encode" in done.stderr


@SHARED
@pytest.mark.parametrize(
    ("suffix", "recipe"),
    [
        ("mkv", {"audio": "libopus"}),
        ("ts", {}),
        ("mp4", {"audio": None}),
        ("mov", {"width": 191, "height": 127}),
    ],
)
async def test_other_containers_and_sizes_work(engine, tmp_path, suffix, recipe):
    if recipe.get("width") == 191:
        clip = tmp_path / "odd.mkv"
        _write_odd(clip)
    else:
        clip = source(tmp_path, **recipe)
    out = tmp_path / f"out.{suffix}"
    await convert(engine, clip, out, workflow="edges")
    assert len(frames(out)) == FRAMES


# -- what files are like ---------------------------------------------------------------------------------


def _muxed(path: Path, clip: Path, *, leap: float = 0, sound: bool = True) -> Path:
    """The packets of the clip in another container, those after half a second ``leap`` seconds later."""
    with av.open(clip) as before, av.open(path, "w") as after:
        streams = [s for s in before.streams if sound or s.type == "video"]
        tracks = {s.index: after.add_stream_from_template(s) for s in streams}
        for packet in before.demux(streams):
            if packet.dts is None:
                continue
            later = round(leap / packet.time_base) if packet.pts * packet.time_base > 0.5 else 0
            packet.pts, packet.dts = packet.pts + later, packet.dts + later
            packet.stream = tracks[packet.stream.index]
            after.mux(packet)
    return path


def _times(path: Path, kind: str) -> list[float]:
    with av.open(path) as container:
        stream = next(s for s in container.streams if s.type == kind)
        return [float(p.pts * p.time_base) for p in container.demux(stream) if p.pts is not None]


@SHARED
async def test_a_gap_stays_as_long_as_it_is_for_sound_and_picture(engine, tmp_path):
    clip = _muxed(tmp_path / "gap.mp4", source(tmp_path), leap=60)
    out = tmp_path / "out.mp4"
    await convert(engine, clip, out)
    for kind in ("video", "audio"):
        assert _times(out, kind) == pytest.approx(_times(clip, kind), abs=0.001)
    assert _times(out, "video")[-1] > 60


@SHARED
async def test_transport_streams_put_together_play_one_after_the_other(engine, tmp_path):
    whole, sizes = tmp_path / "whole.ts", [(192, 128), (128, 128)]
    parts = []
    for width, height in sizes:
        part = tmp_path / f"{width}.ts"
        clips.write(clips.Recipe(width=width, height=height, seconds=1, bitrate=600_000), part)
        parts.append(part.read_bytes())
    whole.write_bytes(parts[0] + parts[1] + parts[0])
    out = tmp_path / "out.mp4"
    await convert(engine, whole, out)
    pictures, sounds = _times(out, "video"), _times(out, "audio")
    assert len(pictures) == 3 * FRAMES
    for times in (pictures, sounds):
        assert all(0 < b - a < 0.1 for a, b in pairwise(times))
        assert times[-1] == pytest.approx(3, abs=0.15)


@SHARED
async def test_pictures_without_times_follow_each_other_at_their_rate(engine, tmp_path):
    clip = _muxed(tmp_path / "bare.h264", source(tmp_path), sound=False)
    out = tmp_path / "out.mp4"
    await convert(engine, clip, out)
    assert _times(out, "video") == pytest.approx([n / 30 for n in range(FRAMES)], abs=0.001)


@SHARED
async def test_pixels_that_are_not_square_come_out_square(engine, tmp_path):
    clip, out = tmp_path / "wide.mp4", tmp_path / "out.mp4"
    with av.open(clip, "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((96, 96, 3), 128, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    job = await convert(engine, clip, out)
    assert job.size == (128, 96)
    assert {(f.width, f.height) for f in frames(out)} == {(128, 96)}


def _write_odd(path: Path) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 191, 127, "yuv444p"
        for i in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((127, 191, 3), i * 8, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@SHARED
async def test_a_size_can_be_asked_for_and_names_may_have_colons(engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip, out = Path("12:30.mp4"), Path("out:1.mp4")
    source(tmp_path).rename(clip)
    await convert(engine, clip, out, size="96x96")
    assert {(f.width, f.height) for f in frames(tmp_path / out)} == {(96, 96)}


PROGRAM = """
import contextlib, io, json, sys
from headrace.cli import main
for line in sys.stdin:
    sys.argv = ["headrace", *json.loads(line)]
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, errors.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def program():
    """The program's entry, called again and again in one process that has imported everything."""
    command = [sys.executable, "-c", PROGRAM]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=ROOT, **pipes) as process:

        def call(*arguments: str) -> tuple[int, str]:
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield call
        process.stdin.close()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nothing.mp4", "out.mp4"], 2, "nothing.mp4"),
        (["README.md", "out.mp4"], 1, "README.md"),
        (["{cover}", "out.mp4"], 1, "has no video track"),
        ([".", "out.mp4"], 2, "is a folder"),
        (["{clip}", "out.nosuchformat"], 1, "out.nosuchformat"),
        (["{clip}", "out.webm"], 1, ".mp4, .mov, .mkv, .ts"),
        (["{clip}", "{folder}", "-y"], 2, "is a folder"),
        (["{clip}", "/proc/out.mp4"], 1, "No such file"),
        (["{clip}", "out.mp4", "-w", "edgs"], 1, "edges"),
        (["{clip}", "out.mp4", "-w", "edges", "-p", "canny.low_threshold=9"], 2, "low_threshold"),
        (["{clip}", "out.mp4", "-w", "edges", "-p", "canny.low"], 2, "node.input=value"),
        (["{clip}", "out.mp4", "--size", "big"], 2, "WIDTHxHEIGHT"),
        (["{clip}", "out.mp4", "--bitrate", "99999999999"], 2, "--bitrate"),
        (["{clip}", "out.mp4", "--device", "tpu"], 2, "cuda:N"),
        (["{clip}", "out.mp4", "--preset", "warp"], 2, "ultrafast"),
        (["{clip}", "out.mp4", "--processor", "nomodule:X"], 1, "nomodule"),
        (["{clip}", "{clip}", "-y"], 2, "same file"),
        (["{clip}", "no/folder/out.mp4"], 2, "no/folder"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_and_leaves_no_file(
    program, tmp_path, tmp_path_factory, arguments, status, words
):
    clip = source(tmp_path, seconds=0.5)
    places = {"clip": clip, "folder": tmp_path, "cover": _music_with_cover(tmp_path_factory.mktemp("cover"))}
    given = (a.format(**places) if "{" in a else _place(a, tmp_path) for a in arguments)
    found, said = program("process", *given)
    assert (found, words in said) == (status, True), said
    assert "Traceback" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4"]


def _music_with_cover(folder: Path) -> Path:
    path = folder / "music.mp3"
    with av.open(path, "w") as container:
        music: Any = container.add_stream("mp3", rate=48_000, layout="mono")
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame(16, 16, "rgb24")))
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 48_000
        container.mux(music.encode(sound))
        container.mux(music.encode(None))
    return path


def _place(argument: str, folder: Path) -> str:
    return str(folder / argument) if argument.startswith(("out.", "no/")) else argument


def test_a_file_is_not_overwritten_unasked(program, tmp_path):
    clip, out = source(tmp_path, seconds=0.5), tmp_path / "out.mp4"
    out.write_bytes(b"precious")
    status, said = program("process", str(clip), str(out))
    assert status == 2
    assert "--overwrite" in said
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


def test_an_engine_that_dies_over_a_file_costs_no_frame_and_damage_is_told(tmp_path):
    clip, out = source(tmp_path, key_every=1 / 30, audio=None), tmp_path / "out.mp4"
    broken = _damaged(clip, tmp_path / "broken.mkv", lambda number: number == 20)
    mark = tmp_path / "died"
    done = headrace(
        "process",
        broken,
        out,
        "--processor",
        "tests.live.live_processors:DiesOnce",
        env={"DIES_ONCE": str(mark)},
    )
    assert done.returncode == 0, done.stderr
    assert mark.exists()
    numbers = [barcode.read_number(f.to_ndarray(format="rgb24")) for f in frames(out)]
    assert numbers == [number for number in range(FRAMES) if number != 20]
    assert "1 packet could not be decoded" in " ".join(done.stderr.split())


def test_a_processor_that_fails_fails_the_file_with_its_words(program, tmp_path):
    clip, out = source(tmp_path), tmp_path / "out.mp4"
    processor = "tests.live.live_processors:RaisesSometimes"
    status, said = program("process", str(clip), str(out), "--processor", processor)
    assert status == 1
    assert "every third frame" in said
    assert not out.exists()


# -- what is opened, and when ----------------------------------------------------------------------------


class Watched(FrameProcessor):
    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails
        self.calls: list[str] = []

    async def load_model(self, **kwargs: Any) -> None:
        self.calls.append("load")
        if self.fails:
            raise RuntimeError("no weights")

    async def on_stream_start(self, params: dict[str, Any]) -> None:
        self.calls.append("start")

    async def on_stream_stop(self) -> None:
        self.calls.append("stop")


@pytest.mark.descriptors
async def test_an_unknown_suffix_is_told_before_anything_is_loaded(tmp_path):
    processor = Watched()
    with pytest.raises(SinkError, match="nosuchformat"):
        FileJob(source(tmp_path), tmp_path / "out.nosuchformat", processor, PipelineSettings())
    assert processor.calls == []


@pytest.mark.descriptors
async def test_a_processor_that_cannot_be_loaded_leaves_no_file_open(tmp_path):
    job = FileJob(source(tmp_path), tmp_path / "out.mp4", Watched(fails=True), PipelineSettings())
    with pytest.raises(RuntimeError, match="no weights"):
        await job.run()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4"]


async def test_an_output_that_cannot_be_written_still_tells_the_processor_that_the_stream_stopped(tmp_path):
    processor, folder = Watched(), tmp_path / "gone"
    folder.mkdir()
    job = FileJob(source(tmp_path), folder / "out.mp4", processor, PipelineSettings())
    shutil.rmtree(folder)
    with pytest.raises(SinkError, match=r"out\.mp4 cannot be written"):
        await job.run()
    assert processor.calls == ["load", "start", "stop"]


# -- sound -----------------------------------------------------------------------------------------------


def _heard(path: Path) -> tuple[np.ndarray, float]:
    """Samples (channels x n) of the sound, and the time (s) of the first one."""
    with av.open(path) as container:
        decoded = list(container.decode(audio=0))
    assert decoded[0].time is not None
    assert {frame.sample_rate for frame in decoded} == {48_000}
    return np.concatenate([frame.to_ndarray() for frame in decoded], axis=1), decoded[0].time


def _write_with_tone(path: Path, *, tone_at: float, seconds: float, picture_at: float = 0) -> None:
    """Grey pictures from ``picture_at`` on, and silence from 0 on that becomes a tone at ``tone_at``."""
    with av.open(path, "w") as container:
        video = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "bf": "0"})
        video.width, video.height, video.pix_fmt = 96, 96, "yuv420p"
        audio: Any = container.add_stream("aac", rate=48_000, layout="stereo")
        samples = np.zeros((2, round(seconds * 48_000)), np.float32)
        begin = round(tone_at * 48_000)
        samples[:, begin:] = 0.5 * np.sin(np.arange(samples.shape[1] - begin) * 2 * np.pi * 500 / 48_000)
        for at in range(0, samples.shape[1], 1024):
            sound = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples[:, at : at + 1024]), format="fltp", layout="stereo"
            )
            sound.sample_rate, sound.pts, sound.time_base = 48_000, at, Fraction(1, 48_000)
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
        for number in range(round(picture_at * 30), round(seconds * 30)):
            picture = av.VideoFrame.from_ndarray(np.full((96, 96, 3), 128, np.uint8), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 30)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))


@SHARED
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
async def test_sound_that_a_processor_touches_is_stereo_in_time_and_ends_with_the_picture(
    engine, tmp_path, suffix
):
    clip, out = tmp_path / "clip.mp4", tmp_path / f"out.{suffix}"
    _write_with_tone(clip, tone_at=1.25, seconds=3)
    await convert(engine, clip, out, processor="tests.live.live_processors:LeftOnly")
    samples, begins = _heard(out)
    assert samples.shape[0] == 2
    left, right = np.abs(samples)
    onset = begins + int(np.argmax(left > 0.1)) / 48_000
    assert onset == pytest.approx(1.25, abs=0.01)
    assert right.max() < 0.01
    pictures = frames(out)
    assert len(pictures) == 90
    assert begins + samples.shape[1] / 48_000 == pytest.approx(pictures[-1].time + 1 / 30, abs=0.05)


@SHARED
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
async def test_sound_that_begins_seconds_before_the_picture_is_heard_from_its_beginning(
    engine, tmp_path, suffix
):
    clip, out = tmp_path / "clip.mp4", tmp_path / f"out.{suffix}"
    _write_with_tone(clip, tone_at=0.5, seconds=5, picture_at=4)
    await convert(engine, clip, out, processor="tests.live.live_processors:LeftOnly")
    samples, begins = _heard(out)
    assert begins + int(np.argmax(np.abs(samples[0]) > 0.1)) / 48_000 == pytest.approx(0.5, abs=0.01)
    assert [round(frame.time, 2) for frame in frames(out)][:2] == [4.0, 4.03]


def _sound_units(count: int) -> list[EncodedUnit]:
    encoder, units = AudioEncoder(), list[EncodedUnit]()
    silence = np.zeros((2, 960), np.float32)
    for number in range(count):
        units += encoder.encode(AudioFrame(silence, number * 960, Fraction(1, 48_000), rate=48_000))
    return units + encoder.flush()


def test_encoded_sound_before_the_first_picture_is_kept(tmp_path):
    out = tmp_path / "out.mp4"
    sink = FileSink(out)
    sink.add_encoded_sound(2)
    sounds = _sound_units(150)
    sink.write(sounds, None)
    encoder = VideoEncoder(VideoEncoderSettings(hardware="off"), 96, 96)
    rows = np.full((144, 96), 128, np.uint8)
    grey = Picture("yuv420p", 96, 96, (rows[:96], rows[:48, :48], rows[:48, :48]))
    for number in range(3):
        units = encoder.encode(grey, 180_000 + number * 3000)
        sink.write(units, encoder.parameters)
    sink.write(encoder.flush(), encoder.parameters)
    sink.close()
    with av.open(out) as container:
        found = [bytes(p) for p in container.demux(audio=0) if p.dts is not None]
    assert found == [unit.data for unit in sounds]
    assert [round(frame.time, 2) for frame in frames(out)] == [2.0, 2.03, 2.07]


def test_sound_without_any_picture_is_held_up_to_a_limit_that_is_told(tmp_path):
    sink = FileSink(tmp_path / "out.mkv")
    sink.add_encoded_sound(2)
    unit = _sound_units(1)[0]
    sink.write([unit] * MAX_EARLY_PACKETS, None)
    with pytest.raises(SinkError, match=f"more than {MAX_EARLY_PACKETS} packets of sound"):
        sink.write([unit], None)
    sink.discard()
    assert list(tmp_path.iterdir()) == []


# -- damage ----------------------------------------------------------------------------------------------


def _damaged(clip: Path, path: Path, damaged: Callable[[int], bool]) -> Path:
    """The pictures of ``clip``, those with such numbers replaced by noise."""
    noise = np.random.default_rng(5)
    with av.open(clip) as before, av.open(path, "w") as after:
        track = after.add_stream_from_template(before.streams.video[0])
        packets = (packet for packet in before.demux(video=0) if packet.dts is not None)
        for number, packet in enumerate(packets):
            written = packet
            if damaged(number):
                written = av.Packet(noise.bytes(packet.size))
                written.pts, written.dts, written.time_base = packet.pts, packet.dts, packet.time_base
                written.is_keyframe = packet.is_keyframe
            written.stream = track
            after.mux(written)
    return path


@SHARED
async def test_damaged_packets_are_left_out_and_counted(engine, tmp_path):
    clip, at = source(tmp_path, key_every=1 / 30, audio=None), {10, 11, 20}
    broken, out = _damaged(clip, tmp_path / "broken.mkv", lambda n: n in at), tmp_path / "out.mp4"
    assert (await convert(engine, broken, out)).errors == 3
    numbers = [barcode.read_number(f.to_ndarray(format="rgb24")) for f in frames(out)]
    assert numbers == [number for number in range(FRAMES) if number not in at]


@SHARED
async def test_a_file_in_which_nothing_can_be_decoded_fails_and_says_so(engine, tmp_path):
    broken = _damaged(source(tmp_path, audio=None), tmp_path / "broken.mkv", lambda n: True)
    with pytest.raises(SourceError, match="no picture of the input could be decoded"):
        await convert(engine, broken, tmp_path / "out.mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.mkv", "clip.mp4"]


@SHARED
@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4"])
async def test_a_file_that_is_cut_off_gives_the_frames_that_there_are(engine, tmp_path, suffix):
    file, cut, out = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}", tmp_path / "out.mp4"
    options = {"movflags": "faststart"} if suffix == "mp4" else {}
    with av.open(source(tmp_path, seconds=2)) as before, av.open(file, "w", options=options) as after:
        tracks = {
            s.index: after.add_stream_from_template(s) for s in (*before.streams.video, *before.streams.audio)
        }
        for packet in before.demux():
            if packet.dts is not None:
                packet.stream = tracks[packet.stream.index]
                after.mux(packet)
    data = file.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    await convert(engine, cut, out)
    numbers = [barcode.read_number(f.to_ndarray(format="rgb24")) for f in frames(out)]
    # Of the last picture there may be half, and FFmpeg fills the rest with the one before it.
    whole = numbers[:-1]
    assert 15 < len(whole) < 50
    assert whole == list(range(len(whole)))


# -- signals ---------------------------------------------------------------------------------------------


@contextmanager
def _at_work(clip: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "headrace", "process", str(clip), str(out)]
    command += ["--processor", "tests.live.live_processors:Slow"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("moment", "number", "status"),
    [
        ("starting", signal.SIGINT, 130),
        ("starting", signal.SIGTERM, 143),
        ("working", signal.SIGTERM, 143),
    ],
)
def test_a_signal_stops_the_work_and_leaves_nothing_behind(tmp_path, moment, number, status):
    # Of the processor's time for a frame, a hundred take long enough.
    clip, out = source(tmp_path, seconds=3 if moment == "working" else 1), tmp_path / "out.mp4"
    with _at_work(clip, out) as process:
        worker = psutil.Process(process.pid)
        begun = {
            "starting": worker.children,
            "working": lambda: any(".out.part" in file.path for file in worker.open_files()),
        }
        _until(begun[moment])
        engine = worker.children(recursive=True)
        assert engine
        process.send_signal(number)
        _, words = process.communicate(timeout=60)
        # To a shell, dead of SIGINT is 130 too: CPython ends so when the interrupt was caught but had come
        # in the midst of code that is made of text, as that of dataclasses is.
        ended = {status} | ({-number} if number == signal.SIGINT else set())
        assert process.returncode in ended, words
    assert "Traceback" not in words
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4"]
    _, alive = psutil.wait_procs(engine, timeout=5)
    assert alive == []

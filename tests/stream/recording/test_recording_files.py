"""Files of recordings, read back with FFmpeg."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from recorded_file import boxes, contents
from recorded_media import START, STEP, pictures, sound, together

from stream.mpegts import AccessUnit
from stream.recording import writer as writers
from stream.recording.takes import Takes, unit_in, unit_out
from stream.recording.writer import RecordingLimits, RecordingWriter

LIMITS = RecordingLimits(duration=3600, reserve=0)
DONE = 20.0


def until(so):
    end = time.monotonic() + DONE
    while not so():
        assert time.monotonic() < end
        time.sleep(0.01)


async def recorded(folder, units, limits=LIMITS, takes=None):
    writer = RecordingWriter(folder, "take", limits, takes or Takes(expects_video=True, expects_audio=True))
    writer.start()
    for unit in units:
        writer.put(unit)
    writer.finish()
    await asyncio.wait_for(writer.done.wait(), DONE)
    return writer


async def test_pictures_and_sound_are_in_step_in_an_ordinary_mp4(tmp_path):
    units = together(pictures(90), sound(90))
    writer = await recorded(tmp_path, [unit_out(unit) for unit in units])
    assert [each["file"] for each in writer.files] == ["take.mp4"]
    found = contents(tmp_path / "take.mp4")
    assert found.codecs == {"video": "h264", "audio": "opus"}
    assert found.size == (64, 48)
    assert found.first_is_key
    assert len(found.video) == 90
    assert found.video[0] == 0
    assert found.duration == pytest.approx(3.0, abs=0.05)
    first = min(unit.pts for unit in units if unit.kind == "audio" and unit.pts >= START) - START
    # Of the first packet, players leave out what an Opus decoder needs to get going.
    assert found.audio[1] == pytest.approx(first / 90_000 + 0.02, abs=0.002)
    assert boxes(tmp_path / "take.mp4") == ["ftyp", "free", "mdat", "moov"]
    assert writer.files[0]["seconds"] == pytest.approx(3.0, abs=0.05)


async def test_another_size_goes_to_another_file(tmp_path):
    units = pictures(40) + pictures(40, size=(96, 64), start=START + 40 * STEP)
    writer = await recorded(tmp_path, [unit_out(unit) for unit in units], takes=Takes(expects_video=True))
    assert [each["size"] for each in writer.files] == ["64x48", "96x64"]
    assert [contents(tmp_path / name).size for name in ("take.mp4", "take-2.mp4")] == [(64, 48), (96, 64)]


def vp8_and_opus():
    """Units as a browser without H.264 sends them."""
    encoder = av.CodecContext.create("libvpx", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 64, 48, "yuv420p"
    encoder.time_base, encoder.options = Fraction(1, 90_000), {"deadline": "realtime", "lag-in-frames": "0"}
    units = []
    for index in range(60):
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), index, np.uint8), format="rgb24")
        frame.pts, frame.time_base = START + index * STEP, Fraction(1, 90_000)
        for packet in encoder.encode(frame.reformat(format="yuv420p")):
            pts = packet.pts
            units.append(AccessUnit(0, "vp8", "video", bytes(packet), pts, pts, 0, packet.is_keyframe))
    tone = [AccessUnit(1, "opus", "audio", u.data, u.pts, u.pts, 0, True) for u in sound(60)]
    return sorted(units + tone, key=lambda unit: unit.pts)


async def test_vp8_goes_to_webm(tmp_path):
    writer = await recorded(tmp_path, [unit_in(unit) for unit in vp8_and_opus()])
    assert writer.files[0]["container"] == "webm"
    found = contents(tmp_path / "take.webm")
    assert found.codecs["audio"] == "opus"
    assert found.size == (64, 48)
    assert len(found.video) == 60


def ts_units(path: Path):
    """H.264 with B-frames and AAC, as a segment of OBS has them."""
    from stream.mpegts import TsDemuxer

    with av.open(str(path), "w", format="mpegts") as container:
        video = container.add_stream(
            "libx264", rate=30, options={"bf": "2", "g": "15", "preset": "ultrafast"}
        )
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.max_b_frames = 2
        audio = container.add_stream("aac", rate=44_100)
        audio.layout = "stereo"
        for index in range(60):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), index * 3, np.uint8), format="rgb24")
            container.mux(video.encode(picture.reformat(format="yuv420p")))
            tone = av.AudioFrame.from_ndarray(np.zeros((2, 1470), np.float32), format="fltp", layout="stereo")
            tone.sample_rate = 44_100
            container.mux(audio.encode(tone))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    demuxer = TsDemuxer()
    return demuxer.feed(path.read_bytes(), 1) + demuxer.flush()


async def test_b_frames_and_aac_are_kept_as_they_came(tmp_path):
    units = ts_units(tmp_path / "in.ts")
    assert any(unit.pts != unit.dts for unit in units if unit.kind == "video")
    writer = await recorded(tmp_path, [unit_in(unit) for unit in units])
    found = contents(tmp_path / "take.mp4")
    assert found.codecs == {"video": "h264", "audio": "aac"}
    assert len(found.video) == 60
    assert found.video == sorted(found.video)
    assert writer.files[0]["audio"] == "aac"


KILLED = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from recorded_media import pictures, sound, together
from stream.recording.takes import Takes, unit_out
from stream.recording.writer import RecordingLimits, RecordingWriter

async def main():
    takes = Takes(expects_video=True, expects_audio=True)
    writer = RecordingWriter(Path(sys.argv[1]), "take", RecordingLimits(reserve=0), takes)
    writer.start()
    for unit in together(pictures(150), sound(150)):
        writer.put(unit_out(unit))
    while writer.files == [] or writer.files[0]["seconds"] < 4.9:
        await asyncio.sleep(0.01)
    print("written", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_killed_worker_leaves_a_file_that_plays(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
    try:
        assert process.stdout.readline() == b"written\n"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
    found = contents(tmp_path / "take.mp4")
    assert found.video[-1] > 3.0
    assert found.audio[-1] > 3.0


async def test_a_limit_of_time_ends_it_whole(tmp_path):
    units = [unit_out(unit) for unit in pictures(90)]
    takes = Takes(expects_video=True)
    writer = await recorded(tmp_path, units, RecordingLimits(duration=1.0, reserve=0), takes)
    assert writer.phase == "ended"
    assert "the limit" in writer.reason
    assert contents(tmp_path / "take.mp4").video[-1] == pytest.approx(1.0, abs=0.1)


async def test_a_full_disk_ends_it_whole(tmp_path, monkeypatch):
    free = iter([1 << 40, 1 << 40])
    monkeypatch.setattr(writers, "free_bytes", lambda folder: next(free, 5))
    monkeypatch.setattr(writers, "SPACE_EVERY", 0.0)
    writer = await recorded(
        tmp_path,
        [unit_out(u) for u in pictures(60)],
        RecordingLimits(reserve=1 << 20),
        Takes(expects_video=True),
    )
    assert writer.phase == "ended"
    assert "MiB are free" in writer.reason
    assert contents(tmp_path / "take.mp4").first_is_key


async def test_a_disk_that_cannot_be_written_is_told_and_nothing_hangs(tmp_path):
    takes = Takes(expects_video=True)
    writer = await recorded(tmp_path / "missing", [unit_out(u) for u in pictures(20)], LIMITS, takes)
    assert writer.phase == "failed"
    assert writer.begun.is_set()
    assert writer.reason


async def test_a_slow_disk_costs_pictures_up_to_a_key_picture_and_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "MAX_UNITS", 20)
    units = [unit_out(unit) for unit in pictures(90)]
    writer = RecordingWriter(tmp_path, "take", LIMITS, Takes(expects_video=True))
    for unit in units:
        writer.put(unit)
    assert writer.dropped == 70
    assert writer.wants_key
    writer.start()
    await asyncio.to_thread(until, lambda: not writer._units)
    for unit in pictures(20, start=units[-1].pts + STEP):
        writer.put(unit_out(unit))
    writer.finish()
    await asyncio.wait_for(writer.done.wait(), DONE)
    assert len(contents(tmp_path / "take.mp4").video) == 40

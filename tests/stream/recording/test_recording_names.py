"""Names of recordings: what exists is neither overwritten nor in the way, and no two write to one."""

import asyncio

import pytest
from recorded_file import contents
from recorded_media import START, STEP, pictures

from stream.errors import Conflict, SinkError
from stream.recording.folder import RecordingFolder
from stream.recording.recorder import Recorder
from stream.recording.takes import Takes, unit_out
from stream.recording.writer import RecordingLimits, RecordingWriter
from tests.stream.quiet_session import quiet_session

LIMITS = RecordingLimits(duration=3600, reserve=0)
DONE = 20.0


async def fed(session, recorder, name):
    """Begin to record what goes out of ``session``, of which pictures come."""
    starting = asyncio.create_task(recorder.start(session, "out", name))
    try:
        await asyncio.sleep(0)
        for sink in session.sinks:
            sink.expect(video=True, audio=False)
            for unit in pictures(60):
                sink.offer(unit)
        return await asyncio.wait_for(starting, DONE)
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)


@pytest.fixture
async def recorder(tmp_path):
    recorder = Recorder(RecordingFolder(tmp_path), LIMITS)
    yield recorder
    await recorder.close()


async def test_a_later_part_takes_the_next_number_that_is_free(tmp_path):
    for name in ("show-2.mp4", "show-4.mp4"):
        (tmp_path / name).write_bytes(b"older")
    units = [
        unit
        for part, size in enumerate([(64, 48), (96, 64), (64, 48)])
        for unit in pictures(40, size=size, start=START + part * 40 * STEP)
    ]
    writer = RecordingWriter(tmp_path, "show", LIMITS, Takes(expects_video=True))
    writer.start()
    for unit in units:
        writer.put(unit_out(unit))
    writer.finish()
    await asyncio.wait_for(writer.done.wait(), DONE)
    assert (writer.phase, writer.reason) == ("ended", None)
    assert [each["file"] for each in writer.files] == ["show.mp4", "show-3.mp4", "show-5.mp4"]
    assert contents(tmp_path / "show-3.mp4").size == (96, 64)
    assert (tmp_path / "show-2.mp4").read_bytes() == b"older"


async def test_a_name_that_is_being_recorded_under_is_taken_before_there_is_a_file(recorder):
    first, second = quiet_session("first"), quiet_session("second")
    starting = asyncio.create_task(recorder.start(first, "out", "show"))
    await asyncio.sleep(0)
    with pytest.raises(Conflict, match="show"):
        await recorder.start(second, "out", "show")
    await recorder.stop("first")
    await asyncio.wait_for(starting, DONE)


async def test_what_cannot_be_written_is_refused_and_not_answered_with_success(
    recorder, tmp_path, monkeypatch
):
    monkeypatch.setattr(RecordingFolder, "prepare", lambda self: None)
    broken = Recorder(RecordingFolder(tmp_path / "missing"), LIMITS)
    session = quiet_session("one")
    with pytest.raises(SinkError, match="show"):
        await fed(session, broken, "show")
    assert broken.active() == []
    # Nothing of the attempt is in the way.
    begun = await fed(session, recorder, "show")
    assert [each["file"] for each in begun[0].writer.files] == ["show.mp4"]
    await broken.close()


async def test_a_full_disk_is_told_in_place_of_an_answer_without_a_file(tmp_path):
    full = Recorder(RecordingFolder(tmp_path), RecordingLimits(duration=3600, reserve=1 << 60))
    with pytest.raises(SinkError, match="MiB are free"):
        await fed(quiet_session("one"), full, "show")
    await full.close()

from __future__ import annotations

import io
from dataclasses import replace

import av
import pytest
from codec_media import START, encoded_audio, encoded_video, units_of
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.codecs.mpegts_muxer import TsMuxer
from stream.mpegts import TsDemuxer
from stream.psi import parse_pat, parse_pmt
from stream.units import AudioParameters, EncodedUnit, VideoParameters

VIDEO, AUDIO = VideoParameters(160, 96), AudioParameters(2)
DELIMITER = b"\x00\x00\x00\x01\x09\xf0"


def pictures(count: int = 40, start: int = START) -> list[EncodedUnit]:
    return [
        EncodedUnit("video", unit.data, unit.pts, 3000, unit.key)
        for unit in encoded_video(count, start=start)
    ]


def sound(seconds: float = 1.3, start: int = START, layout: str = "stereo") -> list[EncodedUnit]:
    units = encoded_audio(seconds, "libopus", start=start, layout=layout)
    return [EncodedUnit("audio", unit.data, unit.pts, 1800) for unit in units]


def in_step(*tracks: list[EncodedUnit]) -> list[EncodedUnit]:
    units = sorted((unit for track in tracks for unit in track), key=lambda unit: unit.pts)
    first = next(index for index, unit in enumerate(units) if unit.kind == "video")
    return units[first:]


def segments_of(units: list[EncodedUnit], audio: AudioParameters | None) -> list[bytes]:
    segments: list[bytes] = []
    muxer: TsMuxer | None = None
    for unit in units:
        if unit.kind == "video" and unit.key:
            muxer = TsMuxer(VIDEO, audio)
            segments.append(b"")
        assert muxer is not None
        segments[-1] += muxer.mux(unit)
    return segments


def read_by_ffmpeg(data: bytes) -> list[tuple[str, int, bytes]]:
    with av.open(io.BytesIO(data), format="mpegts") as container:
        return [(p.stream.type, p.pts, bytes(p)) for p in container.demux() if p.size]


def test_ffmpeg_reads_segments_in_a_row_with_their_times() -> None:
    units = in_step(pictures(), sound())
    segments = segments_of(units, AUDIO)
    assert len(segments) == 4
    packets = read_by_ffmpeg(b"".join(segments))
    for kind in ("video", "audio"):
        expected = [(u.pts, u.data) for u in units if u.kind == kind]
        found = [(pts, data.removeprefix(DELIMITER)) for which, pts, data in packets if which == kind]
        assert found == expected


def test_ffmpeg_decodes_segments_in_a_row() -> None:
    units = in_step(pictures(), sound())
    with av.open(io.BytesIO(b"".join(segments_of(units, AUDIO))), format="mpegts") as container:
        assert container.streams.audio[0].codec_context.layout.name == "stereo"
        frames = [frame.pts for frame in container.decode(video=0)]
    assert frames == [unit.pts for unit in units if unit.kind == "video"]


def test_a_unit_comes_out_of_the_call_that_took_it() -> None:
    demuxer = TsDemuxer()
    muxer = TsMuxer(VIDEO, AUDIO)
    for unit in in_step(pictures(), sound()):
        data = muxer.mux(unit)
        assert len(data) % 188 == 0
        found = demuxer.feed(data, unit.pts)
        assert [(each.pts, each.data.removeprefix(DELIMITER)) for each in found] == [(unit.pts, unit.data)]
        assert found[0].received == unit.pts
    assert muxer.close() == b""


def test_declared_sound_that_never_comes_holds_nothing_back() -> None:
    units = pictures()
    segment = b"".join(segments_of(units, AUDIO))
    assert [pts for _, pts, _ in read_by_ffmpeg(segment)] == [unit.pts for unit in units]


def test_a_segment_begins_with_its_tables_and_a_key_picture() -> None:
    for segment in segments_of(in_step(pictures(), sound()), AUDIO):
        packets = [segment[at : at + 188] for at in range(0, len(segment), 188)]
        pids = [(packet[1] & 0x1F) << 8 | packet[2] for packet in packets]
        assert pids[:3] == [0, 0x1000, 0x100]
        sections = [packet[5 + packet[4] + 1 :] for packet in packets[:2]]
        assert parse_pat(sections[0][:16]) == [(1, 0x1000)]
        length = 3 + ((sections[1][1] & 15) << 8 | sections[1][2])
        program = parse_pmt(sections[1][:length])
        assert program is not None
        assert [stream.stream_type for stream in program[1]] == [0x1B, 0x06]
        # Counters begin at 0 and say so: discontinuity, and for the picture random access and a clock.
        assert [packet[3] & 0x0F for packet in packets[:3]] == [0, 0, 0]
        assert [packet[5] & 0x80 for packet in packets[:3]] == [0x80] * 3
        assert packets[2][5] & 0x50 == 0x50


def test_counters_run_without_a_gap_inside_a_segment() -> None:
    for segment in segments_of(in_step(pictures(), sound()), AUDIO):
        counters: dict[int, int] = {}
        for at in range(0, len(segment), 188):
            pid = (segment[at + 1] & 0x1F) << 8 | segment[at + 2]
            assert segment[at + 3] & 0x0F == counters.get(pid, 0)
            counters[pid] = (counters.get(pid, 0) + 1) & 15


def test_the_clock_stays_ahead_of_the_pictures() -> None:
    muxer = TsMuxer(VIDEO, None)
    for unit in pictures(12, start=3000):
        data = muxer.mux(unit)
        at = next(at for at in range(0, len(data), 188) if data[at + 2] == 0 and data[at + 1] & 0x5F == 0x41)
        assert data[at + 5] & 0x10
        base = int.from_bytes(data[at + 6 : at + 12], "big") >> 15
        assert (unit.pts - base) % (1 << 33) == 9000


def test_units_are_not_written_to() -> None:
    unit = pictures(1)[0]
    before = replace(unit, data=bytes(bytearray(unit.data)))
    first, second = TsMuxer(VIDEO, None).mux(unit), TsMuxer(VIDEO, None).mux(unit)
    assert first == second
    assert unit == before


@settings(max_examples=60)
@given(
    sizes=st.lists(st.one_of(st.integers(1, 800), st.integers(65_000, 66_500)), min_size=1, max_size=8),
    start=st.integers(0, (1 << 33) - 1),
)
def test_units_of_any_size_come_back_whole(sizes: list[int], start: int) -> None:
    muxer, demuxer = TsMuxer(VIDEO, AUDIO), TsDemuxer()
    units, found = [], []
    for index, size in enumerate(sizes):
        pts = start + 3000 * index
        units.append(EncodedUnit("video", b"\x00\x00\x01\x65" + b"\x55" * size, pts, 3000))
        units.append(EncodedUnit("audio", b"\x78" + b"\xff" * (size % 1500), pts, 1800))
    for unit in units:
        found += demuxer.feed(muxer.mux(unit), 1)
    found += demuxer.flush()
    for kind in ("video", "audio"):
        expected = [(u.pts - start, u.data) for u in units if u.kind == kind]
        base = found[0].pts
        assert [(u.pts - base, u.data.removeprefix(DELIMITER)) for u in found if u.kind == kind] == expected
    assert base == start
    assert demuxer.statistics.continuity_errors == demuxer.statistics.malformed == 0


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2)])
def test_sound_alone_makes_a_segment(layout: str, channels: int) -> None:
    muxer, units = TsMuxer(None, AudioParameters(channels)), sound(layout=layout)
    data = b"".join(muxer.mux(unit) for unit in units)
    assert [(pts, payload) for _, pts, payload in read_by_ffmpeg(data)] == [(u.pts, u.data) for u in units]
    assert {unit.channels for unit in units_of(data)} == {channels}


def test_what_was_not_declared_is_refused() -> None:
    with pytest.raises(ValueError, match="without audio"):
        TsMuxer(VIDEO, None).mux(sound()[0])
    with pytest.raises(ValueError, match="pictures or sound"):
        TsMuxer(None, None)

from __future__ import annotations

import io
import random
from dataclasses import replace
from itertools import pairwise

import av
import pytest
from codec_media import START, Coded, adts, encoded_audio, encoded_video, ffmpeg_ts, units_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.mpegts import AccessUnit, TsDemuxer
from stream.pes import packed_timestamp
from stream.psi import ElementaryStream, build_pat, build_pmt

PMT, VIDEO, AUDIO = 0x1000, 0x100, 0x101
H264 = ElementaryStream(0x1B, VIDEO)
OPUS = ElementaryStream(0x06, AUDIO, b"\x05\x04Opus\x7f\x02\x80\x01")
IDR = b"\x00\x00\x00\x01\x09\xf0\x00\x00\x01\x65"
SLICE = b"\x00\x00\x00\x01\x09\xf0\x00\x00\x01\x41"


@pytest.fixture(scope="module")
def video() -> list[Coded]:
    return encoded_video(40)


@pytest.fixture(scope="module")
def with_aac(video: list[Coded]) -> bytes:
    return ffmpeg_ts(video, encoded_audio(1.4))


@pytest.fixture(scope="module")
def with_opus(video: list[Coded]) -> bytes:
    return ffmpeg_ts(video, encoded_audio(1.4, "libopus"), audio_codec="opus")


class Writer:
    """Transport packets by hand, for what no multiplexer writes."""

    def __init__(self) -> None:
        self.counters: dict[int, int] = {}

    def packet(
        self, pid: int, payload: bytes, *, start: bool = False, field: bytes | None = None, control: int = 0
    ) -> bytes:
        """``field``: the adaptation field's content; None for one that is only as long as needed."""
        counter = self.counters.get(pid, 0)
        self.counters[pid] = (counter + 1) & 15
        room = 184 - len(payload)
        if field is None and room:
            field = b"" if room == 1 else b"\x00" + b"\xff" * (room - 2)
        body = payload if field is None else bytes((len(field),)) + field + payload
        assert len(body) == 184
        head = (
            0x47,
            (0x40 if start else 0) | pid >> 8,
            pid & 0xFF,
            control | (0x10 if field is None else 0x30),
        )
        return bytes((*head[:3], head[3] | counter)) + body

    def tables(self, *streams: ElementaryStream, program: int = 1, pmt: int = PMT) -> bytes:
        sections = ((0, build_pat([(program, pmt)])), (pmt, build_pmt(program, VIDEO, streams)))
        return b"".join(
            self.packet(pid, (b"\x00" + section).ljust(184, b"\xff"), start=True) for pid, section in sections
        )

    def pes(self, pid: int, data: bytes, pts: int, *, stream_id: int = 0xE0, sized: bool = False) -> bytes:
        pes = pes_packet(data, pts, stream_id=stream_id, sized=sized)
        chunks = [pes[at : at + 184] for at in range(0, len(pes), 184)]
        return b"".join(self.packet(pid, chunk, start=not index) for index, chunk in enumerate(chunks))


def pes_packet(data: bytes, pts: int | None, *, stream_id: int = 0xE0, sized: bool = False) -> bytes:
    optional = b"\x80\x00\x00" if pts is None else b"\x80\x80\x05" + packed_timestamp(2, pts)
    length = len(optional) + len(data) if sized else 0
    return b"\x00\x00\x01" + bytes((stream_id,)) + length.to_bytes(2, "big") + optional + data


def picture(size: int, key: bool = True, seed: int = 0) -> bytes:
    rng = random.Random(seed)
    return (IDR if key else SLICE) + bytes(rng.randrange(1, 256) for _ in range(size))


def video_of(units: list[AccessUnit]) -> list[AccessUnit]:
    return [unit for unit in units if unit.kind == "video"]


def audio_of(units: list[AccessUnit]) -> list[AccessUnit]:
    return [unit for unit in units if unit.kind == "audio"]


@pytest.mark.parametrize("name", ["with_aac", "with_opus"])
def test_gives_the_units_that_ffmpegs_own_demuxer_gives(name: str, request: pytest.FixtureRequest) -> None:
    data: bytes = request.getfixturevalue(name)
    units = units_of(data)
    with av.open(io.BytesIO(data), format="mpegts") as container:
        packets = [(p.stream.type, p.pts, p.dts, bytes(p)) for p in container.demux() if p.size]
    for kind in ("video", "audio"):
        ours = [(u.pts, u.dts, u.data) for u in units if u.kind == kind]
        theirs = [packet[1:] for packet in packets if packet[0] == kind]
        assert len(ours) > 30
        assert ours == theirs


def test_every_picture_comes_out_with_its_own_last_packet(with_aac: bytes) -> None:
    demuxer, waiting, late = TsDemuxer(), 0, []
    for at in range(0, len(with_aac), 188):
        packet = with_aac[at : at + 188]
        is_video_start = packet[1] & 0x5F == 0x41 and packet[2] == 0
        if is_video_start and waiting:
            late.append(at)
        waiting += is_video_start
        waiting -= len(video_of(demuxer.feed(packet, at)))
    # One that ends exactly with a packet has no stuffing and has to wait.
    assert len(late) <= 2
    assert waiting <= 1


def test_received_is_the_time_of_the_last_byte() -> None:
    writer, demuxer = Writer(), TsDemuxer()
    demuxer.feed(writer.tables(H264), 1)
    packets = writer.pes(VIDEO, picture(184 * 3), 9000)
    units = [
        unit for at in range(0, len(packets), 188) for unit in demuxer.feed(packets[at : at + 188], at + 2)
    ]
    assert [unit.received for unit in units] == [len(packets) - 188 + 2]


def test_received_of_a_unit_whose_last_packet_follows_garbage_is_when_that_came() -> None:
    writer, demuxer = Writer(), TsDemuxer()
    data = writer.tables(H264) + writer.pes(VIDEO, picture(300), 1_000)
    assert demuxer.feed(data[:-188], 1) == []
    assert demuxer.feed(bytes(10) + data[-188:], 2) == []
    (unit,) = demuxer.flush()
    assert unit.received == 2


def test_received_of_a_unit_ended_by_the_next_one_is_its_own() -> None:
    writer, demuxer = Writer(), TsDemuxer()
    demuxer.feed(writer.tables(H264), 1)
    exact = picture(184 * 2 - len(IDR) - 14)
    assert demuxer.feed(writer.pes(VIDEO, exact, 9000), 2) == []
    units = demuxer.feed(writer.pes(VIDEO, picture(50), 12_000), 3)
    assert [(unit.pts, unit.received) for unit in units] == [(9000, 2), (12_000, 3)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=30),
    name=st.sampled_from(["with_aac", "with_opus"]),
)
def test_any_splitting_gives_the_same_units(
    sizes: list[int], name: str, request: pytest.FixtureRequest
) -> None:
    data: bytes = request.getfixturevalue(name)
    whole = units_of(data)
    demuxer, at, turn, units = TsDemuxer(), 0, 0, []
    while at < len(data):
        size = sizes[turn % len(sizes)]
        units += demuxer.feed(data[at : at + size], 1)
        at, turn = at + size, turn + 1
    assert units + demuxer.flush() == whole


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=600), max_size=12))
def test_arbitrary_bytes_raise_nothing(chunks: list[bytes]) -> None:
    demuxer = TsDemuxer()
    for chunk in chunks:
        demuxer.feed(chunk, 1)
    demuxer.flush()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    damage=st.lists(
        st.tuples(
            st.floats(0, 0.999),
            st.sampled_from(["flip", "cut", "insert", "cut packet"]),
            st.binary(max_size=40),
        ),
        min_size=1,
        max_size=8,
    ),
    chunk=st.integers(1, 3000),
    seed=st.integers(0, 9),
)
def test_damaged_streams_raise_nothing_and_recover(
    damage: list[tuple[float, str, bytes]], chunk: int, seed: int, with_aac: bytes, with_opus: bytes
) -> None:
    good = with_aac if seed % 2 else with_opus
    data = bytearray(good)
    for place, kind, extra in damage:
        at = int(place * len(data))
        if kind == "flip":
            for offset, value in enumerate(extra):
                if at + offset < len(data):
                    data[at + offset] ^= value
        elif kind == "insert":
            data[at:at] = extra
        else:
            del data[at : at + (188 if kind == "cut packet" else len(extra))]
    demuxer = TsDemuxer()
    for at in range(0, len(data), chunk):
        demuxer.feed(bytes(data[at : at + chunk]), 1)
    demuxer.flush()
    # The next segment, undamaged, is read whole.
    expected = [(unit.pts, unit.data) for unit in units_of(good)]
    assert [(unit.pts, unit.data) for unit in units_of(good, demuxer)] == expected


@settings(max_examples=60, deadline=None)
@given(
    streams=st.lists(
        st.tuples(
            st.sampled_from([0x1B, 0x24, 0x0F, 0x06, 0x11]), st.integers(0, 0x1FFF), st.binary(max_size=12)
        ),
        max_size=5,
    ),
    payloads=st.lists(st.tuples(st.binary(max_size=400), st.booleans(), st.booleans()), max_size=6),
)
def test_arbitrary_contents_under_valid_tables_raise_nothing(
    streams: list[tuple[int, int, bytes]], payloads: list[tuple[bytes, bool, bool]]
) -> None:
    writer, demuxer = Writer(), TsDemuxer(max_pes_size=900)
    entries = [ElementaryStream(kind, pid, body) for kind, pid, body in streams] + [OPUS]
    demuxer.feed(writer.tables(*entries), 1)
    for body, sized, is_raw in payloads:
        for _, pid, _ in streams:
            if pid != PMT:
                demuxer.feed(writer.pes(pid, body, 900, sized=sized), 1)
                if is_raw:
                    demuxer.feed(writer.packet(pid, body[:184], start=sized), 1)
        demuxer.feed(writer.pes(AUDIO, body, 900, stream_id=0xBD, sized=sized), 1)
    demuxer.flush()


def test_finds_its_way_back_after_garbage(video: list[Coded]) -> None:
    data = ffmpeg_ts(video)
    cut = len(data) // 188 // 2 * 188
    demuxer = TsDemuxer()
    units = units_of(b"noise" * 30 + data[:cut] + b"\x00\x47\x13" * 77 + data[cut:], demuxer)
    whole = units_of(data)
    assert demuxer.statistics.skipped_bytes >= 150 + 231 - 188
    assert len(units) >= len(whole) - 2
    assert set(units) <= {*whole, *(replace(unit, discontinuity=True) for unit in whole)}


def test_segments_in_a_row_are_no_continuity_errors(video: list[Coded]) -> None:
    first, second = video[:20], video[20:]
    assert second[0].key
    segments = [ffmpeg_ts(part) for part in (first, second)]
    flushed, joined = TsDemuxer(), TsDemuxer()
    apart = [unit for segment in segments for unit in units_of(segment, flushed)]
    together = units_of(segments[0] + segments[1], joined)
    assert [unit.pts for unit in apart] == [unit.pts for unit in together] == [unit.pts for unit in video]
    for demuxer in (flushed, joined):
        assert demuxer.statistics.continuity_errors == 0
    assert not any(unit.discontinuity for unit in apart + together)


def test_a_lost_packet_costs_its_unit_and_marks_the_next() -> None:
    writer, demuxer = Writer(), TsDemuxer()
    data = writer.tables(H264) + writer.pes(VIDEO, picture(300), 3000)
    broken = writer.pes(VIDEO, picture(600, seed=1), 6000)
    data += broken[:188] + broken[376:]
    data += writer.pes(VIDEO, picture(300, key=False), 9000)
    units = units_of(data, demuxer)
    assert [(unit.pts, unit.discontinuity) for unit in units] == [(3000, False), (9000, True)]
    assert demuxer.statistics.continuity_errors == 1


def test_a_repeated_packet_is_taken_once() -> None:
    writer, demuxer = Writer(), TsDemuxer()
    packets = writer.pes(VIDEO, picture(500), 3000)
    doubled = b"".join(packets[at : at + 188] * 2 for at in range(0, len(packets), 188))
    units = units_of(writer.tables(H264) + doubled, demuxer)
    assert [unit.data for unit in units] == [picture(500)]
    assert demuxer.statistics.duplicates == len(packets) // 188
    assert demuxer.statistics.continuity_errors == 0


def test_a_signalled_discontinuity_is_no_error() -> None:
    writer, demuxer = Writer(), TsDemuxer()
    data = writer.tables(H264) + writer.pes(VIDEO, picture(300), 3000)
    writer.counters[VIDEO] = 11
    pes = pes_packet(picture(60), 6000)
    data += writer.packet(VIDEO, pes, start=True, field=b"\x80".ljust(184 - len(pes) - 1, b"\xff"))
    units = units_of(data, demuxer)
    assert [unit.pts for unit in units] == [3000, 6000]
    assert demuxer.statistics.continuity_errors == 0


def test_times_run_on_where_33_bits_wrap_round() -> None:
    writer = Writer()
    times = [(1 << 33) - 4500 + index * 3000 for index in range(5)]
    data = writer.tables(H264) + b"".join(
        writer.pes(VIDEO, picture(50, seed=t), t % (1 << 33)) for t in times
    )
    assert [unit.pts for unit in units_of(data)] == times
    back = writer.tables(H264) + b"".join(writer.pes(VIDEO, picture(50), t % (1 << 33)) for t in times[::-1])
    assert [b - a for a, b in pairwise(unit.pts for unit in units_of(back))] == [-3000] * 4


def test_b_frames_keep_both_their_times() -> None:
    video = encoded_video(20, options={"preset": "ultrafast", "bf": "2", "b-adapt": "0"})
    units = units_of(ffmpeg_ts(video))
    assert [(unit.pts, unit.dts) for unit in units] == [(unit.pts, unit.dts) for unit in video]
    assert any(unit.pts != unit.dts for unit in units)


def test_packets_without_a_time_follow_the_last_one_and_wait_for_the_first() -> None:
    writer = Writer()
    data = writer.tables(H264)
    for index, pts in enumerate((None, 9000, 12_000, None, 18_000)):
        pes = pes_packet(picture(60, seed=index), pts)
        data += writer.packet(VIDEO, pes, start=True)
    assert [unit.pts for unit in units_of(data)] == [9000, 12_000, 15_000, 18_000]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_buffer_is_read(kind: type, with_aac: bytes) -> None:
    demuxer = TsDemuxer()
    units = demuxer.feed(kind(with_aac[:1000]), 1) + demuxer.feed(kind(with_aac[1000:]), 1) + demuxer.flush()
    assert units == units_of(with_aac)


def test_key_pictures_are_known_with_and_without_the_random_access_flag(video: list[Coded]) -> None:
    assert [unit.key for unit in units_of(ffmpeg_ts(video))] == [unit.key for unit in video]
    writer = Writer()
    data = writer.tables(H264)
    for index, key in enumerate((True, False, False, True)):
        data += writer.pes(VIDEO, picture(40, key), 3000 * index)
    assert [unit.key for unit in units_of(data)] == [True, False, False, True]
    pes = pes_packet(picture(40, key=False), 3000)
    flagged = writer.packet(VIDEO, pes, start=True, field=b"\x40".ljust(184 - len(pes) - 1, b"\xff"))
    assert [unit.key for unit in units_of(writer.tables(H264) + flagged)] == [True]


def test_several_pictures_in_one_pes_packet_come_apart() -> None:
    writer = Writer()
    pictures = [picture(100 + n, key=n == 0, seed=n) for n in range(3)]
    data = writer.tables(H264) + writer.pes(VIDEO, b"".join(pictures[:1]), 0)
    data += writer.pes(VIDEO, b"".join(pictures[1:]), 3000)
    units = units_of(data)
    assert [unit.data for unit in units] == pictures
    assert [unit.pts for unit in units] == [0, 3000, 6000]


def test_a_muxer_that_stuffs_in_mid_picture_is_found_out_and_then_read_right() -> None:
    writer, demuxer = Writer(), TsDemuxer()
    data = writer.tables(H264)
    pictures = [picture(520, key=n == 0, seed=n) for n in range(4)]
    for index, body in enumerate(pictures):
        pes = pes_packet(body, 3000 * index)
        chunks = [pes[:180], pes[180:360], pes[360:]]
        chunks = [*chunks[:2], *(chunks[2][at : at + 184] for at in range(0, len(chunks[2]), 184))]
        data += b"".join(writer.packet(VIDEO, chunk, start=not n) for n, chunk in enumerate(chunks))
    units = units_of(data, demuxer)
    assert demuxer.statistics.wrongly_ended == 1
    assert [unit.data for unit in units[-3:]] == pictures[1:]
    assert [unit.discontinuity for unit in units[-3:]] == [True, False, False]


def test_a_packet_over_the_limit_is_dropped_and_memory_stays_bounded() -> None:
    writer, demuxer = Writer(), TsDemuxer(max_pes_size=4000)
    data = writer.tables(H264) + writer.pes(VIDEO, picture(50_000), 0) + writer.pes(VIDEO, picture(300), 3000)
    units = units_of(data, demuxer)
    assert [(unit.pts, unit.discontinuity) for unit in units] == [(3000, True)]
    assert demuxer.statistics.oversized == 1


def test_scrambled_packets_are_counted_and_left_out() -> None:
    writer, demuxer = Writer(), TsDemuxer()
    data = writer.tables(H264)
    data += writer.packet(VIDEO, pes_packet(picture(60), 0), start=True, control=0x80)
    assert units_of(data, demuxer) == []
    assert demuxer.statistics.scrambled == 1


def test_a_new_program_map_in_mid_stream_is_followed() -> None:
    writer, demuxer = Writer(), TsDemuxer()
    data = writer.tables(H264) + writer.pes(VIDEO, picture(300), 0)
    data += writer.tables(ElementaryStream(0x1B, 0x300), OPUS) + writer.pes(0x300, picture(300, seed=2), 3000)
    data += writer.pes(AUDIO, b"\x7f\xe0\x05" + b"\x78abcd", 3000, stream_id=0xBD, sized=True)
    units = units_of(data, demuxer)
    assert [(unit.pid, unit.codec) for unit in units] == [(VIDEO, "h264"), (0x300, "h264"), (AUDIO, "opus")]
    assert [unit.discontinuity for unit in units] == [False, True, False]
    assert [track.pid for track in demuxer.tracks] == [0x300, AUDIO]


def test_a_track_that_changes_its_codec_gets_the_new_name() -> None:
    writer = Writer()
    data = writer.tables(H264) + writer.pes(VIDEO, picture(300), 0)
    data += writer.tables(ElementaryStream(0x24, VIDEO)) + writer.pes(VIDEO, b"\x00\x00\x01\x26\x01xyz", 3000)
    assert [(unit.codec, unit.key) for unit in units_of(data)] == [("h264", True), ("hevc", True)]


def test_of_several_programs_and_tracks_the_first_is_read() -> None:
    writer, demuxer = Writer(), TsDemuxer()
    pat = build_pat([(7, PMT), (8, 0x1100)])
    first = build_pmt(7, VIDEO, [ElementaryStream(0x11, 0x99), H264, ElementaryStream(0x1B, 0x200)])
    second = build_pmt(8, 0x400, [ElementaryStream(0x1B, 0x400)])
    data = b""
    for pid, section in ((0, pat), (PMT, first), (0x1100, second)):
        data += writer.packet(pid, (b"\x00" + section).ljust(184, b"\xff"), start=True)
    for pid in (0x200, 0x400, VIDEO):
        data += writer.pes(pid, picture(300, seed=pid), 0)
    assert [unit.pid for unit in units_of(data, demuxer)] == [VIDEO]
    assert [(t.codec, t.supported, t.selected) for t in demuxer.tracks] == [
        ("aac_latm", False, False),
        ("h264", True, True),
        ("h264", True, False),
    ]


def test_a_table_longer_than_a_packet_is_put_together() -> None:
    writer, demuxer = Writer(), TsDemuxer()
    others = [ElementaryStream(0x06, 0x500 + n, b"\x05\x04TEST" * 4) for n in range(12)]
    section = b"\x00" + build_pmt(1, VIDEO, [*others, H264])
    data = writer.packet(0, (b"\x00" + build_pat([(1, PMT)])).ljust(184, b"\xff"), start=True)
    for at in range(0, len(section), 184):
        data += writer.packet(PMT, section[at : at + 184].ljust(184, b"\xff"), start=not at)
    assert len(units_of(data + writer.pes(VIDEO, picture(300), 0), demuxer)) == 1
    assert len(demuxer.tracks) == 13


def test_opus_packets_come_apart_without_their_headers() -> None:
    # Configuration 15 (20 ms), then 2.5 ms: sizes 300 and 40, start and end trim and an extension between.
    first, second = b"\x78" + b"a" * 299, b"\x80" + b"b" * 39
    payload = b"\x7f\xe0\xff\x2d" + first
    payload += b"\x7f\xfc\x28" + b"\x00\x10" + b"\x00\x20" + b"\x02xx" + second
    payload += b"\x7f\xe0\xff\x2d" + first
    writer = Writer()
    data = writer.tables(OPUS) + writer.pes(AUDIO, payload, 90_000, stream_id=0xBD, sized=True)
    units = units_of(data)
    assert [unit.data for unit in units] == [first, second, first]
    assert [unit.pts for unit in units] == [90_000, 91_800, 92_025]
    assert {unit.channels for unit in units} == {1}


def test_adts_frames_come_apart_also_across_pes_packets() -> None:
    frames = [adts(bytes([n]) * (90 + n), 44_100) for n in range(1, 7)]
    stream = b"".join(frames)
    writer = Writer()
    data = writer.tables(ElementaryStream(0x0F, AUDIO))
    cut = len(frames[0]) + len(frames[1]) + 40
    data += writer.pes(AUDIO, stream[:cut], 90_000, stream_id=0xC0, sized=True)
    third = 90_000 + round(3 * 1024 * 90_000 / 44_100)
    data += writer.pes(AUDIO, stream[cut:], third, stream_id=0xC0, sized=True)
    units = units_of(data)
    assert [unit.data for unit in units] == frames
    assert [unit.pts for unit in units] == [90_000 + round(n * 1024 * 90_000 / 44_100) for n in range(6)]


def test_a_truncated_segment_gives_what_is_whole(with_aac: bytes) -> None:
    demuxer = TsDemuxer()
    whole = units_of(with_aac)
    units = units_of(with_aac[: len(with_aac) * 2 // 3 // 188 * 188 + 100], demuxer)
    assert 10 < len(units) < len(whole)
    assert set(units) <= set(whole)
    assert demuxer.statistics.skipped_bytes == 100


def test_hevc_is_read() -> None:
    options = {"preset": "ultrafast", "x265-params": "bframes=0:log-level=none:keyint=10"}
    video = encoded_video(12, codec="libx265", options=options)
    units = units_of(ffmpeg_ts(video, video_codec="hevc"))
    assert [(unit.codec, unit.pts, unit.key) for unit in units] == [("hevc", u.pts, u.key) for u in video]


def test_sound_that_joins_late_is_read(video: list[Coded]) -> None:
    silent = ffmpeg_ts(video[:20])
    both = ffmpeg_ts(video[20:], encoded_audio(0.5, start=START + 60_000))
    demuxer = TsDemuxer()
    units = units_of(silent, demuxer) + units_of(both, demuxer)
    assert len(video_of(units)) == 40
    assert len(audio_of(units)) > 20


def test_sound_alone_is_read() -> None:
    audio = encoded_audio(0.5, "libopus")
    units = units_of(ffmpeg_ts(audio=audio, audio_codec="opus"))
    assert [(unit.pts, unit.data) for unit in units] == [(unit.pts, unit.data) for unit in audio]

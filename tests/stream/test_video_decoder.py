from __future__ import annotations

import io
import random
from dataclasses import replace
from itertools import pairwise

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from codec_media import (
    START,
    ZEROLATENCY,
    Coded,
    access_units,
    encoded_video,
    ffmpeg_ts,
    gradient,
    solid,
    units_of,
    without_vui,
)

from stream.codecs.video_decoder import MAX_WITHHELD, VideoDecoder
from stream.errors import CodecError
from stream.frames import VideoFrame
from stream.mpegts import AccessUnit, TsDemuxer
from stream.units import TS_TIME_BASE

B_FRAMES = {"preset": "ultrafast", "bf": "2", "b-adapt": "0"}


def decoded(units: list[AccessUnit], codec: str = "h264") -> list[VideoFrame]:
    decoder = VideoDecoder(codec, hardware="off")
    return [frame for unit in units for frame in decoder.decode(unit)] + decoder.flush()


def error_of(frame: VideoFrame, index: int) -> float:
    """Mean difference to the picture that went in."""
    expected = gradient(index, frame.width, frame.height).astype(int)
    return float(np.abs(frame.picture.rgb().astype(int) - expected).mean())


LOW_DELAY = {
    "x264 zerolatency": ("libx264", ZEROLATENCY),
    "x264 without B-frames": ("libx264", {"preset": "superfast", "bf": "0"}),
    "x264 baseline": ("libx264", {"preset": "superfast", "profile": "baseline"}),
    "x265 without B-frames": ("libx265", {"preset": "ultrafast", "x265-params": "bframes=0:log-level=none"}),
}


@pytest.mark.parametrize("name", LOW_DELAY)
def test_a_picture_comes_out_of_the_call_that_took_its_unit(name: str) -> None:
    codec, options = LOW_DELAY[name]
    kind = "hevc" if codec == "libx265" else "h264"
    decoder = VideoDecoder(kind, hardware="off")
    for unit in access_units(encoded_video(25, codec=codec, options=options), kind):
        assert [frame.timestamp for frame in decoder.decode(unit)] == [unit.pts]


@pytest.mark.parametrize("options", [ZEROLATENCY, {"preset": "superfast", "bf": "0"}])
def test_a_stream_that_says_nothing_of_its_order_is_not_held_back(options: dict[str, str]) -> None:
    units = access_units(encoded_video(25, options=options))
    stripped = [replace(unit, data=without_vui(unit.data)) for unit in units]
    assert stripped[0].data != units[0].data
    decoder = VideoDecoder("h264", hardware="off")
    for unit in stripped:
        assert [frame.timestamp for frame in decoder.decode(unit)] == [unit.pts]


def test_from_the_last_packet_to_the_picture_in_one_go() -> None:
    """Demuxer and decoder together: each picture is there as soon as its bytes are."""
    video = encoded_video(20)
    decoder, demuxer, fed = VideoDecoder("h264", hardware="off"), TsDemuxer(), []
    data = ffmpeg_ts(video)
    frames: list[VideoFrame] = []
    for at in range(0, len(data), 188):
        for unit in demuxer.feed(data[at : at + 188], at):
            frames += decoder.decode(unit)
            fed.append((at, unit.pts))
    last = [frame.timeline.received for frame in frames]
    assert [pts for _, pts in fed] == [frame.timestamp for frame in frames]
    assert last == [at for at, _ in fed]


@pytest.mark.parametrize("vui", [True, False])
def test_b_frames_come_in_order_each_with_its_own_times(vui: bool) -> None:
    units = access_units(encoded_video(30, options=B_FRAMES, gop=12))
    if not vui:
        units = [replace(unit, data=without_vui(unit.data)) for unit in units]
    frames = decoded(units)
    times = [frame.timestamp for frame in frames]
    assert times == sorted(times)
    # Without its parameters the decoder learns the order from the first pictures, and may lose one of them.
    assert len(times) == 30 if vui else len(times) >= 28
    assert [frame.timeline.received for frame in frames] == times
    assert all(error_of(frame, (frame.timestamp - START) // 3000) < 6 for frame in frames)


def test_times_are_the_sources_own_and_stamped() -> None:
    unit = replace(access_units(encoded_video(1))[0], pts=987_654_321, dts=987_654_321, received=17)
    (frame,) = decoded([unit])
    assert (frame.timestamp, frame.time_base) == (987_654_321, TS_TIME_BASE)
    assert frame.timeline.received == 17
    assert frame.timeline.decoded > 17
    assert frame.timeline.taken == 0


def test_nothing_comes_before_the_first_key_picture() -> None:
    decoder = VideoDecoder("h264", hardware="off")
    units = access_units(encoded_video(30, gop=10))[4:]
    frames = [frame for unit in units for frame in decoder.decode(unit)]
    assert [frame.timestamp for frame in frames] == [unit.pts for unit in units[6:]]
    assert (decoder.skipped, decoder.errors) == (6, 0)
    assert error_of(frames[0], 10) < 6


def test_a_stream_without_idr_begins_where_it_has_recovered() -> None:
    options = {**ZEROLATENCY, "intra-refresh": "1"}
    units = access_units(encoded_video(60, options=options, gop=10))
    assert sum(unit.key for unit in units) > 2
    frames = decoded([replace(unit, key=False) for unit in units[3:]])
    assert 20 < len(frames) < 57
    assert all(error_of(frame, (frame.timestamp - START) // 3000) < 8 for frame in frames)


def damaged(unit: AccessUnit, seed: int) -> AccessUnit:
    rng, data = random.Random(seed), bytearray(unit.data)
    for _ in range(12):
        data[rng.randrange(len(data) // 4, len(data))] ^= rng.randrange(1, 256)
    return replace(unit, data=bytes(data))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["flipped", "cut", "noise", "empty", "key flipped"])
def test_damage_is_counted_and_passed_over(kind: str, seed: int) -> None:
    units = access_units(encoded_video(40, gop=10))
    at = 20 if kind == "key flipped" else 13
    unit = units[at]
    if kind in ("flipped", "key flipped"):
        units[at] = damaged(unit, seed)
    elif kind == "cut":
        units[at] = replace(unit, data=unit.data[: len(unit.data) // 2])
    else:
        units[at] = replace(unit, data=b"" if kind == "empty" else random.Random(seed).randbytes(700))
    decoder = VideoDecoder("h264", hardware="off")
    frames = [frame for each in units for frame in decoder.decode(each)]
    shown = {(frame.timestamp - START) // 3000: frame for frame in frames}
    # Before the damage and from the next key picture on everything is there and right.
    following = 30 if kind == "key flipped" else 20
    assert set(shown) >= {*range(at), *range(following, 40)}
    if "flipped" not in kind:
        # Flipped bits may decode to something; these cannot.
        assert decoder.errors == 1
        assert set(shown) == {*range(at), *range(following, 40)}
    assert all(
        error_of(frame, index) < 6 for index, frame in shown.items() if index not in range(at, following)
    )


def test_after_a_loss_nothing_shows_until_a_key_picture() -> None:
    units = access_units(encoded_video(40, gop=10))
    units[13] = replace(units[13], discontinuity=True)
    units[20] = replace(units[20], discontinuity=True)
    decoder = VideoDecoder("h264", hardware="off")
    frames = [
        (f.timestamp - START) // 3000 for unit in [*units[:12], *units[13:]] for f in decoder.decode(unit)
    ]
    assert frames == [*range(12), *range(20, 40)]
    assert decoder.withheld == 7


def test_without_key_pictures_damage_shows_in_the_end() -> None:
    units = access_units(encoded_video(100, gop=1000, width=64, height=48))
    units[10] = replace(units[10], discontinuity=True)
    frames = decoded(units[:9] + units[10:])
    times = [frame.timestamp for frame in frames]
    assert max(b - a for a, b in pairwise(times)) == MAX_WITHHELD + 6000
    assert times[-1] == units[-1].pts


def test_size_changes_in_mid_stream() -> None:
    units = access_units(encoded_video(10))
    units += access_units(encoded_video(10, 320, 180, start=START + 30_000))
    sizes = [(frame.width, frame.height) for frame in decoded(units)]
    assert sizes == [(160, 96)] * 10 + [(320, 180)] * 10


def test_odd_sizes_are_decoded() -> None:
    options = {"preset": "ultrafast", "x265-params": "bframes=0:log-level=none"}
    with_444 = access_units(
        encoded_video(3, 161, 97, codec="libx265", pix_fmt="yuv444p", options=options), "hevc"
    )
    frames = decoded(with_444, "hevc")
    assert [(frame.width, frame.height) for frame in frames] == [(161, 97)] * 3
    assert [plane.shape for plane in frames[2].picture.planes] == [(97, 161), (49, 81), (49, 81)]
    assert error_of(frames[2], 2) < 8


@pytest.mark.parametrize(
    ("pix_fmt", "options"),
    [
        ("yuv420p10le", ZEROLATENCY),
        ("yuv444p", ZEROLATENCY),
        ("yuv422p", ZEROLATENCY),
        ("yuvj420p", ZEROLATENCY),
        ("gray", ZEROLATENCY),
        ("nv12", ZEROLATENCY),
    ],
)
def test_other_pixel_formats_become_eight_bit_420(pix_fmt: str, options: dict[str, str]) -> None:
    frames = decoded(access_units(encoded_video(6, pix_fmt=pix_fmt, options=options)))
    assert len(frames) == 6
    for index, frame in enumerate(frames):
        picture = frame.picture
        assert (picture.format, picture.full_range) == ("yuv420p", pix_fmt == "yuvj420p")
        assert [plane.dtype for plane in picture.planes] == [np.uint8] * 3
        if pix_fmt != "gray":
            assert error_of(frame, index) < 8


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("tag", "matrix"), [(1, "bt709"), (6, "bt601"), (5, "bt601"), (9, "bt2020")])
def test_colour_tags_of_the_stream_hold(tag: int, matrix: str, full: bool) -> None:
    frames = [solid(110, 90, 170, 64, 48) for _ in range(2)]
    video = encoded_video(2, 64, 48, frames=frames, colorspace=tag, color_range=2 if full else 1)
    picture = decoded(access_units(video))[-1].picture
    assert (picture.matrix, picture.full_range) == (matrix, full)
    assert [int(plane[10, 10]) for plane in picture.planes] == [110, 90, 170]


def oriented(video: list[Coded], options: str) -> list[AccessUnit]:
    """The stream with a display orientation SEI message."""
    with av.open(io.BytesIO(ffmpeg_ts(video)), format="mpegts") as container:
        stream = container.streams.video[0]
        turn = BitStreamFilterContext(f"h264_metadata=display_orientation=insert:{options}", stream)
        packets = [out for packet in container.demux(stream) if packet.size for out in turn.filter(packet)]
        return [
            AccessUnit(256, "h264", "video", bytes(p), p.pts, p.dts, p.pts, p.is_keyframe) for p in packets
        ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("rotate=90", lambda rgb: np.rot90(rgb, 1)),
        ("rotate=180", lambda rgb: np.rot90(rgb, 2)),
        ("rotate=-90", lambda rgb: np.rot90(rgb, 3)),
        ("flip=horizontal", lambda rgb: rgb[:, ::-1]),
        ("flip=vertical", lambda rgb: rgb[::-1]),
    ],
)
def test_rotation_that_the_stream_asks_for_is_done(options: str, expected: object) -> None:
    assert callable(expected)
    frames = decoded(oriented(encoded_video(3), options))
    wanted = expected(gradient(2, 160, 96))
    picture = frames[-1].picture
    assert (picture.width, picture.height) == (wanted.shape[1], wanted.shape[0])
    assert np.abs(picture.rgb().astype(int) - wanted).mean() < 6


def test_reencoding_does_not_inherit_the_picture_type() -> None:
    frame = decoded(access_units(encoded_video(1)))[0]
    assert int(frame.picture.av.pict_type) == 0  # type: ignore[attr-defined]


def test_flushing_gives_what_is_held_and_begins_anew() -> None:
    units = access_units(encoded_video(12, options=B_FRAMES, gop=12))
    decoder = VideoDecoder("h264", hardware="off")
    for _ in range(2):
        before = [frame for unit in units for frame in decoder.decode(unit)]
        assert len(before) < 12
        assert len(before) + len(decoder.flush()) == 12
    assert decoder.flush() == []
    assert decoder.decode(units[3]) == []


def test_an_unknown_codec_cannot_be_opened() -> None:
    with pytest.raises(CodecError, match="nonsense"):
        VideoDecoder("nonsense", hardware="off")
    with pytest.raises(CodecError, match="aac"):
        VideoDecoder("aac", hardware="off")


def test_a_stream_through_the_demuxer_is_what_went_in() -> None:
    frames = decoded(units_of(ffmpeg_ts(encoded_video(15))))
    assert len(frames) == 15
    assert all(error_of(frame, index) < 6 for index, frame in enumerate(frames))

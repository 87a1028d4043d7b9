from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
from codec_media import gradient, h273_yuv, solid

from stream.codecs.convert import Converter
from stream.codecs.picture import AvPicture
from stream.codecs.video_encoder import VideoEncoder, VideoEncoderSettings
from stream.errors import CodecError, InvalidInput
from stream.frames import Matrix, Picture, Timeline
from stream.units import TS_TIME_BASE, EncodedUnit

SOFTWARE = VideoEncoderSettings(hardware="off", preset="ultrafast", bitrate=2_000_000)


def pictures(width: int = 160, height: int = 96) -> Iterator[Picture]:
    for index in itertools.count():
        yield Picture.from_rgb(gradient(index, width, height))


def texture(count: int, width: int = 256, height: int = 192) -> list[Picture]:
    """Moving pictures that are hard to encode."""
    rng = np.random.default_rng(1)
    base = rng.integers(0, 255, (height * 2, width * 2)).astype(np.int32)
    base = (base + np.roll(base, 1, 0) + np.roll(base, 1, 1) + np.roll(base, 2, 1)) // 4
    grey = np.full((height // 2, width // 2), 128, np.uint8)
    result = []
    for index in range(count):
        y, x = index * 5 % height, index * 3 % width
        plane = np.ascontiguousarray(base[y : y + height, x : x + width].astype(np.uint8))
        result.append(Picture("yuv420p", width, height, (plane, grey, grey)))
    return result


def nal_types(data: bytes) -> list[int]:
    parts = data.replace(b"\x00\x00\x00\x01", b"\x00\x00\x01").split(b"\x00\x00\x01")
    return [part[0] & 0x1F for part in parts if part]


def decode(units: list[EncodedUnit]) -> list[av.VideoFrame]:
    context = av.CodecContext.create("h264", "r")
    assert isinstance(context, av.VideoCodecContext)
    context.thread_count = 1
    frames = []
    for unit in units:
        packet = av.Packet(unit.data)
        packet.pts = unit.pts
        frames += context.decode(packet)
    return frames + context.decode(None)


@pytest.mark.parametrize("preset", ["ultrafast", "superfast", "medium"])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_each_unit_comes_out_of_the_call_that_took_its_picture(preset: str, threads: int) -> None:
    settings = VideoEncoderSettings(hardware="off", preset=preset, threads=threads)
    encoder = VideoEncoder(settings, 160, 96)
    for index, picture in zip(range(8), pictures(), strict=False):
        units = encoder.encode(picture, 5000 + index * 3000)
        assert [unit.pts for unit in units] == [5000 + index * 3000]
    assert encoder.flush() == []


def test_key_pictures_follow_the_clock_of_the_pictures_not_their_number() -> None:
    encoder = VideoEncoder(SOFTWARE, 160, 96)
    keys, pts = [], 0
    for step, picture in zip(([3000] * 70 + [9000] * 70), pictures(), strict=False):
        keys += [unit.pts for unit in encoder.encode(picture, pts) if unit.key]
        pts += step
    assert keys[:2] == [0, 180_000]
    assert np.diff(keys).min() >= 180_000
    assert np.diff(keys).max() <= 180_000 + 9000


def test_a_key_picture_comes_on_demand_and_starts_the_interval_anew() -> None:
    encoder = VideoEncoder(SOFTWARE, 160, 96)
    units = [
        unit
        for index, picture in zip(range(100), pictures(), strict=False)
        for unit in encoder.encode(picture, index * 3000, key=index == 31)
    ]
    assert [unit.pts // 3000 for unit in units if unit.key] == [0, 31, 91]


def test_key_pictures_are_idr_and_carry_their_parameter_sets() -> None:
    encoder = VideoEncoder(SOFTWARE, 160, 96)
    assert encoder.parameters.extradata == b""
    for index, picture in zip(range(12), pictures(), strict=False):
        (unit,) = encoder.encode(picture, index * 3000, key=index % 5 == 0)
        kinds = nal_types(unit.data)
        assert unit.key == (index % 5 == 0)
        if unit.key:
            assert (7 in kinds, 8 in kinds, 5 in kinds) == (True, True, True)
            assert kinds.index(7) < kinds.index(8) < kinds.index(5)
        else:
            assert set(kinds) <= {1, 6, 9}
    assert nal_types(encoder.parameters.extradata) == [7, 8]
    assert (encoder.parameters.width, encoder.parameters.height) == (160, 96)


def test_timestamps_must_grow() -> None:
    encoder = VideoEncoder(SOFTWARE, 160, 96)
    source = pictures()
    encoder.encode(next(source), 3000)
    for pts in (3000, 2999):
        with pytest.raises(ValueError, match="must grow"):
            encoder.encode(next(source), pts)
    assert encoder.encode(next(source), 3001)[0].pts == 3001


def test_marks_and_times_travel_with_the_unit() -> None:
    encoder = VideoEncoder(SOFTWARE, 160, 96)
    source, timeline = pictures(), Timeline(received=5, decoded=6)
    (first,) = encoder.encode(next(source), 0, timeline=timeline)
    (second,) = encoder.encode(next(source), 4500, repeat=True, overlay=True)
    assert (first.timeline.received, first.timeline.decoded) == (5, 6)
    assert first.timeline.encoded > 0
    assert timeline.encoded == 0
    assert (first.repeat, first.overlay) == (False, False)
    assert (second.repeat, second.overlay, second.duration) == (True, True, 4500)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("matrix", "tag"), [("bt601", 6), ("bt709", 1), ("bt2020", 9)])
def test_colours_are_declared_as_they_are(matrix: Matrix, tag: int, full: bool) -> None:
    encoder = VideoEncoder(SOFTWARE, 64, 48, matrix=matrix, full_range=full)
    colour = (200, 60, 40)
    units = [
        unit
        for index in range(2)
        for unit in encoder.encode(Picture.from_rgb(np.full((48, 64, 3), colour, np.uint8)), index * 3000)
    ]
    frame = decode(units)[-1]
    assert (int(frame.colorspace), int(frame.color_range)) == (tag, 2 if full else 1)
    values = [int(np.frombuffer(plane, np.uint8)[plane.line_size * 10 + 10]) for plane in frame.planes]  # type: ignore[call-overload]
    assert np.abs(np.array(values) - h273_yuv(colour, matrix, full)).max() <= 2
    picture = Converter().from_av(frame)
    assert np.abs(picture.rgb()[20, 30].astype(int) - colour).max() <= 5


def test_pictures_of_other_colours_are_converted() -> None:
    encoder = VideoEncoder(SOFTWARE, 64, 48, matrix="bt709")
    colour = (180, 70, 110)
    y, u, v = (int(value) for value in h273_yuv(colour, "bt601", True).round())
    units = encoder.encode(AvPicture(solid(y, u, v), "bt601", True), 0)
    picture = Converter().from_av(decode(units)[0])
    assert (picture.matrix, picture.full_range) == ("bt709", False)
    assert np.abs(picture.rgb()[20, 30].astype(int) - colour).max() <= 6


@pytest.mark.parametrize("size", [(161, 97), (160, 97), (161, 96), (33, 17)])
def test_odd_sizes_lose_their_last_row_and_column_and_no_more(size: tuple[int, int]) -> None:
    encoder = VideoEncoder(SOFTWARE, *size)
    even = (size[0] // 2 * 2, size[1] // 2 * 2)
    assert (encoder.width, encoder.height) == size
    assert (encoder.parameters.width, encoder.parameters.height) == even
    source = pictures(*size)
    picture = next(source)
    yuv = Converter().to_yuv420p(picture, encoder.matrix, False)
    units = encoder.encode(picture, 0) + encoder.encode(yuv, 3000)
    for frame in decode(units):
        assert (frame.width, frame.height) == even
        rgb = Converter().from_av(frame).rgb().astype(int)
        assert np.abs(rgb - picture.rgb()[: even[1], : even[0]]).mean() < 8


def test_pictures_of_another_size_are_fitted_in() -> None:
    encoder = VideoEncoder(SOFTWARE, 128, 128)
    units = encoder.encode(Picture.from_rgb(np.full((90, 160, 3), 255, np.uint8)), 0)
    rgb = Converter().from_av(decode(units)[0]).rgb()
    assert rgb.shape == (128, 128, 3)
    assert rgb[64].min() > 240
    assert rgb[:20].max() < 20


def test_a_picture_can_be_encoded_twice_at_once_and_stays_as_it_is() -> None:
    frame = solid(120, 90, 160, 64, 48)
    frame.pts = 77
    picture = AvPicture(frame, "bt601", False)
    encoders = [VideoEncoder(SOFTWARE, 64, 48, matrix="bt601") for _ in range(2)]
    for index in range(3):
        for number, encoder in enumerate(encoders):
            assert encoder.encode(picture, index * 3000 + number)[0].pts == index * 3000 + number
    assert (picture.av is frame, frame.pts, int(frame.pict_type)) == (True, 77, 0)


def test_an_encoder_waits_for_another_that_reads_the_same_picture() -> None:
    picture = AvPicture(solid(120, 90, 160, 64, 48), "bt601", False)
    encoder = VideoEncoder(SOFTWARE, 64, 48, matrix="bt601")
    with ThreadPoolExecutor(1) as thread:
        with picture.as_input(5, TS_TIME_BASE, key=False) as frame:
            encoded = thread.submit(encoder.encode, picture, 9000)
            with pytest.raises(TimeoutError):
                encoded.result(0.05)
            assert frame.pts == 5
        assert [unit.pts for unit in encoded.result(5)] == [9000]


def rate_of(units: list[EncodedUnit], since: int, until: int) -> float:
    """bits/s of the units between two times in seconds."""
    size = sum(len(unit.data) for unit in units if since * 90_000 <= unit.pts < until * 90_000)
    return size * 8 / (until - since)


@pytest.mark.parametrize("fps", [10, 30, 60])
def test_the_bitrate_follows_settings_at_any_frame_rate(fps: int) -> None:
    """The first interval runs at the rate that was guessed; after it the measured one holds."""
    settings = VideoEncoderSettings(hardware="off", preset="ultrafast", bitrate=600_000, key_interval=1)
    encoder = VideoEncoder(settings, 256, 192)
    units = []
    for index, picture in enumerate(texture(8 * fps)):
        if index == 4 * fps:
            encoder.set_bitrate(250_000)
        units += encoder.encode(picture, index * 90_000 // fps)
    assert rate_of(units, 1, 4) == pytest.approx(600_000, rel=0.35)
    assert rate_of(units, 5, 8) == pytest.approx(250_000, rel=0.35)


def test_a_lower_bitrate_needs_no_key_picture_and_a_higher_one_waits_for_the_next() -> None:
    settings = VideoEncoderSettings(hardware="off", preset="ultrafast", bitrate=500_000)
    encoder = VideoEncoder(settings, 256, 192)
    units = []
    for index, picture in enumerate(texture(300)):
        if index == 30:
            encoder.set_bitrate(200_000)
        if index == 90:
            encoder.set_bitrate(1_000_000)
        units += encoder.encode(picture, index * 3000)
    assert encoder.bitrate == 1_000_000
    assert [unit.pts // 3000 for unit in units if unit.key] == [0, 60, 120, 180, 240]
    assert rate_of(units, 2, 3) < 300_000
    assert rate_of(units, 6, 10) == pytest.approx(1_000_000, rel=0.35)
    assert len(decode(units)) == 300


@pytest.mark.parametrize("fps", [10, 30])
def test_of_a_quality_no_more_bits_are_spent_than_it_takes_and_never_more_than_the_bitrate(fps: int) -> None:
    settings = VideoEncoderSettings(
        hardware="off", preset="ultrafast", bitrate=400_000, key_interval=1, quality=23
    )
    encoder, still = VideoEncoder(settings, 256, 192), next(pictures(256, 192))
    units = []
    for index, picture in enumerate(texture(7 * fps)):
        pts = index * 90_000 // fps
        units += encoder.encode(picture if index < 4 * fps else still, pts)
    # Texture takes more than the bitrate and gets just that; a still picture takes next to nothing.
    assert rate_of(units, 1, 4) == pytest.approx(400_000, rel=0.35)
    assert rate_of(units, 5, 7) < 150_000
    assert len(decode(units)) == 7 * fps


def test_a_flushed_encoder_begins_anew_with_a_key_picture() -> None:
    encoder = VideoEncoder(SOFTWARE, 160, 96)
    source = pictures()
    for index in range(3):
        encoder.encode(next(source), index * 3000)
    encoder.flush()
    (unit,) = encoder.encode(next(source), 9000)
    assert unit.key
    assert len(decode([unit])) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bitrate", 10),
        ("quality", 52),
        ("preset", "warp"),
        ("profile", "extended"),
        ("key_interval", 0),
        ("threads", -1),
        ("framerate", 0),
        ("buffer", 0),
        ("hardware", "maybe"),
    ],
)
def test_settings_that_cannot_be_are_named(field: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=field) as raised:
        VideoEncoderSettings(**{field: value})  # type: ignore[arg-type]
    assert raised.value.field == field


@pytest.mark.parametrize(("profile", "idc"), [("baseline", 66), ("main", 77), ("high", 100)])
def test_the_profile_is_the_one_asked_for(profile: str, idc: int) -> None:
    settings = VideoEncoderSettings(hardware="off", profile=profile)  # type: ignore[arg-type]
    encoder = VideoEncoder(settings, 160, 96)
    encoder.encode(next(pictures()), 0)
    assert encoder.parameters.extradata[5] == idc


def test_sizes_that_no_encoder_takes_are_refused() -> None:
    with pytest.raises(CodecError, match="too small"):
        VideoEncoder(SOFTWARE, 1, 1)
    with pytest.raises(CodecError, match="40000x40000"):
        VideoEncoder(SOFTWARE, 40_000, 40_000)

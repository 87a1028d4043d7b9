import gc
from dataclasses import replace

import numpy as np
import pytest
from codec_media import gradient

from stream.codecs import libvpx, video_decoder, vp8_encoder
from stream.codecs.picture import AvPicture
from stream.codecs.video_decoder import VideoDecoder
from stream.codecs.video_encoder import VideoEncoder, VideoEncoderSettings
from stream.codecs.vp8_encoder import Vp8Encoder, vp8_problem
from stream.errors import CodecError
from stream.frames import Picture
from stream.mpegts import AccessUnit
from stream.units import EncodedUnit, Rendition

SETTINGS = VideoEncoderSettings(bitrate=600_000, key_interval=1000, hardware="off")


def picture(index: int, width: int = 160, height: int = 96) -> Picture:
    return Picture.from_rgb(gradient(index, width, height))


GRAIN = np.random.default_rng(1).integers(90, 160, (180, 320, 3), dtype=np.uint8)


def noise(index: int) -> Picture:
    """Grain that moves and changes a little, so that the bitrate decides how much of it is seen."""
    fresh = np.random.default_rng(index).integers(0, 24, GRAIN.shape, dtype=np.uint8)
    return Picture.from_rgb(np.roll(GRAIN, index * 3, axis=1) + fresh)


def unit_of(unit: EncodedUnit, codec: str = "vp8") -> AccessUnit:
    return AccessUnit(1, codec, "video", unit.data, unit.pts, unit.pts, 1, unit.key)


def test_what_is_encoded_is_decoded_again_in_the_call_that_took_it():
    encoder, decoder = Vp8Encoder(SETTINGS, 160, 96), VideoDecoder("vp8", hardware="off")
    for index in range(20):
        (unit,) = encoder.encode(picture(index), index * 3000, source=index + 5)
        assert (unit.codec, unit.pts, unit.source, unit.key) == ("vp8", index * 3000, index + 5, index == 0)
        (frame,) = decoder.decode(unit_of(unit))
        assert frame.timestamp == unit.pts
        difference = np.abs(frame.picture.rgb().astype(int) - gradient(index, 160, 96).astype(int))
        assert difference.mean() < 12
    assert encoder.parameters.codec == "vp8"
    assert (encoder.parameters.width, encoder.parameters.height) == (160, 96)


def test_colours_are_those_that_vp8_means():
    colour = (200, 40, 90)
    encoder, decoder = Vp8Encoder(SETTINGS, 160, 96), VideoDecoder("vp8", hardware="off")
    (unit,) = encoder.encode(Picture.from_rgb(np.full((96, 160, 3), colour, np.uint8)), 0)
    (frame,) = decoder.decode(unit_of(unit))
    assert np.abs(frame.picture.rgb().reshape(-1, 3).mean(0) - colour).max() < 5


def test_a_key_picture_comes_when_it_is_asked_for_when_it_is_due_and_after_a_flush():
    encoder = Vp8Encoder(replace(SETTINGS, key_interval=1.0), 160, 96)
    keys = []
    for index in range(60):
        if index == 50:
            assert encoder.flush() == []
        keys += [index for u in encoder.encode(picture(index), index * 3000, key=index == 10) if u.key]
    assert keys == [0, 10, 40, 50]


@pytest.mark.parametrize("encoder_type", [Vp8Encoder, VideoEncoder])
def test_the_bitrate_changes_without_a_key_picture(encoder_type):
    settings = replace(SETTINGS, bitrate=1_000_000, highest_bitrate=4_000_000)
    encoder = encoder_type(settings, 320, 180)
    sizes, keys = [], 0
    for index in range(180):
        if index in (60, 120):
            encoder.set_bitrate(250_000 if index == 60 else 3_000_000)
        for unit in encoder.encode(noise(index), index * 3000):
            sizes.append(len(unit.data))
            keys += unit.key
    assert keys == 1
    first, low, high = (sum(sizes[at + 20 : at + 60]) * 8 / (40 / 30) for at in (0, 60, 120))
    assert 600_000 < first < 1_500_000
    assert low < 0.5 * first
    assert high > 2 * first


@pytest.mark.parametrize("size", [(161, 97), (2, 2), (100, 64)])
def test_odd_and_other_sizes_are_taken(size):
    encoder = Vp8Encoder(SETTINGS, *size)
    assert encoder.encode(picture(0, *size), 0)
    assert encoder.encode(picture(1, 64, 64), 3000)
    assert encoder.parameters.width == size[0] // 2 * 2


def test_pictures_with_strides_and_from_a_decoder_are_taken():
    encoder, decoder = Vp8Encoder(SETTINGS, 160, 96), VideoDecoder("vp8", hardware="off")
    (unit,) = Vp8Encoder(SETTINGS, 160, 96).encode(picture(3), 0)
    (frame,) = decoder.decode(unit_of(unit))
    assert isinstance(frame.picture, AvPicture)
    assert encoder.encode(frame.picture, 0)


def test_what_cannot_be_is_refused():
    with pytest.raises(CodecError):
        Vp8Encoder(SETTINGS, 1, 1)
    with pytest.raises(CodecError):
        Vp8Encoder(SETTINGS, 40_000, 2)
    encoder = Vp8Encoder(SETTINGS, 64, 64)
    encoder.encode(picture(0, 64, 64), 5)
    with pytest.raises(ValueError, match="must grow"):
        encoder.encode(picture(1, 64, 64), 5)


def test_a_library_that_is_laid_out_otherwise_is_refused(monkeypatch):
    monkeypatch.setitem(libvpx._DEFAULTS, "key_max_distance", 129)
    libvpx.library.cache_clear()
    try:
        assert "not one that can be used" in (vp8_problem() or "")
        with pytest.raises(CodecError):
            Vp8Encoder(SETTINGS, 64, 64)
    finally:
        libvpx.library.cache_clear()


def test_without_a_library_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(libvpx, "_loaded", lambda: None)
    monkeypatch.setattr(libvpx.ctypes.util, "find_library", lambda name: None)
    libvpx.library.cache_clear()
    try:
        assert "libvpx" in (vp8_problem() or "")
    finally:
        monkeypatch.undo()
        libvpx.library.cache_clear()
    assert vp8_problem() is None


def test_an_encoder_that_nobody_holds_frees_what_libvpx_holds(monkeypatch):
    closed = []
    real = libvpx.Vp8Context.close
    monkeypatch.setattr(libvpx.Vp8Context, "close", lambda self: (closed.append(1), real(self)))
    encoder = vp8_encoder.Vp8Encoder(SETTINGS, 64, 64)
    encoder.encode(picture(0, 64, 64), 0)
    del encoder
    gc.collect()
    assert closed == [1]


def key_picture(codec: str, width: int, height: int) -> AccessUnit:
    encoder = Vp8Encoder if codec == "vp8" else VideoEncoder
    (unit,) = encoder(SETTINGS, width, height).encode(picture(0, width, height), 0, key=True)
    return unit_of(unit, codec)


@pytest.mark.parametrize("codec", ["h264", "vp8"])
def test_pictures_over_the_limit_are_not_decoded_and_the_limit_is_named(codec, monkeypatch):
    monkeypatch.setattr(video_decoder, "MAX_PIXELS", 200 * 100)
    decoder = VideoDecoder(codec, hardware="off")
    assert decoder.decode(key_picture(codec, 320, 192)) == []
    assert decoder.errors == 1
    assert decoder.problem == "pictures of 320x192 are not decoded: 20000 pixels are the most that is taken"
    assert decoder.wants_key
    assert len(decoder.decode(key_picture(codec, 160, 96))) == 1


def test_the_profile_and_the_level_are_in_the_parameter_sets():
    def sps(profile: str, width: int, height: int) -> bytes:
        encoder = VideoEncoder(replace(SETTINGS, profile=profile), width, height)
        encoder.encode(picture(0, width, height), 0)
        return encoder.parameters.extradata[4:8]

    # nal header, profile_idc, constraint flags, level_idc (H.264, 7.3.2.1.1; RFC 6184, 8.1)
    assert sps("constrained_baseline", 640, 480) == bytes((0x67, 66, 0xC0, 30))
    assert sps("constrained_baseline", 1280, 720) == bytes((0x67, 66, 0xC0, 31))
    assert sps("main", 640, 480)[1] == 77
    assert sps("high", 1920, 1080)[1::2] == bytes((100, 40))


def test_the_rendition_goes_with_its_units():
    rendition = Rendition(codec="vp8", purpose="viewers")
    (unit,) = Vp8Encoder(SETTINGS, 64, 64, rendition=rendition).encode(picture(0, 64, 64), 0)
    assert unit.rendition == rendition

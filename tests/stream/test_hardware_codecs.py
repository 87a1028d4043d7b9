from __future__ import annotations

import av
import av.error
import pytest
from codec_media import Coded, access_units, encoded_video, gradient, pattern_frame

from stream.codecs import hardware
from stream.codecs.hardware import HARDWARE, Hardware, Trial
from stream.codecs.picture import AvPicture
from stream.codecs.video_decoder import VideoDecoder
from stream.codecs.video_encoder import VideoEncoder, VideoEncoderSettings
from stream.errors import CodecError
from stream.frames import Picture

SETTINGS = VideoEncoderSettings(preset="ultrafast")


@pytest.fixture
def without_device() -> None:
    if HARDWARE.encoding().available or HARDWARE.decoding().available:
        pytest.skip("there is a device, and nothing to fall back from")


@pytest.fixture
def believed(monkeypatch: pytest.MonkeyPatch, without_device: None) -> None:
    """The trials are said to have gone well, so that opening the device is what fails, for real."""
    for name in ("nvenc", "nvdec"):
        monkeypatch.setitem(HARDWARE._trials, name, Trial(True))


def picture(index: int = 0) -> Picture:
    return Picture.from_rgb(gradient(index, 160, 96))


def test_the_report_says_what_there_is_and_why_not() -> None:
    report = hardware.report()
    assert set(report) == {"decode", "encode"}
    for entry, name in (("decode", "nvdec"), ("encode", "nvenc")):
        assert report[entry]["name"] == name
        assert report[entry]["available"] is (report[entry]["reason"] is None)


def test_a_device_is_tried_once() -> None:
    machine, attempts = Hardware(), []

    def attempt() -> None:
        attempts.append(1)
        raise ValueError("no such device")

    trials = [machine._tried("device", attempt) for _ in range(3)]
    assert attempts == [1]
    assert {trial.available for trial in trials} == {False}
    assert "no such device" in trials[0].reason


@pytest.mark.usefixtures("without_device")
def test_without_a_device_software_is_used_and_requiring_one_fails() -> None:
    encoder, decoder = VideoEncoder(SETTINGS, 160, 96), VideoDecoder("h264")
    assert (encoder.hardware, encoder.name, encoder.fallback_reason) == (False, "libx264", None)
    assert (decoder.hardware, decoder.name, decoder.fallback_reason) == (False, "h264", None)
    with pytest.raises(CodecError, match="required") as raised:
        VideoEncoder(VideoEncoderSettings(hardware="require"), 160, 96)
    assert raised.value.field == "hardware"
    with pytest.raises(CodecError, match="required"):
        VideoDecoder("h264", hardware="require")


@pytest.mark.usefixtures("believed")
def test_an_encoder_that_does_not_open_falls_back_and_says_so() -> None:
    said: list[str] = []
    encoder = VideoEncoder(SETTINGS, 160, 96, on_fallback=said.append)
    assert (encoder.hardware, encoder.name) == (False, "libx264")
    assert encoder.fallback_reason is not None
    assert "h264_nvenc" in encoder.fallback_reason
    assert said == [encoder.fallback_reason]
    assert encoder.encode(picture(), 0)[0].key
    with pytest.raises(CodecError, match="required"):
        VideoEncoder(VideoEncoderSettings(hardware="require"), 160, 96)


@pytest.mark.usefixtures("believed")
def test_a_decoder_that_does_not_open_falls_back_and_says_so() -> None:
    said: list[str] = []
    decoder = VideoDecoder("h264", on_fallback=said.append)
    assert (decoder.hardware, decoder.name) == (False, "h264")
    assert said == [decoder.fallback_reason]
    frames = [frame for unit in access_units(encoded_video(5)) for frame in decoder.decode(unit)]
    assert len(frames) == 5


def test_an_encoder_that_fails_in_mid_stream_goes_on_in_software_with_the_same_picture() -> None:
    said: list[str] = []
    software = VideoEncoderSettings(preset="ultrafast", hardware="off")
    encoder = VideoEncoder(software, 160, 96, on_fallback=said.append)
    units = [unit for index in range(3) for unit in encoder.encode(picture(index), index * 3000)]
    # What stands in for the device refuses the next picture: FFmpeg's encoders do so once drained.
    encoder._context.encode(None)
    encoder.hardware = True
    units += [unit for index in range(3, 6) for unit in encoder.encode(picture(index), index * 3000)]
    assert [unit.pts for unit in units] == [index * 3000 for index in range(6)]
    assert [unit.key for unit in units] == [True, False, False, True, False, False]
    assert (encoder.hardware, encoder.name, len(said)) == (False, "libx264", 1)


def test_software_that_fails_is_an_error_not_a_loop() -> None:
    encoder = VideoEncoder(VideoEncoderSettings(hardware="off"), 160, 96)
    encoder._context.encode(None)
    with pytest.raises(CodecError, match="libx264 failed"):
        encoder.encode(picture(), 0)


def test_a_decoder_that_fails_in_mid_stream_goes_on_in_software_from_the_next_key_picture() -> None:
    said: list[str] = []
    decoder = VideoDecoder("h264", hardware="off", on_fallback=said.append)
    units = access_units(encoded_video(20, gop=5))
    frames = [frame.timestamp for unit in units[:7] for frame in decoder.decode(unit)]
    decoder._context.decode(None)
    decoder.hardware = True
    frames += [frame.timestamp for unit in units[7:] for frame in decoder.decode(unit)]
    assert frames == [unit.pts for unit in units[:7] + units[10:]]
    assert (decoder.hardware, len(said)) == (False, 1)


def test_a_device_that_hands_out_software_frames_is_seen_through() -> None:
    """FFmpeg goes on in software by itself where a stream does not fit the device."""
    said: list[str] = []
    decoder = VideoDecoder("h264", hardware="off", on_fallback=said.append)
    decoder.hardware = True
    assert [frame for unit in access_units(encoded_video(3)) for frame in decoder.decode(unit)]
    assert not decoder.hardware
    assert "yuv420p" in said[0]


def test_damage_alone_does_not_take_a_decoder_off_the_device() -> None:
    decoder = VideoDecoder("h264", hardware="off")
    units = access_units(encoded_video(10, gop=5))
    decoder.decode(units[0])
    decoder.hardware = True
    for index in range(4):
        decoder._fail(units[index], av.error.InvalidDataError(1, "damaged"))
    assert decoder.hardware
    decoder._fail(units[5], av.error.InvalidDataError(1, "damaged"))
    assert not decoder.hardware


@pytest.mark.gpu
def test_the_device_encodes_and_decodes_without_delay() -> None:
    settings = VideoEncoderSettings(hardware="require", bitrate=2_000_000)
    encoder = VideoEncoder(settings, 320, 240, matrix="bt709")
    decoder = VideoDecoder("h264", hardware="require")
    for index in range(90):
        shown = AvPicture(pattern_frame(index, 320, 240), "bt709")
        (unit,) = encoder.encode(shown, index * 3000, key=index == 31)
        assert (unit.pts, unit.key) == (index * 3000, index in (0, 31))
        if index == 40:
            encoder.set_bitrate(500_000)
        coded = access_units([Coded(unit.data, unit.pts, unit.pts, unit.key)])
        assert [frame.timestamp for frame in decoder.decode(coded[0])] == [index * 3000]
    assert (encoder.hardware, decoder.hardware) == (True, True)

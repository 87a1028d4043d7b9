from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from codec_media import START, Coded, adts, encoded_audio, sound_units, tone
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.codecs.audio_decoder import AudioDecoder
from stream.codecs.audio_encoder import MAX_FILL, AudioEncoder, AudioEncoderSettings
from stream.errors import CodecError, InvalidInput
from stream.frames import AudioFrame, Timeline
from stream.mpegts import AccessUnit
from stream.units import TS_TIME_BASE, EncodedUnit

LOOK_AHEAD = 585
"""Ticks (312 samples) by which libopus looks ahead."""


def frames_of(
    seconds: float,
    *,
    rate: int = 48_000,
    channels: int = 2,
    size: int = 1024,
    start: int = START,
    fmt: str = "fltp",
) -> list[AudioFrame]:
    """A tone in frames of ``size`` samples, timestamps rounded to 1/90000 s."""
    samples, layout = tone(seconds, rate, channels), {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    frames = []
    for at in range(0, samples.shape[1] - size + 1, size):
        block: npt.NDArray[np.generic] = samples[:, at : at + size]
        if fmt.startswith("s16"):
            block = (block * 32767).astype(np.int16)
        if not fmt.endswith("p"):
            block = np.ascontiguousarray(block.T).reshape(1, -1)
        pts = start + round(at * 90_000 / rate)
        frames.append(AudioFrame(block, pts, TS_TIME_BASE, rate=rate, format=fmt, layout=layout))
    return frames


def encode(frames: list[AudioFrame], encoder: AudioEncoder | None = None) -> list[EncodedUnit]:
    encoder = encoder or AudioEncoder()
    return [unit for frame in frames for unit in encoder.encode(frame)] + encoder.flush()


def decode(units: list[EncodedUnit], channels: int) -> npt.NDArray[np.float32]:
    decoder = AudioDecoder("opus")
    coded = [Coded(unit.data, unit.pts, unit.pts, True) for unit in units]
    frames = [frame for unit in sound_units(coded, "opus", channels) for frame in decoder.decode(unit)]
    assert decoder.errors == 0
    return np.concatenate([frame.samples for frame in frames], axis=1)


def pitch(samples: npt.NDArray[np.float32], rate: int = 48_000) -> float:
    """The loudest frequency."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * rate / len(samples)


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2), ("5.1", 6)])
@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_aac_is_decoded_to_planar_floats_of_its_own_layout(layout: str, channels: int, rate: int) -> None:
    units = sound_units(encoded_audio(0.5, layout=layout, rate=rate), "aac", channels, rate)
    decoder = AudioDecoder("aac")
    for unit in units:
        (frame,) = decoder.decode(unit)
        assert (frame.format, frame.rate, frame.channels) == ("fltp", rate, channels)
        assert (frame.samples.shape, frame.samples.dtype) == ((channels, 1024), np.float32)
        assert (frame.timestamp, frame.time_base) == (unit.pts, TS_TIME_BASE)
        assert frame.timeline.received == unit.received
        assert frame.timeline.decoded > 0
    assert pitch(frame.samples[0], rate) == pytest.approx(440, abs=50)
    assert decoder.errors == 0


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2), ("5.1", 6)])
def test_opus_is_decoded_to_planar_floats_of_its_own_layout(layout: str, channels: int) -> None:
    options = {"mapping_family": "1"} if channels > 2 else {}
    units = sound_units(encoded_audio(0.5, "libopus", layout=layout, options=options), "opus", channels)
    decoder = AudioDecoder("opus")
    for unit in units:
        (frame,) = decoder.decode(unit)
        assert (frame.format, frame.rate, frame.layout) == ("fltp", 48_000, layout)
        assert frame.samples.shape == (channels, 960)
        assert frame.timestamp == unit.pts


def test_parameters_may_change_in_mid_stream() -> None:
    aac, opus = AudioDecoder("aac"), AudioDecoder("opus")
    for rate, channels in ((48_000, 2), (44_100, 1), (32_000, 2)):
        layout = "mono" if channels == 1 else "stereo"
        units = sound_units(encoded_audio(0.3, layout=layout, rate=rate), "aac", channels, rate)
        frames = [frame for unit in units for frame in aac.decode(unit)]
        assert (frames[-1].rate, frames[-1].layout) == (rate, layout)
        for unit in sound_units(encoded_audio(0.2, "libopus", layout=layout), "opus", channels):
            (frame,) = opus.decode(unit)
            assert frame.samples.shape[0] == channels
    assert (aac.errors, opus.errors) == (0, 0)


@settings(max_examples=40)
@given(codec=st.sampled_from(["aac", "opus"]), data=st.binary(max_size=200), headed=st.booleans())
def test_damaged_sound_counts_and_raises_nothing(codec: str, data: bytes, headed: bool) -> None:
    decoder = AudioDecoder(codec)
    payload = adts(data) if headed and codec == "aac" else data
    unit = AccessUnit(257, codec, "audio", payload, 0, 0, 1, True)
    frames = decoder.decode(unit)
    assert len(frames) == 0 or decoder.errors == 0
    if not data and not headed:
        assert decoder.errors == 1
    good = sound_units(encoded_audio(0.1, "libopus" if codec == "opus" else "aac"), codec)
    assert sum(len(decoder.decode(each)) for each in good) >= len(good) - 1


def test_other_codecs_are_refused() -> None:
    with pytest.raises(CodecError, match="mp2"):
        AudioDecoder("mp2")


@pytest.mark.parametrize("channels", [1, 2])
def test_channels_are_kept_and_each_holds_its_own_sound(channels: int) -> None:
    encoder = AudioEncoder()
    units = encode(frames_of(1.0, channels=channels), encoder)
    assert encoder.parameters is not None
    assert (encoder.parameters.channels, encoder.parameters.rate) == (channels, 48_000)
    assert encoder.parameters.extradata.startswith(b"OpusHead")
    samples = decode(units, channels)
    for index in range(channels):
        assert pitch(samples[index, 12_000:36_000]) == pytest.approx(440 * (index + 1), abs=3)


@pytest.mark.parametrize(
    ("rate", "channels", "fmt"),
    [(44_100, 2, "fltp"), (16_000, 1, "s16"), (48_000, 2, "s16p"), (48_000, 6, "fltp"), (96_000, 2, "flt")],
)
def test_any_rate_layout_and_format_is_taken(rate: int, channels: int, fmt: str) -> None:
    units = encode(frames_of(1.0, rate=rate, channels=channels, fmt=fmt))
    samples = decode(units, min(2, channels))
    assert pitch(samples[0, 12_000:36_000]) == pytest.approx(440, abs=3)
    assert len(units) * 960 == pytest.approx(48_000, abs=2_100)
    assert {b.pts - a.pts for a, b in pairwise(units)} == {1800}


def test_packets_have_20_ms_and_the_time_at_which_they_are_heard() -> None:
    encoder = AudioEncoder()
    units = encode(frames_of(1.0), encoder)
    assert units[0].pts == START - LOOK_AHEAD
    assert {unit.duration for unit in units} == {1800}
    assert all(unit.key and unit.kind == "audio" and unit.timeline.encoded for unit in units)
    # A click is heard where it was.
    samples = np.zeros((1, 48_000), np.float32)
    samples[0, 24_000:24_040] = 0.9
    click = encode([AudioFrame(samples, START, TS_TIME_BASE, rate=48_000, layout="mono")])
    heard = int(np.argmax(np.abs(decode(click, 1)[0])))
    assert click[0].pts + heard * 15 / 8 == pytest.approx(START + 45_000, abs=100)


@pytest.mark.parametrize("rate", [44_100, 48_000, 32_000, 22_050])
def test_rounding_and_jitter_make_no_gap(rate: int) -> None:
    rng = np.random.default_rng(0)
    frames = frames_of(4.0, rate=rate)
    for frame in frames[1:]:
        frame.timestamp += int(rng.integers(-900, 901))
    encoder = AudioEncoder()
    units = encode(frames, encoder)
    assert encoder.moved == 0
    assert {b.pts - a.pts for a, b in pairwise(units)} == {1800}


def test_a_gap_is_filled_with_silence_and_the_rest_keeps_its_place() -> None:
    frames = frames_of(2.0)
    kept = [frame for frame in frames if not 45_000 <= frame.timestamp - START < 90_000]
    encoder = AudioEncoder()
    units = encode(kept, encoder)
    assert encoder.moved == 1
    assert {b.pts - a.pts for a, b in pairwise(units)} == {1800}
    samples = decode(units, 2)[0]
    assert np.abs(samples[30_000:46_000]).max() < 0.01
    assert pitch(samples[54_000:78_000]) == pytest.approx(440, abs=3)
    assert units[-1].pts == pytest.approx(START + 180_000, abs=3_000)


def test_after_a_long_gap_sound_begins_anew_at_its_time() -> None:
    first, second = frames_of(0.5), frames_of(0.5, start=START + int((MAX_FILL + 3) * 90_000))
    units = encode(first + second)
    steps = [b.pts - a.pts for a, b in pairwise(units)]
    assert sum(step != 1800 for step in steps) == 1
    assert min(steps) > 0
    resumed = next(b.pts for a, b in pairwise(units) if b.pts - a.pts != 1800)
    assert resumed == pytest.approx(START + (MAX_FILL + 3) * 90_000 - LOOK_AHEAD, abs=2)


def test_an_overlap_is_cut_off() -> None:
    first, second = frames_of(0.5), frames_of(1.0, start=START + 27_000)
    encoder = AudioEncoder()
    units = encode(first + second, encoder)
    assert encoder.moved == 1
    assert {b.pts - a.pts for a, b in pairwise(units)} == {1800}
    assert units[-1].pts == pytest.approx(START + 27_000 + 90_000, abs=3_600)


def test_an_overlap_is_cut_off_however_long_it_is() -> None:
    encoder = AudioEncoder()
    units = encode(frames_of(5.0, size=48_000 * 4) + frames_of(6.0, start=START + 1_800), encoder)
    assert encoder.moved == 1
    assert {b.pts - a.pts for a, b in pairwise(units)} == {1800}
    assert units[-1].pts == pytest.approx(START + 1_800 + 6 * 90_000, abs=3_600)


def test_sound_of_seven_channels_becomes_stereo() -> None:
    samples = np.full((7, 4_800), 0.1, np.float32)
    units = encode([AudioFrame(samples, START, TS_TIME_BASE, layout="6.1")])
    assert decode(units, 2).shape[0] == 2


def test_slow_drift_of_a_source_is_followed() -> None:
    """Samples that come 0.2 % too slowly for their timestamps do not run away from the pictures."""
    frames = frames_of(20.0)
    for frame in frames:
        frame.timestamp = START + round((frame.timestamp - START) * 1.002)
    encoder = AudioEncoder()
    units = encode(frames, encoder)
    assert 1 <= encoder.moved <= 3
    end = frames[-1].timestamp + frames[-1].nb_samples * 15 / 8
    assert units[-1].pts + 1800 + LOOK_AHEAD == pytest.approx(end, abs=2_700 + 1_800)


def test_samples_are_clamped_and_nan_is_silence() -> None:
    frames = frames_of(0.6)
    for frame in frames:
        frame.samples = frame.samples * 50
        frame.samples[:, 100] = np.nan
        frame.samples[:, 101] = np.inf
    samples = decode(encode(frames), 2)
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() < 1.6


def test_layout_and_rate_may_change_while_the_output_goes_on() -> None:
    encoder = AudioEncoder()
    frames = frames_of(0.5)
    frames += frames_of(0.5, rate=44_100, channels=1, start=START + 45_000)
    frames += frames_of(0.5, start=START + 90_000, fmt="s16")
    units = encode(frames, encoder)
    assert {b.pts - a.pts for a, b in pairwise(units)} == {1800}
    samples = decode(units, 2)
    assert pitch(samples[0, 26_000:46_000]) == pytest.approx(440, abs=3)
    assert pitch(samples[1, 50_000:68_000]) == pytest.approx(880, abs=4)


@pytest.mark.parametrize("channels", [1, 2])
def test_channels_can_be_set(channels: int) -> None:
    encoder = AudioEncoder(AudioEncoderSettings(channels=channels, bitrate=48_000))
    assert encoder.parameters is None
    units = encode(frames_of(1.0, channels=3 - channels), encoder)
    assert encoder.parameters is not None
    assert encoder.parameters.channels == channels
    assert sum(len(unit.data) for unit in units) * 8 == pytest.approx(48_000, rel=0.35)


def test_the_timeline_of_the_completing_frame_goes_along() -> None:
    (frame,) = frames_of(0.1, size=1920)[:1]
    frame.timeline = Timeline(received=3, decoded=4)
    units = AudioEncoder().encode(frame)
    assert {(unit.timeline.received, unit.timeline.decoded) for unit in units} == {(3, 4)}
    assert frame.timeline.encoded == 0


def test_other_time_bases_are_understood() -> None:
    frame = AudioFrame(tone(0.1, 48_000, 1), 48_000, Fraction(1, 48_000), rate=48_000, layout="mono")
    assert AudioEncoder().encode(frame)[0].pts == 90_000 - LOOK_AHEAD


def test_flushing_an_unused_encoder_gives_nothing() -> None:
    assert AudioEncoder().flush() == []


@pytest.mark.parametrize(("field", "value"), [("bitrate", 1), ("channels", 3)])
def test_settings_that_cannot_be_are_named(field: str, value: int) -> None:
    with pytest.raises(InvalidInput, match=field):
        AudioEncoderSettings(**{field: value})

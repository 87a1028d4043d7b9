"""Nodes of sound against what is known of sines, and on a stream."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from stream.frames import AudioFrame  # noqa: E402
from workflows.nodes import audio as nodes  # noqa: E402
from workflows.nodes.spectra import at_rate, shifted  # noqa: E402
from workflows.processor import WorkflowProcessor  # noqa: E402

RATE = 48_000


def sine(frequency: float, length: int = 12_000, rate: int = RATE) -> Any:
    return torch.from_numpy(np.sin(2 * np.pi * frequency * np.arange(length) / rate).astype(np.float32))


def sound(*channels: Any, rate: int = RATE) -> dict[str, Any]:
    return {"waveform": torch.stack(channels)[None], "sample_rate": rate}


def loudest(waveform: Any, rate: int = RATE) -> float:
    """The frequency with the most in it, in hertz."""
    size = torch.fft.rfft(waveform * torch.hann_window(len(waveform))).abs()
    return float(size.argmax()) * rate / len(waveform)


def test_volume_is_in_decibels() -> None:
    given = sound(sine(440))
    (made,) = nodes.AudioAdjustVolume().adjust_volume(given, -20)
    torch.testing.assert_close(made["waveform"], given["waveform"] / 10)
    assert nodes.AudioAdjustVolume().adjust_volume(given, 0)[0] is given


@pytest.mark.parametrize("semitones", [0.5, 4.0, 12.0])
def test_the_pitch_rises_and_the_length_stays(semitones: float) -> None:
    given = sound(sine(440), sine(1000) * 0.5)
    (made,) = nodes.PitchShifter().execute(given, semitones)
    assert made["waveform"].shape == given["waveform"].shape
    for channel, frequency, level in ((0, 440, 1.0), (1, 1000, 0.5)):
        inner = made["waveform"][0, channel, 2000:-2000]
        assert loudest(inner) == pytest.approx(frequency * 2 ** (semitones / 12), abs=RATE / len(inner))
        assert float(inner.square().mean().sqrt()) == pytest.approx(
            level / math.sqrt(2), rel=0.15
        )  # a vocoder loses some


def test_no_pitch_and_no_sound_are_left_alone() -> None:
    given = sine(440)[None]
    assert shifted(given, 0.0) is given
    assert shifted(given[:, :0], 3.0).shape == (1, 0)


@pytest.mark.parametrize(("rate", "wanted"), [(44_100, 48_000), (48_000, 16_000), (8_000, 48_000)])
def test_another_rate_is_the_same_sine(rate: int, wanted: int) -> None:
    made = at_rate(sine(440, rate // 8, rate), rate, wanted)
    assert len(made) == math.ceil(rate // 8 * wanted / rate)
    inner = slice(len(made) // 8, -len(made) // 8)
    torch.testing.assert_close(made[inner], sine(440, len(made), wanted)[inner], atol=2e-3, rtol=0)


def test_what_the_lower_rate_cannot_carry_is_gone() -> None:
    assert float(at_rate(sine(10_000), RATE, 16_000)[500:-500].abs().max()) < 2e-3


@pytest.mark.parametrize(
    ("method", "expected"),
    [("add", [0.7, 0.3]), ("mean", [0.35, 0.15]), ("subtract", [0.3, 0.3]), ("multiply", [0.1, 0.0])],
)
def test_two_sounds_at_once_are_as_long_as_the_first(method: str, expected: list[float]) -> None:
    one, other = sound(torch.tensor([0.5, 0.3])), sound(torch.tensor([0.2]))
    (made,) = nodes.AudioMerge().merge(one, other, method)
    torch.testing.assert_close(made["waveform"], torch.tensor([[expected]]))
    (short,) = nodes.AudioMerge().merge(other, one, method)
    assert short["waveform"].shape == (1, 1, 1)


def test_what_goes_over_full_scale_is_turned_down() -> None:
    one = sound(torch.tensor([0.9, -0.3]))
    (made,) = nodes.AudioMerge().merge(one, one, "add")
    torch.testing.assert_close(made["waveform"], torch.tensor([[[1.0, -1 / 3]]]))


def test_of_two_rates_the_higher_counts() -> None:
    one, other = sound(sine(440, 4410, 44_100) * 0.4, rate=44_100), sound(sine(440, 4800) * 0.4)
    (made,) = nodes.AudioMerge().merge(one, other, "subtract")
    assert made["sample_rate"] == RATE
    assert made["waveform"].shape[-1] == 4800
    assert float(made["waveform"][..., 200:-200].abs().max()) < 1e-3


def test_one_after_the_other_in_two_channels() -> None:
    one, other = sound(torch.tensor([0.1])), sound(torch.tensor([0.2]), torch.tensor([0.3]))
    (made,) = nodes.AudioConcat().concat(one, other, "after")
    torch.testing.assert_close(made["waveform"], torch.tensor([[[0.1, 0.2], [0.1, 0.3]]]))
    (made,) = nodes.AudioConcat().concat(one, other, "before")
    torch.testing.assert_close(made["waveform"], torch.tensor([[[0.2, 0.1], [0.3, 0.1]]]))


def test_channels_apart() -> None:
    left, right = nodes.SplitAudioChannels().separate(sound(sine(440), sine(880)))
    assert torch.equal(left["waveform"], sine(440)[None, None])
    assert torch.equal(right["waveform"], sine(880)[None, None])
    with pytest.raises(ValueError, match="2 channels, got 1"):
        nodes.SplitAudioChannels().separate(left)


@pytest.mark.parametrize(
    ("start", "duration", "expected"), [(0.25, 0.5, (2, 6)), (-0.25, 9.0, (6, 8)), (0.0, 60.0, (0, 8))]
)
def test_a_part_in_seconds(start: float, duration: float, expected: tuple[int, int]) -> None:
    given = sound(torch.arange(8.0), rate=8)
    (made,) = nodes.TrimAudioDuration().trim(given, start, duration)
    assert made["waveform"][0, 0].tolist() == list(range(*expected))


def test_what_cannot_be_made_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"0 s from 0\.5 s on is nothing of a sound of 1 s"):
        nodes.TrimAudioDuration().trim(sound(torch.arange(8.0), rate=8), 0.5, 0.0)
    (silence,) = nodes.EmptyAudio().create_empty_audio(0.5, 8000, 2)
    assert silence["waveform"].shape == (1, 2, 4000)
    assert not silence["waveform"].any()
    with pytest.raises(ValueError, match="over the limit"):
        nodes.EmptyAudio().create_empty_audio(1e6, 44_100, 2)


async def test_a_stream_is_turned_down_and_the_volume_is_live() -> None:
    graph = {
        "1": {"class_type": "LoadAudioTensor", "inputs": {"buffer_size": 20.0}},
        "2": {"class_type": "AudioAdjustVolume", "inputs": {"audio": ["1", 0], "volume": -20}},
        "3": {"class_type": "SaveAudioTensor", "inputs": {"audio": ["2", 0]}},
    }
    processor = WorkflowProcessor(graph)
    await processor.load_model()
    samples = np.full((2, 960), 0.5, np.float32)

    async def level() -> list[float]:
        frame = AudioFrame(samples, 0, Fraction(1, RATE), rate=RATE, format="fltp", layout="stereo")
        (made,) = await processor.process_audio_async(frame) or ()
        return [round(float(value), 4) for value in made.samples[:, 100]]

    assert await level() == [0.05, 0.05]
    await processor.update_params({"2.volume": 0})
    assert await level() == [0.5, 0.5]

"""Nodes that change sound: names, inputs and results of ComfyUI's nodes of the same name, and of
ComfyStream's `PitchShifter`.

AUDIO is ``{"waveform": B x C x N floats, "sample_rate": Hz}``. On a stream a node gets one stretch at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from workflows.nodes.stream import InputTypes

if TYPE_CHECKING:
    import torch

Audio = dict[str, Any]
MAX_SAMPLES = 48_000 * 600
"""Of all channels of a made sound together: ten minutes of one."""
_FAR = 2.0**64 - 1


class AudioNode:
    """What the nodes of sound share."""

    CATEGORY = "audio"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("AUDIO",)


class AudioAdjustVolume(AudioNode):
    """Louder or softer by so many decibels: 6 is about twice the amplitude."""

    DESCRIPTION = "Makes the sound louder or softer, in decibels."
    FUNCTION = "adjust_volume"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"audio": ("AUDIO",), "volume": ("INT", {"default": 1, "min": -100, "max": 100})}}

    def adjust_volume(self, audio: Audio, volume: int) -> tuple[Audio]:
        return (
            audio if volume == 0 else _made(audio["waveform"] * 10 ** (volume / 20), audio["sample_rate"]),
        )


class PitchShifter(AudioNode):
    """The same as long, higher by so many semitones."""

    CATEGORY = "audio_utils"
    DESCRIPTION = "Raises the pitch by semitones, without a change of speed."
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        step = ("FLOAT", {"default": 4.0, "min": 0.0, "max": 12.0, "step": 0.5})
        return {"required": {"audio": ("AUDIO",), "pitch_shift": step}}

    def execute(self, audio: Audio, pitch_shift: float) -> tuple[Audio]:
        from workflows.nodes.spectra import shifted

        return (_made(shifted(audio["waveform"], pitch_shift), audio["sample_rate"]),)


class AudioMerge(AudioNode):
    """Both at once, as long as the first; turned down where that goes over full scale."""

    DESCRIPTION = "Lays one sound over another."
    FUNCTION = "merge"
    METHODS = ("add", "mean", "subtract", "multiply")

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        both = {"audio1": ("AUDIO",), "audio2": ("AUDIO",)}
        return {"required": {**both, "merge_method": (list(cls.METHODS),)}}

    def merge(self, audio1: Audio, audio2: Audio, merge_method: str) -> tuple[Audio]:
        import torch

        one, other, rate = _same_rate(audio1, audio2)
        length = one.shape[-1]
        other = torch.nn.functional.pad(other[..., :length], (0, max(0, length - other.shape[-1])))
        if merge_method == "multiply":
            together = one * other
        else:
            together = one - other if merge_method == "subtract" else one + other
        if merge_method == "mean":
            together = together / 2
        peak = together.abs().amax() if together.numel() else torch.zeros(())
        return (_made(together / peak.clamp(min=1.0), rate),)


class AudioConcat(AudioNode):
    """One after the other, in two channels."""

    DESCRIPTION = "Puts one sound behind another or before it."
    FUNCTION = "concat"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        both = {"audio1": ("AUDIO",), "audio2": ("AUDIO",)}
        return {"required": {**both, "direction": (["after", "before"], {"default": "after"})}}

    def concat(self, audio1: Audio, audio2: Audio, direction: str) -> tuple[Audio]:
        import torch

        one, other, rate = _same_rate(audio1, audio2)
        one, other = (sound.repeat(1, 2, 1) if sound.shape[1] == 1 else sound for sound in (one, other))
        _check_length(one.shape[1] * (one.shape[-1] + other.shape[-1]))
        return (_made(torch.cat((one, other) if direction == "after" else (other, one), dim=-1), rate),)


class SplitAudioChannels(AudioNode):
    """The two channels of a stereo sound, each alone."""

    DESCRIPTION = "The left and the right channel apart."
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("AUDIO", "AUDIO")
    RETURN_NAMES = ("left", "right")
    FUNCTION = "separate"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"audio": ("AUDIO",)}}

    def separate(self, audio: Audio) -> tuple[Audio, Audio]:
        waveform, rate = audio["waveform"], audio["sample_rate"]
        if waveform.shape[1] != 2:
            raise ValueError(f"expected a sound of 2 channels, got {waveform.shape[1]}")
        return _made(waveform[:, :1], rate), _made(waveform[:, 1:], rate)


class TrimAudioDuration(AudioNode):
    """A part of a sound, in seconds; a negative start counts from its end."""

    DESCRIPTION = "Cuts a part out of the sound."
    FUNCTION = "trim"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "audio": ("AUDIO",),
                "start_index": ("FLOAT", {"default": 0.0, "min": -_FAR, "max": _FAR, "step": 0.01}),
                "duration": ("FLOAT", {"default": 60.0, "min": 0.0, "step": 0.01}),
            }
        }

    def trim(self, audio: Audio, start_index: float, duration: float) -> tuple[Audio]:
        waveform, rate = audio["waveform"], audio["sample_rate"]
        length = waveform.shape[-1]
        start = round(start_index * rate) + (length if start_index < 0 else 0)
        start = max(0, min(start, length - 1))
        end = min(start + round(duration * rate), length)
        if end <= start:
            raise ValueError(
                f"{duration:g} s from {start_index:g} s on is nothing of a sound of {length / rate:g} s"
            )
        return (_made(waveform[..., start:end], rate),)


class EmptyAudio(AudioNode):
    """Silence."""

    DESCRIPTION = "Silence of a length."
    FUNCTION = "create_empty_audio"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "duration": ("FLOAT", {"default": 60.0, "min": 0.0, "max": _FAR, "step": 0.01}),
                "sample_rate": ("INT", {"default": 44100, "min": 1, "max": 192_000}),
                "channels": ("INT", {"default": 2, "min": 1, "max": 2}),
            }
        }

    def create_empty_audio(self, duration: float, sample_rate: int, channels: int) -> tuple[Audio]:
        import torch

        length = round(duration * sample_rate)
        _check_length(channels * length)
        return (_made(torch.zeros(1, channels, length), sample_rate),)


def _made(waveform: torch.Tensor, rate: int) -> Audio:
    return {"waveform": waveform, "sample_rate": rate}


def _same_rate(one: Audio, other: Audio) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Two waveforms at the higher of their rates."""
    from workflows.nodes.spectra import at_rate

    rate = max(one["sample_rate"], other["sample_rate"])
    waveforms = (at_rate(sound["waveform"], sound["sample_rate"], rate) for sound in (one, other))
    return next(waveforms), next(waveforms), rate


def _check_length(samples: int) -> None:
    if samples > MAX_SAMPLES:
        raise ValueError(f"{samples} samples of sound are over the limit of {MAX_SAMPLES}")


NODE_CLASS_MAPPINGS: dict[str, Any] = {
    node_class.__name__: node_class
    for node_class in (
        AudioAdjustVolume,
        PitchShifter,
        AudioMerge,
        AudioConcat,
        SplitAudioChannels,
        TrimAudioDuration,
        EmptyAudio,
    )
}

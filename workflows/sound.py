"""Sound into a workflow and out of it: stretches of the length that its LoadAudioTensor declares.

The graph gets AUDIO, ``{"waveform": 1 x C x N floats in -1..1, "sample_rate": Hz}``: mono where no sound goes
out of it (words from speech), all channels where it does. What comes out of a SaveAudioTensor keeps its
channels; a single one goes out on all channels of the stream, as with ComfyStream.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from stream.errors import ProcessorError
from stream.frames import AudioFrame
from workflows import stream_rules
from workflows.graph import Graph
from workflows.plan import Plan
from workflows.protocol import is_blocker

Samples = npt.NDArray[np.float32]

BUFFER = 500.0
"""Milliseconds of sound that a graph gets at a time where it says nothing else."""
_SHORTEST, _LONGEST = 1.0, 60_000.0
_LAYOUTS = {1: "mono", 2: "stereo"}


class Ear:
    """Collects the sound of one stream for one workflow."""

    def __init__(self) -> None:
        self._held: list[Samples] = []
        self._count = 0
        self._kind: tuple[int, int] = (0, 0)
        self._begun = Fraction(0)

    def take(self, frame: AudioFrame, milliseconds: float) -> list[tuple[Samples, Fraction]]:
        """The stretches (C x N) that are complete with ``frame``, with the times in seconds when they
        begin."""
        samples = planar(frame)
        kind = (samples.shape[0], frame.rate)
        if kind != self._kind:
            self._held, self._count, self._kind = [], 0, kind
        if not self._count:
            self._begun = frame.timestamp * frame.time_base
        self._held.append(samples)
        self._count += samples.shape[1]
        length = max(1, round(frame.rate * milliseconds / 1000))
        stretches = []
        if self._count >= length:
            joined = np.concatenate(self._held, axis=1)
            while joined.shape[1] >= length:
                stretches.append((joined[:, :length], self._begun))
                joined = joined[:, length:]
                self._begun += Fraction(length, frame.rate)
            self._held, self._count = [joined], joined.shape[1]
        return stretches


def buffer_length(graph: Graph) -> float:
    """Milliseconds of sound that the graph wants at a time; the least of several LoadAudioTensor."""
    lengths = [
        float(value)
        for node in graph
        if node.class_type == stream_rules.LOAD_AUDIO
        and isinstance(value := node.inputs.get("buffer_size", BUFFER), int | float)
    ]
    return min(max(min(lengths, default=BUFFER), _SHORTEST), _LONGEST)


async def heard(plan: Plan, ear: Ear, frames: Iterable[AudioFrame]) -> tuple[list[AudioFrame], list[str]]:
    """What becomes of stretches of sound in one workflow, and the texts that it says.

    Sound passes where none goes out of the workflow. Raises as `Plan.hear` does.
    """
    out: list[AudioFrame] = []
    texts: list[str] = []
    for frame in frames:
        if not plan.has_audio_output:
            out.append(frame)
        for samples, begun in ear.take(frame, buffer_length(plan.graph)):
            results, said = await plan.hear(as_audio(samples, frame.rate, keep=plan.has_audio_output))
            texts += said
            out += spoken(results, frame, begun)
    return out, texts


def as_audio(samples: Samples, rate: int, *, keep: bool) -> dict[str, Any]:
    """C x N samples as AUDIO; one channel, their mean, unless all are to be kept."""
    import torch

    if not keep and samples.shape[0] > 1:
        samples = samples.mean(axis=0, keepdims=True)
    return {"waveform": torch.from_numpy(np.array(samples, np.float32))[None], "sample_rate": rate}


def silence(milliseconds: float, *, channels: int = 1, rate: int = 48_000) -> dict[str, Any]:
    return as_audio(
        np.zeros((channels, max(1, round(rate * milliseconds / 1000))), np.float32), rate, keep=True
    )


def planar(frame: AudioFrame) -> Samples:
    """The samples of a frame as C x N floats in -1..1."""
    samples = frame.samples
    if not frame.format.endswith("p"):
        samples = samples.reshape(-1, frame.channels).T
    floats: Samples = samples.astype(np.float32)
    if samples.dtype == np.uint8:
        floats = (floats - np.float32(128)) / np.float32(128)
    elif np.issubdtype(samples.dtype, np.integer):
        floats /= np.float32(1 << (8 * samples.dtype.itemsize - 1))
    return floats


def spoken(results: Sequence[Any], source: AudioFrame, begun: Fraction) -> list[AudioFrame]:
    """What a workflow gives as sound, as frames from time ``begun`` on. Raises `ProcessorError` in words."""
    frames = []
    for result in results:
        for audio in result if isinstance(result, list) else [result]:
            if not is_blocker(audio):
                frames.append(_frame(audio, source, begun))
    return [frame for frame in frames if frame.nb_samples]


def _frame(audio: Any, source: AudioFrame, begun: Fraction) -> AudioFrame:
    waveform, rate = audio, source.rate
    if isinstance(audio, Mapping):
        waveform, rate = audio.get("waveform"), int(audio.get("sample_rate") or source.rate)
    samples = _samples(waveform)
    channels = samples.shape[0]
    if channels == 1 and source.channels > 1:
        samples, channels = np.repeat(samples, source.channels, axis=0), source.channels
    if channels == source.channels:
        layout = source.layout
    elif channels in _LAYOUTS:
        layout = _LAYOUTS[channels]
    else:
        samples, layout = samples.mean(axis=0, keepdims=True), "mono"
    frame = AudioFrame(
        np.ascontiguousarray(samples),
        round(begun * rate),
        Fraction(1, rate),
        rate=rate,
        format="fltp",
        layout=layout,
    )
    frame.timeline, frame.side_data = source.timeline.copy(), source.side_data
    return frame


def _samples(waveform: Any) -> Samples:
    """B x C x N, C x N or N samples as C x N; several of a batch one after the other."""
    shape = getattr(waveform, "shape", None)
    if shape is None or not 1 <= len(shape) <= 3:
        told = "nothing" if waveform is None else type(waveform).__name__
        raise ProcessorError(f"SaveAudioTensor: expected AUDIO with a waveform of B x C x N, got {told}")
    if hasattr(waveform, "detach"):
        waveform = waveform.detach().to("cpu").float().numpy()
    samples = np.asarray(waveform, np.float32)
    if samples.ndim == 1:
        samples = samples[None]
    elif samples.ndim == 3:
        samples = np.concatenate(list(samples), axis=1) if len(samples) else np.zeros((1, 0), np.float32)
    return np.clip(np.nan_to_num(samples), -1.0, 1.0)

"""Sound of any rate, format and layout into Opus packets of 20 ms, in step with the pictures (RFC 6716)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt

from stream.clock import TICKS, to_ticks
from stream.errors import CodecError, InvalidInput
from stream.frames import AudioFrame, Timeline
from stream.samples import SAMPLE_TYPES
from stream.units import AudioParameters, EncodedUnit

RATE = 48_000
FRAME = 960
TOLERANCE = 0.03
"""Seconds by which timestamps may stray from the samples before the sound is moved."""
MAX_FILL = 2.0
"""Seconds of silence that a gap is filled with at most; after a longer one the sound begins anew."""

# Of 0 to 10. Nothing is heard to be gained above 7, at almost twice the time.
COMPLEXITY = {"compression_level": "7"}
_ONE = np.float32(1)
_SAMPLE = Fraction(1, RATE)
_DURATION = FRAME * TICKS // RATE
_ERRORS = (av.error.FFmpegError, ValueError)


@dataclass(frozen=True, slots=True)
class AudioEncoderSettings:
    """``bitrate`` in bits/s, 0 for 64 kbit/s a channel; ``channels`` 1 or 2, 0 for the first frame's."""

    bitrate: int = 0
    channels: int = 0

    def __post_init__(self) -> None:
        if self.bitrate and not 6_000 <= self.bitrate <= 510_000:
            raise InvalidInput(f"bitrate must be 6000 to 510000, not {self.bitrate}", field="bitrate")
        if self.channels not in (0, 1, 2):
            raise InvalidInput(f"channels must be 1 or 2, not {self.channels}", field="channels")


class AudioEncoder:
    """Encodes one track; used by one thread at a time.

    Mono stays mono, stereo stays stereo, more channels become stereo; what the first frame settles holds.
    Sound runs on by its samples: timestamps that stray by less than `TOLERANCE` (the rounding of 1/90000 s,
    a source's jitter) change nothing; a gap is filled with silence, an overlap is cut off, and ``moved``
    counts both. Samples are clamped to -1..1.
    """

    def __init__(self, settings: AudioEncoderSettings | None = None) -> None:
        self._settings = settings or AudioEncoderSettings()
        self._context: av.AudioCodecContext | None = None
        self._channels = 0
        self._resampler: av.AudioResampler | None = None
        self._source: tuple[str, str, int] | None = None
        # n x channels, as Opus takes them.
        self._held = np.zeros((0, 0), np.float32)
        # When (1/90000 s) the next sample is due by the samples so far; None before the first.
        self._expected: float | None = None
        # The first held sample's place on the time axis, in samples of 48 kHz.
        self._position = 0
        self._to_drop = 0
        self._timeline = Timeline()
        self.moved = 0

    @property
    def parameters(self) -> AudioParameters | None:
        """None until the first frame has settled the channels."""
        if self._context is None:
            return None
        return AudioParameters(self._channels, extradata=self._context.extradata or b"")

    def encode(self, frame: AudioFrame) -> list[EncodedUnit]:
        """Samples in, the packets that they complete out; ``pts`` is when a packet's sound is to be heard.

        It lies before the frame's time by what the codec looks ahead (6.5 ms). Raises `CodecError` where it
        cannot be encoded.
        """
        if frame.nb_samples == 0:
            return []
        pts = to_ticks(frame)
        units = self._align(pts)
        try:
            if self._context is None:
                self._channels = self._settings.channels or min(2, frame.channels)
                self._held = self._silence(0)
                self._context = self._open()
            samples = self._resampled(frame)
        except _ERRORS as error:
            raise CodecError(f"sound cannot be encoded: {error}") from error
        assert self._expected is not None
        self._expected += frame.nb_samples * TICKS / frame.rate
        self._timeline = frame.timeline
        self._hold(samples)
        return units + self._packets()

    def flush(self) -> list[EncodedUnit]:
        """What is held, the last packet filled up with silence; the next frame begins anew."""
        if self._context is None or self._expected is None:
            return []
        self._hold(self._drained())
        self._hold(self._silence(-len(self._held) % FRAME))
        units = self._packets()
        units += [self._unit(packet) for packet in self._context.encode(None)]
        self._context = self._open()
        self._expected = None
        self._to_drop = 0
        return units

    # -- time ----------------------------------------------------------------------------------------------

    def _align(self, pts: int) -> list[EncodedUnit]:
        """Bring samples and timestamps together where they have parted."""
        units: list[EncodedUnit] = []
        if self._expected is not None:
            gap = (pts - self._expected) / TICKS
            if abs(gap) <= TOLERANCE:
                return []
            self.moved += 1
            if gap > MAX_FILL:
                units = self.flush()
        if self._expected is None:
            self._position = round(pts * RATE / TICKS)
        else:
            self._hold(self._drained())
            missing = round(pts * RATE / TICKS) - self._position - len(self._held)
            self._hold(self._silence(max(0, missing)))
            self._to_drop = max(0, -missing)
        self._expected = pts
        return units

    # -- samples -------------------------------------------------------------------------------------------

    def _silence(self, samples: int) -> npt.NDArray[np.float32]:
        return np.zeros((samples, self._channels), np.float32)

    def _hold(self, samples: npt.NDArray[np.float32]) -> None:
        if self._to_drop:
            dropped = min(self._to_drop, len(samples))
            self._to_drop -= dropped
            samples = samples[dropped:]
        self._held = np.concatenate((self._held, samples))

    def _resampled(self, frame: AudioFrame) -> npt.NDArray[np.float32]:
        """The frame's samples as n x channels floats of 48 kHz."""
        source = (frame.format, frame.layout, frame.rate)
        if source != self._source:
            self._hold(self._drained())
            self._source = source
        layout = "mono" if self._channels == 1 else "stereo"
        samples = _cleaned(frame)
        if source == ("fltp", layout, RATE):
            return samples.reshape(self._channels, -1).T
        if self._resampler is None:
            self._resampler = av.AudioResampler(format="flt", layout=layout, rate=RATE)
        converted = av.AudioFrame.from_ndarray(samples, format=frame.format, layout=frame.layout)
        converted.sample_rate = frame.rate
        return self._joined(self._resampler.resample(converted))

    def _drained(self) -> npt.NDArray[np.float32]:
        """What the resampler still holds; the next frame gets a fresh one."""
        resampler, self._resampler = self._resampler, None
        return self._silence(0) if resampler is None else self._joined(resampler.resample(None))

    def _joined(self, frames: list[av.AudioFrame]) -> npt.NDArray[np.float32]:
        parts = [each.to_ndarray().reshape(-1, self._channels) for each in frames if each is not None]
        return np.concatenate(parts) if parts else self._silence(0)

    # -- packets -------------------------------------------------------------------------------------------

    def _packets(self) -> list[EncodedUnit]:
        """Encode as many whole packets as are held."""
        assert self._context is not None
        units: list[EncodedUnit] = []
        whole = len(self._held) // FRAME * FRAME
        if not whole:
            return units
        # The ufuncs themselves: ndarray.clip takes as long for its checks as for a packet's samples.
        clamped = np.maximum(np.minimum(self._held[:whole], _ONE), -_ONE)
        self._held = self._held[whole:]
        for begin in range(0, whole, FRAME):
            block = clamped[begin : begin + FRAME].reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout=self._context.layout.name)
            frame.sample_rate = RATE
            frame.pts, frame.time_base = self._position, _SAMPLE
            self._position += FRAME
            try:
                units += [self._unit(packet) for packet in self._context.encode(frame)]
            except _ERRORS as error:
                raise CodecError(f"Opus failed: {error}") from error
        return units

    def _unit(self, packet: av.Packet[Any]) -> EncodedUnit:
        timeline = self._timeline.copy()
        timeline.stamp("encoded")
        samples = self._position if packet.pts is None else packet.pts
        pts = round(samples * TICKS / RATE)
        return EncodedUnit("audio", bytes(packet), pts, _DURATION, timeline=timeline, codec="opus")

    def _open(self) -> av.AudioCodecContext:
        try:
            context = av.CodecContext.create("libopus", "w")
            assert isinstance(context, av.AudioCodecContext)
            context.sample_rate = RATE
            context.layout = "mono" if self._channels == 1 else "stereo"
            context.format = "flt"
            context.time_base = _SAMPLE
            context.bit_rate = self._settings.bitrate or 64_000 * self._channels
            context.options = {
                "frame_duration": "20",
                "application": "audio",
                "vbr": "constrained",
                **COMPLEXITY,
            }
            context.open()
        except _ERRORS as error:
            raise CodecError(f"Opus cannot be encoded here: {error}") from error
        return context


def _cleaned(frame: AudioFrame) -> npt.NDArray[Any]:
    """The samples in the type that their format names, without NaN, which a resampler would never forget."""
    samples = frame.samples
    # A sum of which one part is not finite is not finite either.
    if samples.dtype.kind == "f" and not math.isfinite(samples.sum()):
        samples = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
    return np.ascontiguousarray(samples, dtype=SAMPLE_TYPES.get(frame.format, samples.dtype))

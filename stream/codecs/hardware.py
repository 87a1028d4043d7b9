"""Whether this machine decodes and encodes on an NVIDIA device: tried out once, in earnest, and reported."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av
import av.error
from av.codec.hwaccel import HWAccel

from stream.errors import CodecError
from stream.units import TS_TIME_BASE

log = logging.getLogger(__name__)

HardwarePolicy = Literal["auto", "off", "require"]
FallbackCallback = Callable[[str], None]

DEVICE = "cuda"
NVENC = "h264_nvenc"
NVDEC_CODECS = ("h264", "hevc")

_TRIAL_SIZE = 256


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of trying a device; ``reason`` says why not."""

    available: bool
    reason: str = ""


class Hardware:
    """The device's abilities. Each is tried when it is first asked for (some 100 ms), then remembered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trials: dict[str, Trial] = {}

    def decoding(self) -> Trial:
        """Whether NVDEC decodes a picture of H.264."""
        return self._tried("nvdec", _try_nvdec)

    def encoding(self) -> Trial:
        """Whether NVENC encodes a picture to H.264."""
        return self._tried("nvenc", _try_nvenc)

    def report(self) -> dict[str, Any]:
        """``decode`` and ``encode``, each with ``name``, ``available`` and ``reason`` (None where it is)."""
        trials = {"decode": ("nvdec", self.decoding()), "encode": ("nvenc", self.encoding())}
        return {
            key: {"name": name, "available": trial.available, "reason": trial.reason or None}
            for key, (name, trial) in trials.items()
        }

    def _tried(self, name: str, attempt: Callable[[], None]) -> Trial:
        with self._lock:
            trial = self._trials.get(name)
            if trial is None:
                trial = self._trials[name] = _outcome(attempt)
                log.info("%s: %s", name, "available" if trial.available else trial.reason)
            return trial


HARDWARE = Hardware()


def report() -> dict[str, Any]:
    """The abilities of this machine, as `Hardware.report` gives them."""
    return HARDWARE.report()


def wants_hardware(policy: HardwarePolicy, trial: Callable[[], Trial]) -> bool:
    """Whether to use the device; raises `CodecError` where it is required and not there."""
    if policy == "off":
        return False
    found = trial()
    if policy == "require" and not found.available:
        raise CodecError(
            f"the hardware codec that is required cannot be used: {found.reason}", field="hardware"
        )
    return found.available


def _outcome(attempt: Callable[[], None]) -> Trial:
    try:
        attempt()
    except (av.error.FFmpegError, NotImplementedError, ValueError) as error:
        return Trial(False, f"no NVIDIA device that FFmpeg can open: {error or type(error).__name__}")
    return Trial(True)


def nvdec_context(codec: str) -> av.VideoCodecContext:
    """A decoder on the device; where a stream does not fit it, FFmpeg goes on in software by itself."""
    context = av.CodecContext.create(codec, "r", hwaccel=HWAccel(DEVICE, allow_software_fallback=True))
    assert isinstance(context, av.VideoCodecContext)
    return context


def _try_nvdec() -> None:
    strict = HWAccel(DEVICE, allow_software_fallback=False)
    context = av.CodecContext.create("h264", "r", hwaccel=strict)
    assert isinstance(context, av.VideoCodecContext)
    frames = [frame for packet in _trial_pictures("libx264", {}) for frame in context.decode(packet)]
    frames += context.decode(None)
    if not frames:
        raise ValueError("the device decoded no picture")


def _try_nvenc() -> None:
    if not _trial_pictures(NVENC, {"delay": "0", "bf": "0"}):
        raise ValueError("the device encoded no picture")


def _trial_pictures(codec: str, options: dict[str, str]) -> Sequence[av.Packet[Any]]:
    """One black picture, encoded."""
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width = context.height = _TRIAL_SIZE
    context.pix_fmt = "yuv420p"
    context.time_base = TS_TIME_BASE
    context.framerate = Fraction(30)
    context.options = options
    frame = av.VideoFrame(_TRIAL_SIZE, _TRIAL_SIZE, "yuv420p")
    for plane, value in zip(frame.planes, (16, 128, 128), strict=True):
        plane.update(bytes((value,)) * plane.buffer_size)
    frame.pts, frame.time_base = 0, TS_TIME_BASE
    return [*context.encode(frame), *context.encode(None)]

"""What is agreed on about formats: H.264's profile-level-id (RFC 6184, 8.1), Opus (RFC 7587), the choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from stream.units import Profile, Rendition

RECEIVED_LEVEL = 0x34
"""Level 5.2: what the decoders here take."""
NOMINAL_LEVEL = 31
"""Browsers always say 3.1 and take far more; only a level below it is a limit that somebody means."""
_LARGEST = {10: (176, 144), 20: (352, 288), 21: (480, 352), 30: (720, 576)}
"""Largest pictures by level_idc up to the key (ITU-T H.264, table A-1)."""
SENT_PROFILES: tuple[Profile, ...] = ("high", "main", "constrained_baseline")
"""What viewers are given, best first."""


@dataclass(frozen=True, slots=True)
class H264Profile:
    """A profile-level-id, read. ``bits`` are its first two bytes as they were offered."""

    name: Profile
    bits: int
    level: int

    def answered(self, *, asymmetric: bool) -> str:
        """The profile-level-id of the answer: the same profile, with the level that we receive."""
        level = RECEIVED_LEVEL if asymmetric else self.level
        return f"{self.bits:04x}{level:02x}"

    @property
    def max_size(self) -> tuple[int, int] | None:
        """The largest picture that the other side says it takes; None where it does not mean a limit."""
        if self.level >= NOMINAL_LEVEL:
            return None
        return next(size for level, size in _LARGEST.items() if self.level <= level)


def read_profile(text: str | None) -> H264Profile | None:
    """A profile-level-id as hexadecimal text; None for one that cannot be met.

    Its absence means Constrained Baseline at level 3.1 in practice (RFC 6184 says Baseline, level 1).
    """
    try:
        value = int("42e01f" if text is None else text, 16)
    except ValueError:
        return None
    if not 0 <= value < 1 << 24 or (text is not None and len(text) != 6):
        return None
    idc, flags, level = value >> 16, value >> 8 & 0xFF, value & 0xFF
    name = _profile_name(idc, flags)
    return None if name is None or not 9 <= level <= 62 else H264Profile(name, value >> 8, level)


def _profile_name(idc: int, flags: int) -> Profile | None:
    if idc == 0x42:
        return "constrained_baseline" if flags & 0x40 else "baseline"
    if idc == 0x4D:
        return "constrained_baseline" if flags & 0x80 else "main"
    if idc == 0x58 and flags & 0xC0 == 0xC0:
        return "constrained_baseline"
    # Constrained High forbids interlacing and B pictures, neither of which we make.
    return "high" if idc == 0x64 and flags & 0xF3 == 0 else None


@dataclass(frozen=True, slots=True)
class OfferedVideo:
    """One video format of an offer that we can handle. ``rtx`` is the payload type of its retransmissions."""

    codec: Literal["h264", "vp8"]
    payload_type: int
    profile: H264Profile | None = None
    packetization_mode: int = 1
    asymmetric: bool = True
    rtx: int | None = None
    feedback: frozenset[str] = frozenset()
    parameter_sets: str = ""
    """sprop-parameter-sets of the offer."""

    @property
    def can_be_sent(self) -> bool:
        """Whether we can send it: pictures must be allowed to span packets."""
        return self.codec == "vp8" or self.packetization_mode == 1

    @property
    def rendition(self) -> Rendition:
        """The encoding that a viewer with this format gets."""
        if self.codec == "vp8" or self.profile is None:
            return Rendition("vp8", "high", "viewers")
        # A Constrained Baseline stream is a Baseline stream.
        name = "constrained_baseline" if self.profile.name == "baseline" else self.profile.name
        return Rendition("h264", name, "viewers", self.profile.max_size)

    def parameters(self) -> dict[str, str]:
        """The ``fmtp`` of the answer."""
        if self.profile is None:
            return {}
        answer = {
            "packetization-mode": str(self.packetization_mode),
            "profile-level-id": self.profile.answered(asymmetric=self.asymmetric),
        }
        return {"level-asymmetry-allowed": "1", **answer} if self.asymmetric else answer


@dataclass(frozen=True, slots=True)
class OfferedAudio:
    """Opus as it was offered."""

    payload_type: int
    feedback: frozenset[str] = field(default_factory=frozenset)

    @staticmethod
    def parameters() -> dict[str, str]:
        """The ``fmtp`` of the answer: stereo both ways, and in-band error correction."""
        return {"minptime": "10", "useinbandfec": "1", "stereo": "1", "sprop-stereo": "1"}


def choose_video(
    offered: Sequence[OfferedVideo], *, receive: bool, send: bool, running: Sequence[Rendition] = ()
) -> OfferedVideo | None:
    """The format to answer with: H.264 before VP8.

    Where we only send, a rendition that is encoded already (``running``) before a better profile, so that
    viewers share; where we receive, the other side's own order, because it knows what it encodes best.
    """
    usable = [video for video in offered if video.can_be_sent or not send]
    h264 = [video for video in usable if video.codec == "h264"]
    if not h264:
        return usable[0] if usable else None
    if receive:
        # Packets of one NAL unit each (mode 0) are taken where nothing better is offered.
        return next((video for video in h264 if video.packetization_mode == 1), h264[0])
    return min(h264, key=lambda video: (video.rendition not in running, _rank(video.rendition.profile)))


def _rank(profile: Profile) -> int:
    return SENT_PROFILES.index(profile)

"""What a viewer's connection carries, from what its browser reports. Pure; moments are in seconds.

The receiver's estimate (REMB, draft-alvestrand-rmcat-remb) is no limit by itself: a browser that gets a still
picture cannot know more than that passes, says little more than it gets, and corrects itself by 8 % a second
when the picture moves. So an estimate below what was sent is congestion when it falls, is the first, or does
not move; then it is obeyed at once. Otherwise the bitrate grows slowly. Loss from receiver reports is a brake
beside it, with the limits of draft-ietf-rmcat-gcc, section 6.

All viewers of a rendition share it, and the slowest decides down to a floor. One that stays below the floor
moves to a second, lower rendition, and comes back after a calm time that grows when coming back failed.
"""

from __future__ import annotations

from dataclasses import dataclass

from stream.renditions import BitrateRange

GROWTH = 0.08
"""Share by which the bitrate grows in a second without trouble."""
CONGESTED = 0.9
"""An estimate below this share of what was sent may be a sign of congestion."""
FALLING = 0.97
"""It is one below this share of the estimate before it."""
STUCK = 3.0
"""It is one when it has not grown for so many seconds, though more was sent."""
OBEYED = 0.95
"""Share of such an estimate that is used, so that what waits in the network drains."""
USED = 0.6
"""Share of the bitrate that must be in use for it to grow: nothing is known of what was never sent."""
LOSSY = 0.10
CLEAN = 0.02
CALM = 2.0
"""Seconds after trouble before the bitrate grows again."""
BELOW = 2.0
"""Seconds below the floor after which a viewer moves to the lower rendition."""
RETURN = 10.0
RETURN_MAX = 160.0
"""Seconds without trouble in the lower rendition before it is left, at first and at most."""
SETTLED = 30.0
"""A return that failed within so many seconds makes the next one wait twice as long."""


@dataclass(frozen=True, slots=True)
class ViewerLimits:
    """Bits a second of the picture: of the rendition for all, and of the one for those who are too slow."""

    main: BitrateRange
    low: BitrateRange


class ViewerRate:
    """One viewer's share: `target` for its rendition, `low` for which of the two it should take."""

    def __init__(self, limits: ViewerLimits, start: int | None = None) -> None:
        """``start``: what the rendition has when the viewer joins; nothing speaks against it yet."""
        self._limits = limits
        self.low = False
        self.target = limits.main.start if start is None else limits.main.clamped(start)
        self.moves = 0
        self._estimate: int | None = None
        self._stuck_since: float | None = None
        self._trouble_at = float("-inf")
        self._grown_at: float | None = None
        self._below_since: float | None = None
        self._moved_at = float("-inf")
        self._wait = RETURN

    def estimate(self, bits: int, sent: int, now: float) -> None:
        """The receiver says that it can take ``bits`` a second; ``sent`` of pictures went there in the last
        one."""
        before, self._estimate = self._estimate, bits
        content_is_still = not self.low and sent < self._limits.main.lowest
        if bits >= CONGESTED * sent or content_is_still or (before is not None and bits > before):
            self._stuck_since = None
            self._grow(sent, now)
        elif before is None or bits < FALLING * before:
            self._reduce(bits * OBEYED, now)
        elif self._stuck_since is None:
            self._stuck_since = now
            self._hold(now)
        elif now - self._stuck_since >= STUCK:
            self._reduce(bits * OBEYED, now)
        else:
            self._hold(now)

    def loss(self, fraction: float, sent: int, now: float) -> None:
        """A receiver report: ``fraction`` (0..1) of the packets since the last one is missing."""
        if fraction > LOSSY:
            self._reduce(self.target * (1 - 0.5 * min(fraction, 1.0)), now)
        elif fraction < CLEAN:
            self._grow(sent, now)
        else:
            self._hold(now)

    # -- inside ----------------------------------------------------------------------------------------

    @property
    def _range(self) -> tuple[int, int]:
        """Between what `target` moves. Below the floor is where it shows that the viewer is too slow."""
        return self._limits.low.lowest, (self._limits.low if self.low else self._limits.main).highest

    def _hold(self, now: float) -> None:
        self._grown_at = now
        self._decide(now)

    def _reduce(self, bits: float, now: float) -> None:
        self._trouble_at = self._grown_at = now
        self._stuck_since = None
        lowest, highest = self._range
        self.target = min(max(int(min(bits, self.target)), lowest), highest)
        self._decide(now)

    def _grow(self, sent: int, now: float) -> None:
        passed = 0.0 if self._grown_at is None else min(max(now - self._grown_at, 0.0), 1.0)
        self._grown_at = now
        if now - self._trouble_at >= CALM and sent >= USED * self.target:
            self.target = min(int(self.target * (1 + GROWTH * passed)), self._range[1])
        self._decide(now)

    def _decide(self, now: float) -> None:
        if self.low:
            if now - max(self._trouble_at, self._moved_at) >= self._wait:
                self._move(False, now)
        elif self.target >= self._limits.main.lowest:
            self._below_since = None
            if now - self._moved_at > SETTLED:
                self._wait = RETURN
        elif self._below_since is None:
            self._below_since = now
        elif now - self._below_since >= BELOW:
            if self.moves and now - self._moved_at <= SETTLED:
                self._wait = min(self._wait * 2, RETURN_MAX)
            self._move(True, now)

    def _move(self, low: bool, now: float) -> None:
        self.low, self._moved_at, self._below_since = low, now, None
        self.moves += 1
        if low:
            self.target = min(self.target, self._limits.low.highest)
        else:
            self.target = max(self.target, self._limits.main.lowest)


class SentRate:
    """Bits a second that were sent, over the last whole ten tenths of a second."""

    SPAN = 0.1
    SPANS = 11

    def __init__(self) -> None:
        self._spans = [0] * self.SPANS
        self._at = 0

    def add(self, size: int, now: float) -> None:
        """``size`` bytes left."""
        self._advance(now)
        self._spans[self._at % self.SPANS] += size

    def bits(self, now: float) -> int:
        self._advance(now)
        return (sum(self._spans) - self._spans[self._at % self.SPANS]) * 8

    def _advance(self, now: float) -> None:
        at = int(now / self.SPAN)
        for index in range(max(self._at + 1, at - self.SPANS + 1), at + 1):
            self._spans[index % self.SPANS] = 0
        self._at = max(self._at, at)


@dataclass(frozen=True, slots=True)
class ReceiveSettings:
    """Bits a second that a publisher's pictures may have: with what it begins, and between what it moves."""

    start: int = 2_500_000
    lowest: int = 300_000
    highest: int = 12_000_000


RECEIVING = ReceiveSettings()


class ReceiveLimit:
    """What we allow a publisher to send: the REMB that goes to it.

    A publisher begins low and goes where the estimate lets it, so the estimate begins at ``start`` and not
    at what arrives. It falls on congestion, for which a delay that grows must be seen ``REPEATED`` times
    within a second (one sight of it is as likely this program's own pause), or packets be lost.
    """

    REPEATED = 3
    INTERVAL = 0.5
    GROWTH = 0.15

    def __init__(self, settings: ReceiveSettings) -> None:
        self.lowest, self.highest = settings.lowest, settings.highest
        self.bits = min(max(settings.start, self.lowest), self.highest)
        self._overused: list[float] = []
        self._trouble_at = float("-inf")
        self._grown_at: float | None = None
        self._told_at = float("-inf")
        self._told = 0

    def delay(self, overused: bool, arriving: int, now: float) -> None:
        """Whether the delay was growing, and the bits a second that arrive."""
        if not overused:
            return
        self._overused = [at for at in self._overused if now - at < 1.0] + [now]
        if len(self._overused) >= self.REPEATED:
            self._overused.clear()
            self._fall(0.85 * arriving, now)

    def loss(self, fraction: float, arriving: int, now: float) -> None:
        """The share of packets (0..1) that did not come in the last second, retransmissions aside."""
        if fraction > LOSSY:
            self._fall(arriving * (1 - 0.5 * fraction), now)

    def due(self, now: float) -> int | None:
        """The estimate when it is time to send it: twice a second, and at once when it has fallen."""
        passed = 0.0 if self._grown_at is None else min(max(now - self._grown_at, 0.0), 1.0)
        if now - self._trouble_at >= CALM:
            self.bits = min(int(self.bits * (1 + self.GROWTH * passed)), self.highest)
        self._grown_at = now
        if now - self._told_at < self.INTERVAL and self.bits >= self._told:
            return None
        self._told_at, self._told = now, self.bits
        return self.bits

    def _fall(self, bits: float, now: float) -> None:
        if now - self._trouble_at < 0.3:
            return
        self._trouble_at = now
        self.bits = min(self.bits, max(int(bits), self.lowest))

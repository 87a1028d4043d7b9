"""Who may load what on a device that several engines share: the rules, without clock, loop or sockets.

The worker has one `DeviceBook` for each device. What engines say goes in, what they are to be told comes out:
a request is granted at once, or after others have released what stands in its way, or denied with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from headrace.models.errors import ModelTooLarge, NoRoom
from headrace.models.ledger import Entry, Ledger
from headrace.models.refs import ModelKey
from headrace.models.reports import EntryReport
from stream.errors import HeadraceError

SHARED_PARTS = ("file:", "held:")
"""How names of parts begin that are no engine's own (`headrace.models.memory.parts_of`)."""
SHARE = 0.8
"""Of a device's memory, where no budget is set: the rest is for activations and other programs."""

Owned = tuple[str, ModelKey]
"""An engine and what it holds."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The engine may load now."""

    engine: str
    request: int


@dataclass(frozen=True, slots=True)
class Deny:
    """The engine must not load."""

    engine: str
    request: int
    error: HeadraceError


@dataclass(frozen=True, slots=True)
class Release:
    """The engine is asked to let go of what is idle among ``keys``; it answers with what went."""

    engine: str
    keys: tuple[ModelKey, ...]


Action = Grant | Deny | Release


@dataclass(slots=True)
class _Wish:
    """A load that waits for its grant."""

    engine: str
    request: int
    key: ModelKey
    size: int
    until: float
    live: bool
    asked: set[Owned] = field(default_factory=set)
    """What others have been asked to release for it and have not answered."""


class DeviceBook:
    """The memory of one device. ``budget``: bytes; None: `SHARE` of the memory that engines report.

    Times are seconds of any clock that does not go back.
    """

    def __init__(self, budget: int | None = None) -> None:
        self._fixed = budget
        self._ledger: Ledger[Owned] = Ledger(budget)
        self._wishes: list[_Wish] = []
        self._reports: dict[str, tuple[EntryReport, ...]] = {}
        self._taken: dict[str, int] = {}

    # -- what engines say ------------------------------------------------------------------------------

    def report(
        self,
        engine: str,
        entries: Sequence[EntryReport],
        total: int,
        now: float,
        *,
        live: bool = False,
        taken: int | None = None,
    ) -> list[Action]:
        """Everything that ``engine`` holds at the moment, and how much memory the device has in all.

        ``live``: it works on live streams, so that it keeps what it has. ``taken``: as in `hold`, where the
        engine tells it with its entries.
        """
        if self._fixed is None and total > 0:
            self._ledger.budget = int(total * SHARE)
        self._reports[engine] = tuple(entries)
        there = {told.key for told in entries}
        for entry in self._of(engine):
            if entry.key[1] not in there:
                self._ledger.drop(entry.key)
        for told in entries:
            if told.state != "loading":
                self._keep(engine, told, live)
        if taken is not None:
            self._taken[engine] = taken
        self._count_held(engine)
        return self._settle(now)

    def _keep(self, engine: str, told: EntryReport, live: bool) -> None:
        owned = (engine, told.key)
        if owned not in self._ledger:
            # Loaded without our leave, or before we knew.
            self._ledger.put(Entry(owned, {}))
        entry = self._ledger[owned]
        # Two engines may have the same model each for itself.
        entry.parts = {
            part if part.startswith(SHARED_PARTS) else f"{engine} {part}": size
            for part, size in told.parts.items()
        }
        entry.state = "loaded"
        entry.leases, entry.pinned, entry.live = told.leases, told.pinned, live
        entry.used = int(told.last_used * 1e6)

    def request(
        self,
        engine: str,
        request: int,
        key: ModelKey,
        size: int,
        now: float,
        patience: float,
        *,
        live: bool = False,
    ) -> list[Action]:
        """``engine`` wants to load ``size`` bytes; it is answered within ``patience`` seconds and a tick.

        ``live``: for a live stream, so before what others wait for.
        """
        ahead = sum(wish.live for wish in self._wishes) if live else len(self._wishes)
        self._wishes.insert(ahead, _Wish(engine, request, key, size, now + patience, live))
        return self._settle(now)

    def released(
        self, engine: str, keys: Sequence[ModelKey], gone: Sequence[ModelKey], now: float
    ) -> list[Action]:
        """Of ``keys``, which it was asked to release, ``engine`` has released those that are ``gone``."""
        for key in keys:
            owned = (engine, key)
            if key in gone:
                self._ledger.drop(owned)
            elif owned in self._ledger:
                # In use again, which its next report will confirm, or say otherwise.
                entry = self._ledger[owned]
                entry.leaving, entry.leases = False, max(1, entry.leases)
            for wish in self._wishes:
                wish.asked.discard(owned)
        self._count_held(engine)
        return self._settle(now)

    def lost(self, engine: str, now: float) -> list[Action]:
        """The engine has ended: nothing of it is left."""
        self._reports.pop(engine, None)
        self._taken.pop(engine, None)
        self._ledger.held.pop(engine, None)
        self._wishes = [wish for wish in self._wishes if wish.engine != engine]
        for entry in self._of(engine):
            self._ledger.drop(entry.key)
        for wish in self._wishes:
            wish.asked = {owned for owned in wish.asked if owned[0] != engine}
        return self._settle(now)

    def hold(self, name: str, size: int, now: float) -> list[Action]:
        """``name`` (an engine, another program) has ``size`` bytes of the device for itself alone.

        What of them its entries account for does not count twice; the rest cannot be reclaimed.
        """
        self._taken[name] = size
        self._count_held(name)
        return self._settle(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed: what waited too long is denied."""
        return self._settle(now)

    # -- what is known ---------------------------------------------------------------------------------

    @property
    def budget(self) -> int | None:
        return self._ledger.budget

    @property
    def used(self) -> int:
        return self._ledger.used

    @property
    def reclaimable(self) -> int:
        return self._ledger.reclaimable

    @property
    def held(self) -> Mapping[str, int]:
        return dict(self._ledger.held)

    @property
    def waiting(self) -> int:
        """Loads that are neither granted nor denied."""
        return len(self._wishes)

    def entries(self) -> list[tuple[str, EntryReport]]:
        """What each engine holds, as it was told last."""
        return [(engine, told) for engine, entries in self._reports.items() for told in entries]

    # -- counting --------------------------------------------------------------------------------------

    def _count_held(self, name: str) -> None:
        """What ``name`` has taken beside its entries; while it loads as much as before, where that can be."""
        if name not in self._taken:
            return
        entries = self._of(name)
        loaded = private_bytes(entry for entry in entries if entry.state == "loaded")
        loading = sum(entry.size for entry in entries if entry.state == "loading")
        most = max(0, self._taken[name] - loaded)
        least = max(0, most - loading)  # with all of the load done, and nothing of it reported
        self._ledger.held[name] = min(max(self._ledger.held.get(name, 0), least), most)

    # -- deciding --------------------------------------------------------------------------------------

    def _settle(self, now: float) -> list[Action]:
        """Decide on every wish that can be decided, in their order."""
        actions: list[Action] = []
        for wish in tuple(self._wishes):
            if wish.asked and now < wish.until:
                continue
            decision = self._decide(wish, now)
            if isinstance(decision, (Grant, Deny)):
                self._wishes.remove(wish)
                actions.append(decision)
            elif decision:
                actions += decision
        return actions

    def _decide(self, wish: _Wish, now: float) -> Grant | Deny | list[Action]:
        owned = (wish.engine, wish.key)
        if owned in self._ledger:
            self._ledger.drop(owned)  # a second attempt of the same load
        try:
            out = self._ledger.plan(wish.key.ref, {_part(owned): wish.size}, live=wish.live)
        except ModelTooLarge as error:
            return Deny(wish.engine, wish.request, error)
        except NoRoom as error:
            # A lease may end meanwhile.
            return Deny(wish.engine, wish.request, error) if now >= wish.until else []
        if not out:
            self._ledger.put(Entry(owned, {_part(owned): wish.size}))
            return Grant(wish.engine, wish.request)
        if now >= wish.until:
            error_text = f"model {wish.key.ref} waited for memory that others did not release in time"
            return Deny(wish.engine, wish.request, NoRoom(error_text, field="model_id"))
        wish.asked = set(out)
        for other in out:
            self._ledger[other].leaving = True
        engines = sorted({engine for engine, _ in out})
        return [Release(engine, tuple(key for who, key in out if who == engine)) for engine in engines]

    def _of(self, engine: str) -> list[Entry[Owned]]:
        return [entry for entry in self._ledger.entries if entry.key[0] == engine]


def private_bytes(entries: Iterable[Entry[Owned]]) -> int:
    """Bytes of the parts that are an engine's own: neither mapped from a file nor the holder's."""
    parts: dict[str, int] = {}
    for entry in entries:
        parts.update({part: size for part, size in entry.parts.items() if not part.startswith(SHARED_PARTS)})
    return sum(parts.values())


def _part(owned: Owned) -> str:
    """The name of memory that is reserved for a load."""
    return f"{owned[0]} {owned[1]}"

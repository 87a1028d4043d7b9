"""What is in a device's memory, what may go, and what may come in: plain accounting, no clock, no I/O.

An entry is made of *parts*: pieces of memory with a name and a size. Entries that name the same part share it
(two pipelines on one mapped file), so it counts once and is free only when the last of them has gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from headrace.models.errors import ModelTooLarge, NoRoom, amount

K = TypeVar("K")

EntryState = Literal["loading", "loaded"]


@dataclass(slots=True)
class Entry(Generic[K]):
    """One model in memory or on its way there. ``used`` counts uses of the ledger: greater is later."""

    key: K
    parts: Mapping[str, int]
    state: EntryState = "loading"
    leases: int = 0
    pinned: bool = False
    live: bool = False
    """Of an engine with live streams: never to be given up but for another live load."""
    used: int = 0
    leaving: bool = False
    """Its holder has been asked to let it go; its memory counts until that is done."""

    @property
    def size(self) -> int:
        """Bytes of all its parts, shared or not."""
        return sum(self.parts.values())

    @property
    def idle(self) -> bool:
        return self.state == "loaded" and not (self.leases or self.pinned)

    @property
    def evictable(self) -> bool:
        return self.idle and not self.live


@dataclass(slots=True)
class Ledger(Generic[K]):
    """Entries under a ``budget`` in bytes (None: without a limit).

    `admit` reserves; then `loaded` or `drop` settles. Entries that are loading hold their reservation, so two
    loads never count on the same free bytes. ``held`` is memory that others of the device have and that
    nobody can reclaim, by their names.
    """

    budget: int | None = None
    held: dict[str, int] = field(default_factory=dict)
    _entries: dict[K, Entry[K]] = field(default_factory=dict)
    _uses: int = 0

    # -- what is there ---------------------------------------------------------------------------------

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def __getitem__(self, key: K) -> Entry[K]:
        return self._entries[key]

    @property
    def entries(self) -> tuple[Entry[K], ...]:
        return tuple(self._entries.values())

    @property
    def used(self) -> int:
        """Bytes of all entries, reserved ones with them, each part once; and what is held."""
        return self._bytes(self._entries.values()) + sum(self.held.values())

    @property
    def reclaimable(self) -> int:
        """Bytes that evicting everything evictable would free."""
        kept = [entry for entry in self._entries.values() if not entry.evictable]
        return self._bytes(self._entries.values()) - self._bytes(kept)

    # -- coming and going ------------------------------------------------------------------------------

    def plan(self, name: str, parts: Mapping[str, int], *, live: bool = False) -> tuple[K, ...]:
        """What must go so that ``parts`` fit, least recently used first; changes nothing.

        ``live``: they are for live streams, for which idle entries of live engines go too. Raises
        `ModelTooLarge` when they never fit, `NoRoom` when they do not fit now.
        """
        if self.budget is None:
            return ()
        size = sum(parts.values())
        if size > self.budget:
            raise ModelTooLarge(
                f"model {name} needs {amount(size)}; the budget of the device is {amount(self.budget)}",
                field="model_id",
            )
        fixed = sum(self.held.values())
        kept = dict(self._entries)
        out: list[Entry[K]] = []

        def fits() -> bool:
            return fixed + self._bytes(kept.values(), parts) <= (self.budget or 0)

        # What leaves anyway costs nothing more.
        for entry in sorted(self._entries.values(), key=lambda entry: (not entry.leaving, entry.used)):
            if fits():
                break
            if entry.evictable or (live and entry.idle):
                out.append(kept.pop(entry.key))
        if not fits():
            free = max(0, self.budget - fixed - self._bytes(kept.values()))
            raise NoRoom(
                f"model {name} needs {amount(size)}; {amount(free)} of {amount(self.budget)} can be had now, "
                "the rest is in use or pinned",
                field="model_id",
            )
        # A large late one may have made the small early ones needless; the latest used stay first.
        for entry in sorted(out, key=lambda entry: (entry.leaving, -entry.used)):
            kept[entry.key] = entry
            if fits():
                out.remove(entry)
            else:
                del kept[entry.key]
        return tuple(entry.key for entry in out)

    def admit(self, key: K, parts: Mapping[str, int], *, name: str | None = None) -> tuple[K, ...]:
        """Reserve room for a load and say what must go before it begins; the caller then drops those.

        What must go is marked as leaving: it is not to be leased any more. It may be among what an earlier
        admission was told. Raises as `plan`; then nothing is reserved. `ValueError` for a key that is there.
        """
        if key in self._entries:
            raise ValueError(f"{key} is in the ledger")
        out = self.plan(str(key) if name is None else name, parts)
        for leaving in out:
            self._entries[leaving].leaving = True
        self._entries[key] = Entry(key, dict(parts), used=self._tick())
        return out

    def put(self, entry: Entry[K]) -> None:
        """Add an entry as it is, without asking for room: what is there already, or planned by `plan`."""
        self._entries[entry.key] = entry

    def loaded(self, key: K, parts: Mapping[str, int]) -> None:
        """The load is done; ``parts`` are what was measured, in the place of what was reserved."""
        entry = self._entries[key]
        entry.parts, entry.state, entry.used = dict(parts), "loaded", self._tick()

    def drop(self, key: K) -> None:
        """It is no longer in memory, or never came. Nothing happens for what is not there."""
        self._entries.pop(key, None)

    # -- use -------------------------------------------------------------------------------------------

    def lease(self, key: K) -> None:
        entry = self._entries[key]
        entry.leases += 1
        entry.used = self._tick()

    def release(self, key: K) -> None:
        """Give a lease back; `ValueError` for one too many."""
        entry = self._entries[key]
        if entry.leases <= 0:
            raise ValueError(f"{key} has no lease")
        entry.leases -= 1
        entry.used = self._tick()

    def pin(self, key: K, pinned: bool = True) -> None:
        self._entries[key].pinned = pinned

    def idle(self) -> tuple[K, ...]:
        """Everything evictable, least recently used first."""
        free = [entry for entry in self._entries.values() if entry.evictable]
        return tuple(entry.key for entry in sorted(free, key=lambda entry: entry.used))

    def _tick(self) -> int:
        self._uses += 1
        return self._uses

    @staticmethod
    def _bytes(entries: Iterable[Entry[K]], more: Mapping[str, int] | None = None) -> int:
        """Bytes of the parts of all, each once; of two sizes of one name the greater counts."""
        sizes: dict[str, int] = dict(more or {})
        for entry in entries:
            for part, size in entry.parts.items():
                sizes[part] = max(size, sizes.get(part, 0))
        return sum(sizes.values())

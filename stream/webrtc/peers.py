"""All live peer connections of a worker, by id: limits, those that never connect, and the end of them all."""

from __future__ import annotations

import asyncio
import importlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stream.errors import AtCapacity, Conflict, NotFound
from stream.logs import about_session
from stream.session import Session
from stream.webrtc.bitrate import RECEIVING, ReceiveSettings
from stream.webrtc.ice import IceSettings

if TYPE_CHECKING:
    from stream.webrtc.peer import Peer

log = logging.getLogger(__name__)

Role = Literal["publisher", "viewer", "both"]
PeerFactory = Callable[[IceSettings, Callable[["Peer"], None]], "Peer"]

CONNECT_TIMEOUT = 30.0
"""Seconds in which a peer must be connected."""
CLOSE_TIMEOUT = 1.5
"""Seconds for the end of a peer: more than those of its connection (`adapter.media.CLOSE`, `CLOSE_ICE`)."""
SWEEP = 1.0
REMEMBERED = 32


def new_tag() -> str:
    """A strong entity tag (RFC 9110, 8.8.3) that names one ICE session."""
    return f'"{secrets.token_hex(8)}"'


@dataclass(slots=True, eq=False)
class Entry:
    """A peer, which session it belongs to, and the entity tag of its ICE session."""

    peer: Peer
    session: str
    role: Role
    tag: str = field(default_factory=new_tag)
    since: float = field(default_factory=time.monotonic)
    connected: bool = False
    _held: bool = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """While its answer waits for something else, the other side cannot connect; its time begins after."""
        self._held = True
        try:
            yield
        finally:
            self._held, self.since = False, time.monotonic()

    def is_late(self, limit: float) -> bool:
        """Whether it had ``limit`` s to connect and did not."""
        return not self.connected and not self._held and time.monotonic() - self.since > limit

    def report(self) -> dict[str, Any]:
        return {
            "id": self.peer.id[:8],
            "session": self.session,
            "role": self.role,
            "state": self.peer.state,
            "seconds": round(time.monotonic() - self.since, 1),
            **self.peer.report(),
        }


class PeerTable:
    """Peers by id. At most ``max_viewers`` that only view, and ``max_publishers`` others.

    A peer leaves by itself when it closes. One that is not connected within ``connect_timeout`` s or has
    failed is closed, and `failures` keeps why.
    """

    def __init__(
        self,
        ice: IceSettings,
        *,
        max_viewers: int = 64,
        max_publishers: int = 32,
        connect_timeout: float = CONNECT_TIMEOUT,
        factory: PeerFactory | None = None,
        receiving: ReceiveSettings = RECEIVING,
    ) -> None:
        self.ice = ice
        self.max_viewers = max_viewers
        self.max_publishers = max_publishers
        self.factory = factory
        self._receiving = receiving
        """What makes a peer; None until the first one has loaded aiortc."""
        self.failures: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)
        self._connect_timeout = connect_timeout
        self._entries: dict[str, Entry] = {}
        self._opening = {"publisher": 0, "viewer": 0, "both": 0}
        self.on_left: list[Callable[[Entry], None]] = []
        """Called with each peer that has left."""
        self._sweeper: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self.closed = False

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def check_room(self, role: Role) -> None:
        """Raise `AtCapacity` when no peer of that role could be opened."""
        if self.closed:
            raise AtCapacity("the worker is shutting down")
        viewing = role == "viewer"
        limit, name = (self.max_viewers, "viewers") if viewing else (self.max_publishers, "publishers")
        taken = sum((e.role == "viewer") == viewing for e in self._entries.values())
        taken += sum(n for kind, n in self._opening.items() if (kind == "viewer") == viewing)
        if taken >= limit:
            raise AtCapacity(f"{taken} of {limit} {name} are connected")

    async def open(self, session: str, role: Role) -> Entry:
        """A new peer, entered; the caller answers its offer. Raises `AtCapacity` or `NotInstalled`.

        The first one loads aiortc, in a thread, because that takes longer than a frame.
        """
        self.check_room(role)
        self._opening[role] += 1
        try:
            if self.factory is None:
                module = await asyncio.to_thread(importlib.import_module, "stream.webrtc.peer")
                kind = module.Peer
                self.factory = lambda ice, on_closed: kind(
                    ice, on_closed=on_closed, receiving=self._receiving
                )
            if self.closed:
                raise AtCapacity("the worker is shutting down")
            entry = Entry(self.factory(self.ice, self._left), session, role)
        finally:
            self._opening[role] -= 1
        self._entries[entry.peer.id] = entry
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep(), name="peers that do not connect")
        return entry

    def find(self, peer_id: str, session: str) -> Entry:
        """Raises `NotFound` for an id that is gone, or of another session."""
        entry = self._entries.get(peer_id)
        if entry is None or entry.session != session:
            raise NotFound("there is no such WebRTC session; it may have ended", field="resource")
        return entry

    def check_open(self, entry: Entry) -> None:
        """Raise `AtCapacity` or `Conflict` when a peer was closed while its offer was answered."""
        if self.closed:
            raise AtCapacity("the worker is shutting down")
        if entry.peer.id not in self._entries:
            raise Conflict("the connection was given up before it was answered")

    def of_session(self, session: str) -> list[Entry]:
        return [entry for entry in self if entry.session == session]

    def session_ended(self, session: Session) -> None:
        """Close what belongs to a session that is over."""
        for entry in self.of_session(session.id):
            self._close_soon(entry, "the session has ended")

    async def drop(self, entry: Entry, reason: str) -> None:
        """Close one peer; it leaves after `CLOSE_TIMEOUT` s however far that is."""
        closing = self._track(entry.peer.close(reason))
        try:
            done, _ = await asyncio.wait({closing}, timeout=CLOSE_TIMEOUT)
            if not done:
                log.warning("peer %s takes over %g s to close", entry.peer.id[:8], CLOSE_TIMEOUT)
        finally:
            self._forget(entry.peer)

    async def close(self, reason: str) -> None:
        """Close every peer, all at once and within `CLOSE_TIMEOUT` s, and take no more."""
        self.closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})
        for entry in self:
            self._track(self.drop(entry, reason))
        # Those that close add the task of their peer.
        await asyncio.sleep(0)
        if self._closing:
            await asyncio.wait(self._closing, timeout=CLOSE_TIMEOUT + 0.1)
        late = set(self._closing)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=0.1)

    def report(self) -> dict[str, Any]:
        """What there is, as JSON data."""
        return {"peers": [entry.report() for entry in self], "failures": list(self.failures)}

    # -- those that leave ------------------------------------------------------------------------------

    def _left(self, peer: Peer) -> None:
        entry = self._forget(peer)
        if entry is not None and peer.failure is not None:
            self._note_failure(entry, peer.failure)

    def _forget(self, peer: Peer) -> Entry | None:
        entry = self._entries.pop(peer.id, None)
        if entry is not None:
            for callback in self.on_left:
                callback(entry)
        return entry

    def _note_failure(self, entry: Entry, reason: str) -> None:
        log.warning("%s %s of session %s: %s", entry.role, entry.peer.id[:8], entry.session, reason)
        self.failures.append(
            {"time": time.time(), "session": entry.session, "role": entry.role, "reason": reason}
        )

    def _close_soon(self, entry: Entry, reason: str) -> None:
        with about_session(entry.session):
            self._track(self.drop(entry, reason))

    def _track(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a step of some peer's end, whatever becomes of those who wait for it."""
        task = asyncio.create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closed_one)
        return task

    def _closed_one(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a peer did not close cleanly", exc_info=error)

    async def _sweep(self) -> None:
        while self._entries:
            await asyncio.sleep(min(SWEEP, self._connect_timeout / 2))
            for entry in self:
                state = entry.peer.state
                entry.connected = entry.connected or state == "connected"
                if state == "failed":
                    self._close_soon(entry, "the connection failed")
                elif entry.is_late(self._connect_timeout):
                    if entry.peer.failure is None:
                        paths = entry.peer.describe_paths() or "nothing was tried"
                        self._note_failure(
                            entry, f"not connected within {self._connect_timeout:g} s: {paths}"
                        )
                    self._close_soon(entry, "it did not connect in time")

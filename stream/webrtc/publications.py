"""Sessions that are published to: made by the first publisher of a name, joined by the next ones."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from stream.errors import Conflict, HeadraceError
from stream.ingest import Ingest
from stream.logs import about_session
from stream.requests import StreamStart
from stream.routes import Host
from stream.session import Session
from stream.webrtc.peers import Entry, PeerTable

log = logging.getLogger(__name__)

FIXED = ("width", "height", "max_framerate")
"""Parameters that hold from a session's start to its end."""
CHANNELS = ("publish", "control", "events", "data")
LIVE = 3.0
"""Seconds without media after which a publisher may be replaced by another one of its name."""
GIVE_WAY = 5.0
"""Seconds in which a session that gives way must have ended."""


@dataclass(slots=True)
class Publication:
    """A session, where it is published to, and what its publishers have asked for."""

    session: Session
    ingest: Ingest
    params: dict[str, Any]
    urls: dict[str, str | None] = field(default_factory=dict)
    joining: int = 0
    """Publishers that are being taken."""
    joined: bool = False
    """Whether one was taken."""

    def check(self, request: StreamStart) -> None:
        """Raise `Conflict` for what cannot become of the session while it runs."""
        name = self.session.id
        for fixed in FIXED:
            if fixed in self.changes(request):
                raise Conflict(
                    f"{fixed} holds from the start of session {name!r} to its end; it cannot become "
                    f"{(request.params or {})[fixed]!r} while it runs",
                    field=fixed,
                )
        for channel, url in _urls(request).items():
            if url is not None and url != self.urls.get(channel):
                raise Conflict(
                    f"session {name!r} already runs with another {channel}_url", field=f"{channel}_url"
                )

    def check_free(self) -> None:
        """Raise `Conflict` while somebody publishes whose media arrives."""
        silent = time.monotonic() - self.ingest.heard_at
        if self.ingest.publisher is not None and silent < LIVE:
            raise Conflict(
                f"session {self.session.id!r} has a publisher: its media came {silent:.1f} s ago. End that "
                "one first, or ask for its place with takeover=1",
                field="takeover",
            )

    def changes(self, request: StreamStart) -> dict[str, Any]:
        """The parameters that ``request`` names and that are others than those before."""
        wanted = request.params or {}
        return {k: v for k, v in wanted.items() if k not in self.params or self.params[k] != v}


@dataclass(frozen=True, slots=True)
class Joining:
    """One publisher on its way in."""

    publication: Publication
    request: StreamStart

    @property
    def session(self) -> Session:
        return self.publication.session

    @property
    def ingest(self) -> Ingest:
        return self.publication.ingest

    async def apply(self, entry: Entry) -> None:
        """The last step before ``entry``'s answer goes out: change what runs to what the publisher asked for.

        Raises `Conflict`, and then nothing has changed.
        """
        publication, name = self.publication, self.session.id
        changes = publication.changes(self.request)
        if changes:
            try:
                with entry.held():
                    await self.session.update_params(changes)
            except HeadraceError as error:
                raise Conflict(
                    f"session {name!r} runs and refuses the change: {error.message}",
                    field=error.field,
                    details=error.details,
                ) from error
            publication.params |= changes
        if self.session.ending is not None:
            raise Conflict(f"session {name!r} ended meanwhile: {self.session.ending.reason}")


class Publications:
    """All publications of a `Host`, by name. ``grace``: seconds that a session outlives its publisher."""

    def __init__(self, host: Host, peers: PeerTable, *, grace: float) -> None:
        self._host = host
        self._peers = peers
        self._grace = grace
        self._open: dict[str, Publication] = {}
        host.table.on_ended.append(self._ended)
        peers.on_left.append(self._left)

    def find(self, name: str) -> Publication | None:
        """That of a running session; None where there is none of that name."""
        publication = self._open.get(name)
        return publication if publication is not None and publication.session.ending is None else None

    @asynccontextmanager
    async def join(
        self, name: str, request: StreamStart, *, takeover: bool = False, once: bool = False
    ) -> AsyncIterator[Joining]:
        """Take a publisher in: the body negotiates, and calls `Joining.apply` when nothing else can fail.

        The session is made when there is none of that name; one that was made for publishers of whom none
        came in ends again. ``takeover``: in place of one whose media arrives, too. ``once``: the session ends
        with a publisher that says good-bye. Raises `Conflict` for what cannot change while the session runs,
        when it has another publisher or source, `AtCapacity` when there is no room, and what
        `Host.make_session` raises.
        """
        prepared = None
        if self.find(name) is None and not self._is_taken(name):
            prepared = await self._host.prepare(request)
            await self.make_room()
        publication = self.find(name)
        if publication is None:
            publication = self._make(name, request, once, prepared)
        else:
            publication.check(request)
            if not takeover:
                publication.check_free()
        publication.joining += 1
        try:
            yield Joining(publication, request)
            publication.joined = True
        finally:
            publication.joining -= 1
            if not publication.joining and not publication.joined:
                publication.session.stop("its first publisher could not be taken")

    def _make(self, name: str, request: StreamStart, once: bool, prepared: Any) -> Publication:
        if self._is_taken(name):
            raise Conflict(f"the session {name!r} has a source of its own, or is ending", field="session")
        self._host.table.check_room(name)
        with about_session(name):
            ingest = Ingest(grace=self._grace, end_on_bye=once)
            session = self._host.make_session(name, request, ingest=ingest, prepared=prepared)
            self._host.table.add(session)
            log.info("session %s waits for its publisher", name)
        publication = Publication(session, ingest, dict(request.params or {}), _urls(request))
        self._open[name] = publication
        return publication

    async def make_room(self) -> None:
        """Where every place is taken, end the session that has had no publisher for longest and no viewer."""
        table = self._host.table
        if table.closed or len(table) < table.capacity:
            return
        idle = [publication for publication in self._open.values() if self._is_idle(publication)]
        if not idle:
            return
        oldest = min(idle, key=lambda publication: publication.ingest.present_since)
        log.info(
            "session %s, which nobody publishes to or watches, gives way to a new one", oldest.session.id
        )
        oldest.session.stop("nobody published to it or watched it, and its place was needed")
        await table.wait_ended(oldest.session.id, GIVE_WAY)

    def _is_idle(self, publication: Publication) -> bool:
        session = publication.session
        used = publication.joining or publication.ingest.publisher is not None or session.sinks
        return session.ending is None and not used and not self._peers.of_session(session.id)

    def _is_taken(self, name: str) -> bool:
        return any(session.id == name for session in self._host.table)

    def _left(self, entry: Entry) -> None:
        """Whoever is to publish under a name of his own and goes before he did leaves nothing to wait for."""
        publication = self._open.get(entry.session)
        if publication is None or publication.joining or self._peers.of_session(entry.session):
            return
        if publication.ingest.end_on_bye and not publication.ingest.had_publisher:
            publication.session.stop("its publisher left before it was connected")

    def _ended(self, session: Session) -> None:
        publication = self._open.get(session.id)
        if publication is not None and publication.session is session:
            del self._open[session.id]


def _urls(request: StreamStart) -> dict[str, str | None]:
    return {name: request.url(name) for name in CHANNELS}

"""Sessions that are published to: made by the first publisher of a name, joined by the next ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from stream.errors import Conflict, HeadraceError
from stream.ingest import Ingest
from stream.logs import about_session
from stream.requests import StreamStart
from stream.routes import Host
from stream.session import Session

log = logging.getLogger(__name__)

FIXED = ("width", "height", "max_framerate")
"""Parameters that hold from a session's start to its end."""
CHANNELS = ("publish", "control", "events", "data")


@dataclass(slots=True)
class Publication:
    """A session, where it is published to, and what its publishers have asked for."""

    session: Session
    ingest: Ingest
    params: dict[str, Any]
    urls: dict[str, str | None] = field(default_factory=dict)


class Publications:
    """All publications of a `Host`, by name. ``grace``: seconds that a session outlives its publisher."""

    def __init__(self, host: Host, *, grace: float) -> None:
        self._host = host
        self._grace = grace
        self._open: dict[str, Publication] = {}
        host.table.on_ended.append(self._ended)

    def find(self, name: str) -> Publication | None:
        """That of a running session; None where there is none of that name."""
        publication = self._open.get(name)
        return publication if publication is not None and publication.session.ending is None else None

    async def join(self, name: str, request: StreamStart) -> tuple[Publication, bool]:
        """The publication of that name, and whether it was made now.

        What ``request`` asks for differently than before is applied as a change. Raises `Conflict` when that
        is refused or when the session has another source, `AtCapacity` when there is no room, and what
        `Host.make_session` raises.
        """
        publication = self.find(name)
        if publication is not None:
            await self._change(publication, request)
            return publication, False
        if self._is_taken(name):
            raise Conflict(f"the session {name!r} has a source of its own, or is ending", field="session")
        self._host.table.check_room(name)
        with about_session(name):
            ingest = Ingest(grace=self._grace)
            session = self._host.make_session(name, request, ingest=ingest)
            self._host.table.add(session)
            log.info("session %s waits for its publisher", name)
        publication = Publication(session, ingest, dict(request.params or {}), _urls(request))
        self._open[name] = publication
        return publication, True

    def abandon(self, publication: Publication, reason: str) -> None:
        """End a session whose first publisher did not come about; others keep it."""
        if publication.ingest.publisher is None:
            publication.session.stop(reason)

    async def _change(self, publication: Publication, request: StreamStart) -> None:
        wanted = request.params or {}
        changes = {
            k: v for k, v in wanted.items() if k not in publication.params or publication.params[k] != v
        }
        name = publication.session.id
        for fixed in FIXED:
            if fixed in changes:
                raise Conflict(
                    f"{fixed} holds from the start of session {name!r} to its end; it cannot become "
                    f"{changes[fixed]!r} while it runs",
                    field=fixed,
                )
        for channel, url in _urls(request).items():
            if url is not None and url != publication.urls.get(channel):
                raise Conflict(
                    f"session {name!r} already runs with another {channel}_url", field=f"{channel}_url"
                )
        if not changes:
            return
        try:
            await publication.session.update_params(changes)
        except HeadraceError as error:
            raise Conflict(
                f"session {name!r} runs and refuses the change: {error.message}",
                field=error.field,
                details=error.details,
            ) from error
        publication.params |= changes

    def _is_taken(self, name: str) -> bool:
        return any(session.id == name for session in self._host.table)

    def _ended(self, session: Session) -> None:
        publication = self._open.get(session.id)
        if publication is not None and publication.session is session:
            del self._open[session.id]


def _urls(request: StreamStart) -> dict[str, str | None]:
    return {name: request.url(name) for name in CHANNELS}

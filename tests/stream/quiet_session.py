"""Sessions without transports, for tests of what stands around sessions."""

from __future__ import annotations

import asyncio
from typing import Any

from stream.processor import FrameProcessor
from stream.session import Session, SessionSettings, Source


class Quiet:
    """Side channels that say nothing."""

    async def run(self, session: Session) -> None:
        await asyncio.Event().wait()

    def event(self, event: dict[str, Any], kind: str) -> None:
        pass

    def data(self, emission: object) -> None:
        pass

    async def close(self) -> None:
        pass


def quiet_session(name: str, source: Source | None = None) -> Session:
    """A session that only ends when it is stopped, or with its source."""
    return Session(name, source, FrameProcessor(), Quiet(), SessionSettings())

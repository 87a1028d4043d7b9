"""A session that needs no connection: the test pattern in, and out only to whoever watches."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from stream.pattern import PatternDecoding, PatternSettings
from stream.processor import Emission, FrameProcessor, Params
from stream.session import Session, SessionSettings

log = logging.getLogger(__name__)


class NoSideChannels:
    """Nobody steers the stream from outside, and what it says goes to the log."""

    async def run(self, session: Session) -> str:
        """Until it is cancelled: nothing here ends the stream."""
        await asyncio.Event().wait()
        return "the pattern ended"

    def event(self, event: dict[str, Any], kind: str) -> None:
        log.debug("%s: %s", kind, event)

    def data(self, emission: Emission) -> None:
        log.debug("%s: %s", emission.kind, emission.data)

    async def close(self) -> None:
        """Nothing is open."""


def pattern_session(
    session_id: str,
    processor: FrameProcessor,
    settings: SessionSettings,
    pattern: PatternSettings,
    *,
    start_params: Params | None = None,
) -> Session:
    """A session, not yet started, whose source is the generated pattern and which has no sinks."""
    return Session(
        session_id,
        None,
        processor,
        NoSideChannels(),
        settings,
        start_params=start_params,
        decoding=PatternDecoding(pattern),
    )

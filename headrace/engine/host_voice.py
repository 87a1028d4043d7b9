"""What a session of an engine tells the worker: answers, faults, and the processor's own words."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from headrace.engine.device import poisons
from headrace.engine.host_errors import describe
from headrace.engine.link import Link, LinkError
from stream.errors import HeadraceError, InvalidInput
from stream.processor import Emission

MAX_BACKLOG = 64
"""Messages waiting for the worker above which emissions are dropped."""


class Voice:
    """One session's side of the link. Made on the engine's loop; `emitted` may be called from any thread."""

    def __init__(self, name: str, link: Link, fatal: Callable[[str], None]) -> None:
        self.started = False
        """Whether the stream runs; until then an event of type ``progress`` tells how far loading is."""
        self.progress_at = time.monotonic()
        """When loading last told of progress."""
        self._name = name
        self._link = link
        self._fatal = fatal
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._dropped = 0

    def answer(self, call: int, body: dict[str, Any], fds: Sequence[int] = ()) -> None:
        self._link.send({"op": "answer", "call": call, **body}, fds)

    def fail(self, call: int, error: BaseException) -> None:
        """Answer with an error; one that leaves the device beyond use ends the engine."""
        self.answer(call, {"error": describe(error)})
        if poisons(error):
            self._fatal(f"{type(error).__name__}: {error}")

    def deferred(self, call: int) -> None:
        """What was asked goes on beside the frames; the guardian need not wait for it."""
        self._link.send({"op": "deferred", "call": call})

    def closed(self, error: HeadraceError) -> None:
        """The session is given up, without having been asked to close."""
        self._link.send({"op": "closed", "session": self._name, "error": describe(error)})

    def end(self) -> None:
        if self._dropped:
            self.log(f"{self._dropped} emissions were dropped, because the worker did not read")

    def emitted(self, emission: Emission) -> None:
        """A processor's word, from whichever thread it comes."""
        if emission.kind not in ("text", "data", "event"):
            raise InvalidInput(f"an emission is text, data or event, not {emission.kind!r}", field="kind")
        if emission.kind == "event" and not isinstance(emission.data, dict):
            raise InvalidInput(
                f"an event is a JSON object, not a {type(emission.data).__name__}", field="data"
            )
        if threading.get_ident() == self._thread:
            self._send_emission(emission)
        else:
            self._loop.call_soon_threadsafe(self._send_from_thread, emission)

    def _send_from_thread(self, emission: Emission) -> None:
        try:
            self._send_emission(emission)
        except InvalidInput as error:
            self.log(error.message)

    def _send_emission(self, emission: Emission) -> None:
        body: dict[str, Any] = {"op": "emit", "session": self._name}
        data = emission.data
        opening = not self.started
        if opening and emission.kind == "event" and isinstance(data, dict) and data.get("type") == "progress":
            self.progress_at = time.monotonic()
            body |= {"op": "progress", "message": data.get("message"), "percent": data.get("percent")}
        else:
            body |= {"kind": emission.kind, "data": data, "time": emission.time}
        if self._link.backlog > MAX_BACKLOG:
            self._dropped += 1
            return
        try:
            self._link.send(body)
        except LinkError as error:
            raise InvalidInput(f"an emission that cannot be sent: {error.message}") from error

    def log(self, text: str) -> None:
        print(f"session {self._name}: {text}", file=sys.stderr)  # noqa: T201 (the engine's log is its stderr)

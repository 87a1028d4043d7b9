"""From tokens to text as it streams: whole characters only, and nothing of a stop sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_UNFINISHED = "\ufffd"
_MAX_HELD = 8
"""Tokens of one character that are waited for; UTF-8 has at most four bytes, and tokens may be bytes."""


class Detokenizer:
    """Gives the text that each further token adds.

    A token's text depends on those before it (spaces, and characters whose bytes are several tokens), so a
    few are decoded again each time and only what is new is given.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._context = 0
        """Where the tokens begin that are decoded again for the sake of what follows."""
        self._given = 0
        """Tokens whose text has been given."""

    def push(self, token: int) -> str:
        """The text that is certain now; empty while a character is unfinished."""
        self._ids.append(token)
        before = self._decode(self._ids[self._context : self._given])
        now = self._decode(self._ids[self._context :])
        waiting = len(self._ids) - self._given
        if len(now) <= len(before) or (now.endswith(_UNFINISHED) and waiting < _MAX_HELD):
            return ""
        self._context, self._given = self._given, len(self._ids)
        return now[len(before) :]

    def finish(self) -> str:
        """What is left, with a replacement character for an unfinished one."""
        before = self._decode(self._ids[self._context : self._given])
        now = self._decode(self._ids[self._context :])
        self._context = self._given = len(self._ids)
        return now[len(before) :]


class StopScanner:
    """Lets text through up to the first of ``stops``, which itself is not given, however it is cut."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that surely is before any stop sequence."""
        if self.stopped:
            return ""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            given, self._held = self._held[: min(found)], ""
            return given
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        given, self._held = self._held[:cut], self._held[cut:]
        return given

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        given, self._held = self._held, ""
        return given


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are a beginning of ``stop``."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0

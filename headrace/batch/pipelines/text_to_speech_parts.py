"""A text in parts that are spoken one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator

_LONGEST = 400
"""Characters of one part; longer sentences are cut at commas or spaces."""
_BREAK = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\n+")
_NO_END = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|vs|etc|Inc|Jr|Sr)|\b[A-Z])\.$")
"""What has a full stop after it in the middle of a sentence."""


def parts_of(text: str) -> Iterator[str]:
    """Sentences, none longer than `_LONGEST` characters."""
    for sentence in _sentences(text):
        rest = sentence
        while len(rest) > _LONGEST:
            cut = max(rest.rfind(mark, 0, _LONGEST) for mark in (", ", "; ", ": "))
            cut = cut + 1 if cut > 0 else rest.rfind(" ", 0, _LONGEST)
            cut = cut if cut > 0 else _LONGEST
            yield rest[:cut].strip()
            rest = rest[cut:].strip()
        if rest:
            yield rest


def _sentences(text: str) -> Iterator[str]:
    begin = 0
    for gap in _BREAK.finditer(text):
        so_far = text[begin : gap.start()].strip()
        if so_far and ("\n" in gap.group() or not _NO_END.search(so_far)):
            yield so_far
            begin = gap.end()
    if rest := text[begin:].strip():
        yield rest

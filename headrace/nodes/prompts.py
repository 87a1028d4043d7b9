"""Prompts as ComfyUI reads them: weights in parentheses, escapes, embeddings. Pure: no torch, no files.

``(word)`` weighs 1.1 times as much as what is around it, ``(word:1.3)`` weighs 1.3 wherever it is;
parentheses after a backslash are no more than that; ``embedding:name`` stands for a textual inversion.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_STRONGER = 1.1
_OPEN, _CLOSE = "\0\2", "\0\1"
EMBEDDING = "embedding:"
_WHOLE = 8
"""Tokens below which a piece of text is not cut between two chunks."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a prompt with one weight; of an embedding, what follows ``embedding:``."""

    text: str
    weight: float
    is_embedding: bool = False


def pieces_of(prompt: str) -> list[Piece]:
    """The prompt in pieces, in order."""
    hidden = prompt.replace("\\)", _CLOSE).replace("\\(", _OPEN)
    found: list[Piece] = []
    for text, weight in _weighted(hidden, 1.0):
        shown = text.replace(_CLOSE, ")").replace(_OPEN, "(")
        first, *rest = re.split(rf" {EMBEDDING}|\n{EMBEDDING}", shown)
        for part in (first, *(EMBEDDING + name for name in rest)):
            if part.startswith(EMBEDDING):
                found.append(Piece(part.removeprefix(EMBEDDING).strip("\n"), weight, is_embedding=True))
            elif part:
                found.append(Piece(part, weight))
    return found


def _weighted(text: str, weight: float) -> Iterator[tuple[str, float]]:
    """Iterative in its depth, since prompts come from anywhere."""
    waiting = [(text, weight, False)]
    while waiting:
        item, weight, is_plain = waiting.pop()
        if is_plain:
            yield item, weight
            continue
        inner = []
        for segment in _segments(item):
            if len(segment) >= 2 and segment[0] == "(" and segment[-1] == ")":
                inner.append((*_stripped(segment[1:-1], weight), False))
            else:
                inner.append((segment, weight, True))
        waiting += reversed(inner)


def _stripped(inside: str, weight: float) -> tuple[str, float]:
    """What is between parentheses without its number, and the weight that it has."""
    text, colon, number = inside.rpartition(":")
    if colon and text:
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if math.isfinite(value):
            return text, value
    return inside, weight * _STRONGER


def _segments(text: str) -> Iterator[str]:
    """The groups in parentheses of the outermost level, and what is between them."""
    depth = start = 0
    for place, character in enumerate(text):
        if character == "(":
            if depth == 0 and place > start:
                yield text[start:place]
            if depth == 0:
                start = place
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                yield text[start : place + 1]
                start = place + 1
    if start < len(text):
        yield text[start:]


Weighted = tuple[T, float]


@dataclass(frozen=True, slots=True)
class Marks(Generic[T]):
    """What a tokenizer puts around its tokens, and how many go into a chunk."""

    start: T
    end: T
    pad: T
    length: int


def chunks_of(groups: Sequence[Sequence[Weighted[T]]], marks: Marks[T]) -> list[list[Weighted[T]]]:
    """Tokens in chunks of ``length``, with start, end and padding. A short group is not cut in two."""
    room = marks.length - 2
    rows: list[list[Weighted[T]]] = [[]]
    for group in groups:
        left = list(group)
        long = len(left) >= _WHOLE
        while left:
            free = room - len(rows[-1])
            if len(left) <= free:
                rows[-1] += left
                break
            if long:
                rows[-1] += left[:free]
                left = left[free:]
            rows.append([])
    chunks = []
    for row in rows:
        chunk = [(marks.start, 1.0), *row, (marks.end, 1.0)]
        chunks.append(chunk + [(marks.pad, 1.0)] * (marks.length - len(chunk)))
    return chunks

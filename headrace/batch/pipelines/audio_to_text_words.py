"""From a recogniser's tokens, each with its moment, to words with a beginning and an end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_UNFINISHED = "\ufffd"
_BEFORE = "\"'“¿([{-"
"""Marks that belong to the word after them."""
_AFTER = "\"'.。,，!！?？:：”)]}、"
"""Marks that belong to the word before them."""
WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Languages whose words are not set apart: every character is told by itself."""


@dataclass(frozen=True, slots=True)
class Word:
    """``text`` with the space before it, as it stands in the transcript; times in seconds."""

    text: str
    start: float
    end: float


def words_of(
    tokens: Sequence[int],
    times: Sequence[float],
    decode: Callable[[Sequence[int]], str],
    *,
    end: float,
    language: str | None = None,
) -> list[Word]:
    """The words of one segment. ``times``: when each token begins; ``end``: when the last one is over."""
    pieces = _characters(tokens, times, decode)
    apart = language in WITHOUT_SPACES
    words: list[tuple[str, float]] = []
    for text, time in pieces:
        begins = apart or text.startswith(" ") or not words
        mark = text.strip()
        if words and (not begins or (mark and all(c in _AFTER for c in mark) and not text.startswith(" "))):
            words[-1] = (words[-1][0] + text, words[-1][1])
        else:
            words.append((text, time))
    words = _with_openings(words)
    starts = [time for _, time in words[1:]] + [end]
    return [
        Word(text, round(start, 2), round(max(start, stop), 2))
        for (text, start), stop in zip(words, starts, strict=True)
    ]


def _characters(
    tokens: Sequence[int], times: Sequence[float], decode: Callable[[Sequence[int]], str]
) -> list[tuple[str, float]]:
    """Texts of whole characters, each with the moment of its first token."""
    pieces: list[tuple[str, float]] = []
    first = 0
    for number in range(len(tokens)):
        text = decode(tokens[first : number + 1])
        if text.endswith(_UNFINISHED) and number + 1 < len(tokens):
            continue
        if text:
            pieces.append((text, float(times[first])))
        first = number + 1
    return pieces


def _with_openings(words: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Opening marks that stand alone go to the word that they open."""
    joined: list[tuple[str, float]] = []
    for text, time in words:
        alone = joined and joined[-1][0].strip() and all(c in _BEFORE for c in joined[-1][0].strip())
        if alone and not text.startswith(" "):
            joined[-1] = (joined[-1][0] + text, joined[-1][1])
        else:
            joined.append((text, time))
    return joined

"""Transcripts as OpenAI's clients know them: text, SubRip, WebVTT and JSON with times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")
LONGEST_SEGMENT = 30.0
"""Seconds of a segment that is put together from words."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech, in seconds."""

    start: float
    end: float
    text: str


def segments_of(body: Mapping[str, Any]) -> list[Segment]:
    """The chunks of a transcript; an end that is not known is the recording's, or that of its begin."""
    duration = body.get("duration")
    found = []
    for chunk in body.get("chunks") or ():
        start, end = chunk["timestamp"]
        start = 0.0 if start is None else float(start)
        last = duration if end is None else end
        found.append(Segment(start, max(start, start if last is None else float(last)), chunk["text"]))
    return found


def joined(words: Sequence[Segment]) -> list[Segment]:
    """Words as sentences."""
    found: list[Segment] = []
    line: list[Segment] = []
    for word in words:
        line.append(word)
        full = word.end - line[0].start > LONGEST_SEGMENT
        if full or word.text.rstrip().endswith(SENTENCE_ENDS):
            found.append(_joined(line))
            line = []
    return [*found, _joined(line)] if line else found


def _joined(line: Sequence[Segment]) -> Segment:
    return Segment(line[0].start, line[-1].end, "".join(word.text for word in line))


def srt(segments: Sequence[Segment]) -> str:
    """SubRip."""
    blocks = (
        f"{number}\n{_clock(s.start, ',')} --> {_clock(s.end, ',')}\n{s.text.strip()}\n"
        for number, s in enumerate(segments, 1)
    )
    return "\n".join(blocks)


def vtt(segments: Sequence[Segment]) -> str:
    """WebVTT."""
    blocks = (f"{_clock(s.start, '.')} --> {_clock(s.end, '.')}\n{_escaped(s.text)}\n" for s in segments)
    return "\n".join(["WEBVTT\n", *blocks])


def verbose(
    body: Mapping[str, Any], *, words: bool, segments: bool, task: str = "transcribe"
) -> dict[str, Any]:
    """OpenAI's ``verbose_json``. What is not measured (log probabilities and the like) is left out."""
    parts = segments_of(body)
    found: dict[str, Any] = {
        "task": task,
        "language": body.get("language") or "",
        "duration": body.get("duration") or (parts[-1].end if parts else 0.0),
        "text": body["text"],
    }
    if words:
        found["words"] = [{"word": s.text.strip(), "start": s.start, "end": s.end} for s in parts]
    if segments:
        lines = joined(parts) if words else parts
        found["segments"] = [
            {"id": number, "start": s.start, "end": s.end, "text": s.text} for number, s in enumerate(lines)
        ]
    return found


def _clock(seconds: float, mark: str) -> str:
    whole = round(seconds * 1000)
    return f"{whole // 3_600_000:02}:{whole // 60_000 % 60:02}:{whole // 1000 % 60:02}{mark}{whole % 1000:03}"


def _escaped(text: str) -> str:
    return text.strip().replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

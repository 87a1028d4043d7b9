"""What a check found, and what to do about it."""

from __future__ import annotations

import dataclasses
from enum import StrEnum


class Level(StrEnum):
    """How bad it is: a problem keeps Headrace from its work, a warning from a part of it."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found, and what to do about it where there is something to do."""

    level: Level
    text: str
    advice: str = ""
    area: str = ""

    def of(self, area: str) -> Finding:
        return dataclasses.replace(self, area=area)

    def as_dict(self) -> dict[str, str]:
        return {
            "level": str(self.level),
            "area": self.area,
            "text": self.text,
            "advice": self.advice,
        }


def ok(text: str) -> Finding:
    return Finding(Level.OK, text)


def warning(text: str, advice: str) -> Finding:
    return Finding(Level.WARNING, text, advice)


def problem(text: str, advice: str) -> Finding:
    return Finding(Level.PROBLEM, text, advice)

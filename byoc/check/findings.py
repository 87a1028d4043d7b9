"""What a check has found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One row: what was looked at, how it is, and in words what was seen."""

    what: str
    verdict: Verdict
    seen: str


@dataclass(slots=True)
class Findings:
    """In the order in which they were made."""

    rows: list[Finding] = field(default_factory=list)
    log: str = ""
    """The end of what the program wrote."""

    def ok(self, what: str, seen: str) -> None:
        self.rows.append(Finding(what, Verdict.OK, seen))

    def note(self, what: str, seen: str) -> None:
        self.rows.append(Finding(what, Verdict.NOTE, seen))

    def wrong(self, what: str, seen: str) -> None:
        self.rows.append(Finding(what, Verdict.WRONG, seen))

    def expect(self, what: str, holds: bool, seen: str) -> None:
        (self.ok if holds else self.wrong)(what, seen)

    @property
    def passed(self) -> bool:
        return all(row.verdict is not Verdict.WRONG for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "findings": [asdict(row) for row in self.rows], "log": self.log}

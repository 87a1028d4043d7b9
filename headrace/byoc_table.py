"""The findings of ``headrace byoc check`` for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from byoc.check.findings import Findings, Verdict

WIDTH = 140
"""Columns where nobody looks at a terminal."""
STYLES = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.WRONG: "bold red"}


def print_findings(found: Findings, title: str) -> None:
    """One row a finding, and the conclusion."""
    console = Console(width=None if Console().is_terminal else WIDTH)
    table = Table("", "what", "seen", title=title, title_justify="left", box=None)
    for row in found.rows:
        table.add_row(Text(row.verdict, STYLES[row.verdict]), row.what, Text(row.seen))
    console.print(table)
    wrong = sum(row.verdict is Verdict.WRONG for row in found.rows)
    if not found.passed and found.log:
        console.print("\nthe end of what it wrote:", style="bold")
        console.print(Text(found.log), "")
    console.print("everything as it should be" if found.passed else f"{wrong} wrong", style="bold")

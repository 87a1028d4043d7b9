"""What the benchmarks' command lines have in common."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from benchmarks.report import Report
from benchmarks.workers import BenchmarkError, install_pytrickle

T = TypeVar("T")


def selection(known: Collection[str]) -> Callable[[str], list[str]]:
    """A type for argparse: names with commas between them, each one of ``known``."""

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
        return names

    return parse


def measure(
    measurements: Mapping[str, Callable[[T], None]],
    names: Sequence[str],
    bench: T,
    report: Report,
    console: Console,
) -> int:
    """Make the chosen measurements one after the other, whatever becomes of each; the exit status."""
    failed = False
    for name in names:
        console.print(f"[bold]{name}[/]: {(measurements[name].__doc__ or '').splitlines()[0]}")
        try:
            measurements[name](bench)
        except BenchmarkError as error:
            failed = True
            console.print(f"[red]{name} could not be measured:[/] {error}", markup=True, highlight=False)
            report.notes.append(f"{name}: could not be measured: {str(error).splitlines()[0]}")
    return int(failed)


def tell(report: Report, console: Console, folder: Path | None, file: Path | None) -> None:
    """Show what was found, and write it to ``file``."""
    report.show(console)
    if folder is not None:
        console.print(f"logs and notes: {folder}")
    if file is not None:
        file.write_text(json.dumps(report.as_json(), indent=1) + "\n")


def peer_of(name: str | None, say: Callable[..., None], report: Report) -> Path | None:
    """PyTrickle's interpreter where it was asked for and can be had; the report says when it cannot."""
    if name is None:
        return None
    try:
        return install_pytrickle(say)
    except BenchmarkError as error:
        say(f"[yellow]without PyTrickle:[/] {error}")
        report.notes.append("PyTrickle could not be installed; its rows are missing")
        return None

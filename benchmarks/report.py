"""Figures as a person reads them, and as JSON."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of a sample, in the unit of its values; NaN where there is none."""

    p50: float
    p95: float
    p99: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """By the nearest rank."""
        ordered = sorted(values)

        def at(share: float) -> float:
            return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.nan

        return cls(at(0.5), at(0.95), at(0.99), at(1.0), len(ordered))


@dataclass(slots=True)
class Row:
    """One figure: what was measured, of whom, what came out and what it should be."""

    measure: str
    worker: str
    value: str
    target: str = ""
    met: bool | None = None


@dataclass(slots=True)
class Report:
    """Everything that a run of the benchmark found."""

    title: str = "Headrace live path"
    rows: list[Row] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, measure: str, worker: str, value: str, target: str = "", met: bool | None = None) -> None:
        self.rows.append(Row(measure, worker, value, target, met))

    def show(self, console: Console) -> None:
        table = Table(title=self.title, title_justify="left")
        for column in ("measure", "worker", "value", "target", ""):
            table.add_column(column, overflow="fold")
        for row in self.rows:
            verdict = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[row.met]
            table.add_row(row.measure, row.worker, row.value, row.target, verdict)
        console.print(table)
        for note in self.notes:
            console.print(f"- {note}")

    def as_json(self) -> dict[str, Any]:
        rows = [asdict(row) for row in self.rows]
        return {"machine": machine(), "rows": rows, "notes": self.notes, "data": self.data}


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    versions = {name: importlib.metadata.version(name) for name in ("av", "aiohttp", "numpy", "uvloop")}
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _commit(),
        **versions,
    }


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return done.stdout.strip() or "unknown"


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Of the least-squares line through the points; 0 for fewer than two."""
    count = len(times)
    if count < 2:
        return 0.0
    middle, mean = sum(times) / count, sum(values) / count
    spread = sum((t - middle) ** 2 for t in times)
    return sum((t - middle) * (v - mean) for t, v in zip(times, values, strict=True)) / spread

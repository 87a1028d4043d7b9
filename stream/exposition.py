"""Prometheus' text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Literal, Protocol


class Buckets(Protocol):
    """A histogram: one number for each bound and one for what is above, not cumulated, and the sum."""

    buckets: list[int]
    sum: float


class Page:
    """Families of samples, one after the other; labels come as they are written between the braces.

    ``help_texts`` has a line for every family, ``bounds`` are those of all histograms.
    """

    def __init__(self, help_texts: Mapping[str, str], bounds: Sequence[float]) -> None:
        self._help = help_texts
        self._upto = [*(f'le="{bound:.7g}"' for bound in bounds), 'le="+Inf"']
        self._lines: list[str] = []

    def family(self, name: str, kind: Literal["counter", "gauge"], samples: Mapping[str, float]) -> None:
        self._head(name, kind)
        self._lines += [
            f"{name}{{{labels}}} {number(value)}" if labels else f"{name} {number(value)}"
            for labels, value in samples.items()
        ]

    def histograms(self, name: str, stages: Mapping[str, Buckets]) -> None:
        self._head(name, "histogram")
        for labels, stage in stages.items():
            begin = f"{name}_bucket{{{labels},"
            counts = list(accumulate(stage.buckets))
            self._lines += [f"{begin}{le}}} {count}" for le, count in zip(self._upto, counts, strict=True)]
            self._lines.append(f"{name}_sum{{{labels}}} {number(stage.sum)}")
            self._lines.append(f"{name}_count{{{labels}}} {counts[-1]}")

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"

    def _head(self, name: str, kind: str) -> None:
        self._lines.append(f"# HELP {name} {self._help[name]}")
        self._lines.append(f"# TYPE {name} {kind}")


def label(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{name}="{escaped}"'


def number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"

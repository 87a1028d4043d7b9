"""``headrace sessions``: the sessions of a running worker, in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from headrace.models.remote import Remote
from stream.errors import HeadraceError, SourceError

TIMEOUT: Final = 5.0
INTERVAL: Final = 1.0
WIDTH: Final = 140
"""Columns where nobody looks at a terminal."""
STYLES: Final = {
    "ONLINE": "green",
    "LOADING": "cyan",
    "DEGRADED_INPUT": "yellow",
    "DEGRADED_INFERENCE": "yellow",
    "ERROR": "bold red",
}


@dataclass(frozen=True, slots=True)
class Target:
    """The worker to watch."""

    url: str
    token: str | None = None
    verify_tls: bool = True


def watch(target: Target, *, once: bool) -> None:
    """Show the worker's sessions until Ctrl-C, or once.

    Raises what `fetch` raises when the worker cannot be asked at the start; later on that is shown and tried
    again.
    """
    answer = fetch(target)
    if once:
        interactive = sys.stdout.isatty()
        Console(width=None if interactive else WIDTH).print(page(target, answer, None))
        return
    with Live(page(target, answer, None), screen=False, auto_refresh=False) as live:
        while True:
            time.sleep(INTERVAL)
            problem = None
            try:
                answer = fetch(target)
            except HeadraceError as error:
                problem = error.message
            live.update(page(target, answer, problem), refresh=True)


def fetch(target: Target) -> Mapping[str, Any]:
    """The answer to ``GET /sessions``.

    Raises `InvalidInput` for a URL that is none, `Unauthorized` where the token is missing or wrong, and
    `SourceError` for whatever does not answer as a worker does.
    """
    remote = Remote(target.url, target.token, verify_tls=target.verify_tls, timeout=TIMEOUT)
    answer = remote.get("/sessions")
    sessions = answer.get("sessions")
    if not isinstance(sessions, list) or not all(isinstance(session, dict) for session in sessions):
        raise SourceError(f"{target.url} does not answer as a Headrace worker does")
    return answer


def page(target: Target, answer: Mapping[str, Any], problem: str | None) -> RenderableType:
    """What is on the screen; ``problem`` says why ``answer`` is an old one."""
    sessions: Sequence[Mapping[str, Any]] = answer["sessions"]
    taken = f"{len(sessions)} of {answer.get('capacity', '?')} sessions"
    head = f"{target.url}  {answer.get('status', '?')}  {taken}"
    parts: list[RenderableType] = [Text(head, style="bold")]
    if problem is not None:
        parts.append(Text(f"as it was before: {problem}", style="red"))
    if sessions:
        parts.append(_table(sessions))
    return Group(*parts)


def _table(sessions: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("session", overflow="ellipsis", max_width=36)
    table.add_column("state")
    for name in ("fps in", "processed", "out", "dropped", "failed", "p50 ms", "p95 ms", "age"):
        table.add_column(name, justify="right")
    for session in sessions:
        table.add_row(*_row(session))
    return table


def _row(session: Mapping[str, Any]) -> list[RenderableType]:
    state = str(session.get("state", "?"))
    fps, counts = session.get("fps", {}), session.get("counts", {})
    latency = session.get("latency", {}).get("received_to_encoded", {})
    dropped = sum(value for name, value in counts.items() if name.startswith("dropped_"))
    return [
        Text(str(session.get("id", "?"))),
        Text(state, style=STYLES.get(state, "")),
        *(_figure(fps.get(name)) for name in ("input", "processed", "output")),
        str(dropped),
        str(counts.get("failed", 0)),
        *(_figure(latency.get(name)) for name in ("p50_ms", "p95_ms")),
        _duration(session.get("uptime_s", 0)),
    ]


def _figure(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, (int, float)) else "-"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

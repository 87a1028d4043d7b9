"""``headrace doctor``: what this machine can do, what is wrong with it, and what to do about that."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from headrace.doctor import machine, media
from headrace.doctor.findings import Finding, Level, problem

LIMIT: Final = 120.0
"""Seconds after which a check counts as hanging."""
WIDTH: Final = 140
"""Columns where nobody looks at a terminal."""

Check = Callable[[], Sequence[Finding]]

CHECKS: Final[Mapping[str, Check]] = {
    "system": machine.system,
    "packages": machine.packages,
    "settings": machine.settings,
    "port": machine.port,
    "memory files": machine.memory_files,
    "codecs": media.codecs,
    "GPU": media.gpus,
    "torch": media.torch,
    "ComfyUI": media.comfyui,
}

STYLES: Final = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}


def run_doctor(*, as_json: bool) -> bool:
    """Look at everything and print what was found; True when nothing is wrong enough to keep us from work."""
    console = Console(width=None if Console().is_terminal else WIDTH)
    with Console(stderr=True).status("looking around") as status:
        findings = examine(CHECKS, lambda area: status.update(f"looking at {area}"))
    if as_json:
        console.print_json(json.dumps([finding.as_dict() for finding in findings]))
    else:
        console.print(_table(findings))
        console.print(_conclusion(findings))
    return not any(finding.level is Level.PROBLEM for finding in findings)


def examine(checks: Mapping[str, Check], tell: Callable[[str], None]) -> list[Finding]:
    """Every finding, in the order of the checks; one after the other, because they share the machine."""
    findings: list[Finding] = []
    for area, check in checks.items():
        tell(area)
        findings += [finding.of(area) for finding in _outcome(check)]
    return findings


def _outcome(check: Check) -> Sequence[Finding]:
    found: list[Sequence[Finding]] = []

    def work() -> None:
        try:
            found.append(check())
        except Exception as error:  # noqa: BLE001 (one check's fault must not hide what the others find)
            text = f"the check itself failed: {type(error).__name__}: {error}"
            found.append([problem(text, "report this as a fault of Headrace")])

    # A daemon, because one that hangs in a driver can neither be ended nor waited for.
    thread = threading.Thread(target=work, name="doctor", daemon=True)
    thread.start()
    thread.join(LIMIT)
    return found[0] if found else [problem(f"the check hangs (over {LIMIT:g} s)", "look at the system's log")]


def _table(findings: Iterable[Finding]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("", no_wrap=True)
    table.add_column("found", ratio=3)
    table.add_column("what to do", ratio=2)
    last = None
    for finding in findings:
        style = STYLES[finding.level]
        area = finding.area if finding.area != last else ""
        table.add_row(f"[{style}]{finding.level}[/]", area, _plain(finding.text), _plain(finding.advice))
        last = finding.area
    return table


def _plain(text: str) -> str:
    """Text in which brackets are no markup."""
    return text.replace("[", r"\[")


def _conclusion(findings: Sequence[Finding]) -> str:
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    if counts[Level.PROBLEM]:
        return f"\n[bold red]{_count(counts[Level.PROBLEM], 'problem')}[/] to be solved first"
    if counts[Level.WARNING]:
        return f"\nHeadrace runs here; [yellow]{_count(counts[Level.WARNING], 'warning')}[/]"
    return "\n[green]Headrace runs here[/]"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

"""The command line's part for workflows that are kept: ``headrace workflows list|show|add|rm``.

Without ``--url`` it works on the folder of this machine, with it on that of a running worker.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli_models import Insecure, Token, terminal
from stream.errors import InvalidInput, NotFound, TooLarge

if TYPE_CHECKING:
    from headrace.library.shelves import Shelf

workflows = typer.Typer(help="Workflows that are kept, here or by a running worker.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A kept or bundled workflow.")]
Folder = Annotated[
    Path | None, typer.Option("--folder", help="Folder of your own workflows (HEADRACE_WORKFLOWS).")
]
Url = Annotated[
    str | None, typer.Option(help="A running worker, as http://127.0.0.1:8000, instead of the folder.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@workflows.command("list")
def list_workflows(
    folder: Folder = None,
    url: Url = None,
    token: Token = None,
    insecure_tls: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Every workflow, your own first, and what keeps one from running."""
    shelf = _shelf(folder, url, token, insecure_tls)
    entries = shelf.entries()
    if as_json:
        sys.stdout.write(json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("name", "", "nodes", "changed", "", box=None)
    for entry in entries:
        changed = (
            datetime.fromtimestamp(entry["modified"]).strftime("%Y-%m-%d %H:%M") if entry["kept"] else ""
        )
        problem = entry["problem"]
        words = f"[red]{escape(_first_line(problem))}[/]" if problem else escape(entry["description"])
        where = "kept" if entry["kept"] else "bundled"
        table.add_row(escape(entry["name"]), where, str(len(entry["steps"])), changed, words)
    console = terminal()
    console.print(table)
    if not any(entry["kept"] for entry in entries):
        console.print(f"\nnone of your own yet; `headrace workflows add FILE` keeps one {shelf.where}")


@workflows.command()
def show(
    name: Name,
    folder: Folder = None,
    url: Url = None,
    token: Token = None,
    insecure_tls: Insecure = False,
    as_json: Annotated[bool, typer.Option("--json", help="The file itself, byte for byte.")] = False,
) -> None:
    """What a workflow does and lets one change; with --json its file."""
    shelf = _shelf(folder, url, token, insecure_tls)
    content = shelf.content(name)
    if as_json:
        sys.stdout.buffer.write(content)
        return
    from rich.markup import escape
    from rich.table import Table

    entry = next((one for one in shelf.entries() if one["name"] == name), None)
    if entry is None:
        raise NotFound(f"there is no workflow {name!r}", field="name")
    console = terminal()
    where = f"kept {shelf.where}" if entry["kept"] else "bundled"
    console.print(f"[bold]{escape(name)}[/]  {escape(where)}")
    console.print(escape(" → ".join(entry["steps"])))
    if entry["problem"]:
        console.print(f"[red]{escape(entry['problem'])}[/]")
        return
    properties = shelf.schema(name).get("properties", {})
    if not properties:
        console.print("no parameters")
        return
    table = Table("parameter", "title", "value", "range", "a change costs", box=None)
    for key, about in properties.items():
        value = json.dumps(about.get("default"), ensure_ascii=False)
        title = str(about.get("title", ""))
        table.add_row(*map(escape, (key, title, _short(value), _range(about), str(about.get("cost", "")))))
    console.print()
    console.print(table)


@workflows.command()
def add(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="JSON of either format, or a PNG, WebP or JPEG that carries it."),
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="What to call it (default: as the file).")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Also over one of that name.")] = False,
    folder: Folder = None,
    url: Url = None,
    token: Token = None,
    insecure_tls: Insecure = False,
) -> None:
    """Keep a workflow. What cannot run is kept too, and its problems are told."""
    from headrace.library.files import MAX_PICTURE
    from headrace.library.store import PreconditionFailed

    shelf = _shelf(folder, url, token, insecure_tls)
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_PICTURE + 1)
    except OSError as error:
        raise NotFound(f"{file}: {error.strerror or error}", field="FILE") from None
    if len(content) > MAX_PICTURE:
        raise TooLarge(f"{file} has over {MAX_PICTURE} bytes", field="FILE")
    name = file.stem if name is None else name
    try:
        problems = shelf.put(name, content, replace=replace)
    except PreconditionFailed as error:
        raise PreconditionFailed(f"{error.message}; --replace overwrites it", field="--replace") from None
    console = terminal()
    console.print(f"{name} is kept {shelf.where}", markup=False)
    if problems:
        console.print(
            f"[yellow]it cannot run here yet: {len(problems)} problem{'s' * (len(problems) > 1)}[/]"
        )
        for problem in problems:
            console.print(f"- {problem_words(problem)}", markup=False)


@workflows.command("rm")
def remove(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    folder: Folder = None,
    url: Url = None,
    token: Token = None,
    insecure_tls: Insecure = False,
) -> None:
    """Forget a kept workflow."""
    shelf = _shelf(folder, url, token, insecure_tls)
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidInput("nobody can be asked here; --yes removes without asking", field="--yes")
        typer.confirm(f"remove the workflow {name} {shelf.where}?", abort=True)
    shelf.remove(name)
    terminal().print(f"{name} is gone", markup=False)


def problem_words(problem: Mapping[str, Any]) -> str:
    """A problem as a line: where it is, and what."""
    from workflows.problems import Problem

    known = ("code", "message", "node_id", "class_type", "title", "input")
    return str(
        Problem(**{"code": "", "message": "", **{key: problem[key] for key in known if key in problem}})
    )


def _first_line(text: str) -> str:
    lines = text.splitlines()
    return lines[0] if len(lines) == 1 else f"{lines[1].removeprefix('- ')} (and {len(lines) - 2} more)"


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"


def _range(about: Mapping[str, Any]) -> str:
    choices = about.get("enum")
    if choices is not None:
        shown = ", ".join(map(str, choices[:4]))
        return f"{shown}, … ({len(choices)})" if len(choices) > 4 else shown
    if "minimum" in about or "maximum" in about:
        return f"{about.get('minimum', '')} to {about.get('maximum', '')}"
    return str(about.get("type", ""))


def _shelf(folder: Path | None, url: str | None, token: str | None, insecure_tls: bool) -> Shelf:
    from headrace.library.shelves import shelf_of

    return shelf_of(folder, url, token, insecure_tls)

"""The command line's part for models: ``headrace models list|pull|warm|unload|rm``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from stream.errors import HeadraceError, InvalidInput

models = typer.Typer(help="Models on this machine, and in a running worker.", no_args_is_help=True)

_POLL = 0.5
WIDTH = 140
"""Columns where nobody looks at a terminal."""

Name = Annotated[
    str, typer.Argument(metavar="MODEL", help="owner/repository[@revision], a folder or file, or demo:NAME.")
]
Folder = Annotated[
    Path | None, typer.Option("--folder", help="Folder of your own models (HEADRACE_MODELS_FOLDER).")
]
Url = Annotated[str, typer.Option(help="Where the worker listens.")]
Token = Annotated[
    str | None, typer.Option(envvar=["HEADRACE_TOKEN", "AUTH_TOKEN"], help="The worker's bearer token.")
]
Insecure = Annotated[
    bool, typer.Option("--insecure-tls", help="Accept the worker's self-signed certificate.")
]
LOCAL = "http://127.0.0.1:8000"


@models.command("list")
def list_models(
    folder: Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    loaded: Annotated[
        bool, typer.Option("--loaded", help="What a running worker has in memory, or is loading.")
    ] = False,
    url: Url = LOCAL,
    token: Token = None,
    insecure_tls: Insecure = False,
) -> None:
    """What is on this machine's disks, and the small models that packages bring."""
    import json

    if loaded:
        from headrace.models.remote import Remote

        _tell_loaded(Remote(url, token, verify_tls=not insecure_tls).get("/models"), as_json=as_json)
        return
    from headrace.models.roots import Roots
    from headrace.models.routes import described
    from headrace.models.store import ModelStore

    roots = Roots.from_environment(folder)
    found = [described(one) for one in ModelStore(roots).list()]
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    from rich.table import Table

    from headrace.models.errors import amount

    table = Table("model", "for", "size", "weights", "where", "revision", box=None)
    for one in found:
        size = amount(one["bytes"])
        revision = str(one["revision"])[:12]
        table.add_row(one["model"], one["pipeline"] or "?", size, one["weights"], one["source"], revision)
    terminal().print(table if found else f"no models in {roots.models} and in {roots.hub}")


def _tell_loaded(answer: dict[str, Any], *, as_json: bool) -> None:
    import json

    from rich.table import Table

    from headrace.models.errors import amount

    entries: list[dict[str, Any]] = answer.get("models", [])
    if as_json:
        sys.stdout.write(json.dumps(entries, indent=2) + "\n")
        return
    table = Table("model", "state", "size", "weights", "in use", "last used", "engine", box=None)
    for one in entries:
        state = "warm" if one["pinned"] and one["state"] == "loaded" else str(one["state"])
        if one["state"] == "loading":
            state += f" {one['progress']:.0%}"
        used = f"{max(0.0, time.time() - one['last_used']):.0f} s ago"
        size, leases = amount(one["bytes"]), str(one["leases"] or "")
        table.add_row(one["model"], state, size, one["weights"], leases, used, one["engine"])
    terminal().print(table if entries else "no model is loaded")


@models.command()
def pull(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="owner/repository[@revision], or a file in one.")
    ] = None,
    half: Annotated[
        bool, typer.Option("--fp16", help="Files of half precision where there are any (for CUDA).")
    ] = False,
    workflow: Annotated[
        str | None,
        typer.Option("--workflow", "-w", help="All that a workflow names: a file, or a kept name."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="A host beside huggingface.co; may be repeated (--workflow)."),
    ] = None,
    folder: Folder = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be fetched (--workflow).")
    ] = False,
) -> None:
    """Fetch a repository from the hub: only the files that are needed; goes on where it broke off.

    With --workflow: the models that the file names, into checkpoints, loras, ... of the models folder.
    """
    if (model is None) == (workflow is None):
        raise InvalidInput("give a model, or --workflow", field="MODEL")
    if model is None:
        _pull_for(str(workflow), folder, allow_host or (), dry_run=dry_run)
        return
    from headrace.models.pull import Puller, space_needed
    from headrace.models.roots import Roots

    roots = Roots.from_environment(folder)
    puller = Puller(roots)
    plan = puller.plan(model, variant="fp16" if half else None)
    space_needed(plan, roots)
    with _progress(bytes_too=True) as progress:
        task = progress.add_task(model, total=plan.size)

        def on_bytes(name: str, done: int, size: int) -> None:
            progress.update(task, completed=done, total=size, description=f"{model} {name}")

        where = puller.fetch(plan, on_bytes)
        progress.update(task, description=model)
    terminal().print(f"{model} is in {where}")


def _pull_for(workflow: str, folder: Path | None, hosts: Collection[str], *, dry_run: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from headrace.library.names import Library
    from headrace.models.errors import amount
    from headrace.models.roots import Roots
    from headrace.models.workflow_models import WorkflowPuller, models_of
    from workflows import library

    data = library.load(workflow) if library.is_path(workflow) else Library().load(workflow)
    named = models_of(data)
    console = terminal()
    if not named:
        console.print(f"{workflow} names no models (files in API format never do)", markup=False)
        return
    roots = Roots.from_environment(folder)
    puller = WorkflowPuller(roots, allowed_hosts=hosts)
    files = puller.plan(named)
    table = Table("model", "size", "", box=None)
    for file in files:
        state = "here" if file.here else "to fetch" if file.digest else "to fetch; no digest is told"
        table.add_row(escape(file.model.path), amount(file.size), state)
    console.print(table)
    missing = sum(not file.here for file in files)
    if dry_run or not missing:
        return
    with _progress(bytes_too=True) as progress:
        task = progress.add_task(workflow, total=None)

        def on_bytes(name: str, done: int, size: int) -> None:
            progress.update(task, completed=done, total=size, description=name)

        puller.fetch(files, on_bytes)
    console.print(f"{missing} fetched into {roots.models}", markup=False)


@models.command("rm")
def remove(
    model: Name,
    folder: Folder = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a model's files."""
    from headrace.models.errors import amount
    from headrace.models.roots import Roots
    from headrace.models.store import ModelStore

    store = ModelStore(Roots.from_environment(folder))
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidInput("nobody can be asked here; --yes deletes without asking", field="--yes")
        typer.confirm(f"delete the files of {model}?", abort=True)
    terminal().print(f"{model}: {amount(store.remove(model))} freed")


@models.command()
def warm(
    model: Name,
    pipeline: Annotated[
        str | None, typer.Option(help="The endpoint it is for (default: as its files tell).")
    ] = None,
    url: Url = LOCAL,
    token: Token = None,
    insecure_tls: Insecure = False,
) -> None:
    """Have a running worker load a model and keep it in memory."""
    from headrace.models.remote import Remote

    remote = Remote(url, token, verify_tls=not insecure_tls)
    body: dict[str, Any] = {"model_id": model, **({"pipeline": pipeline} if pipeline else {})}
    remote.post("/models/warm", body)
    with _progress() as progress:
        task = progress.add_task(model, total=1.0)
        while True:
            entry = _look(remote, model)
            fraction = float(entry.get("progress") or 0.0)
            progress.update(
                task, completed=fraction, description=f"{model} {entry.get('what') or ''}".strip()
            )
            if entry.get("state") == "loaded" and entry.get("pinned"):
                break
            time.sleep(_POLL)
    terminal().print(f"{model} is warm")


def _look(remote: Any, model: str) -> dict[str, Any]:
    """The entry of ``model`` in a worker, without a state while there is none. Raises why it failed."""
    from headrace.models.remote import failure

    answer = remote.get("/models")
    for failed in answer.get("failures", ()):
        if failed.get("model") == model:
            raise failure(failed)
    entries: list[dict[str, Any]] = [e for e in answer.get("models", ()) if e.get("model") == model]
    if entries:
        return min(entries, key=lambda entry: float(entry.get("progress") or 0.0))
    if model in answer.get("warming", ()):
        return {"what": "waiting"}
    raise HeadraceError(f"the worker no longer loads {model}, and does not say why; look at its log")


@models.command()
def unload(model: Name, url: Url = LOCAL, token: Token = None, insecure_tls: Insecure = False) -> None:
    """Have a running worker unload a model."""
    from headrace.models.errors import amount
    from headrace.models.remote import Remote

    answer = Remote(url, token, verify_tls=not insecure_tls).post("/models/unload", {"model_id": model})
    terminal().print(f"{model}: {amount(int(answer.get('freed', 0)))} freed")


def terminal() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def _progress(*, bytes_too: bool = False) -> Any:
    """Bars on standard error, and none where nobody looks at it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()]
    more = [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()] if bytes_too else []
    quiet = not sys.stderr.isatty() or bool(os.environ.get("NO_PROGRESS"))
    return Progress(*columns, *more, console=Console(stderr=True), disable=quiet)

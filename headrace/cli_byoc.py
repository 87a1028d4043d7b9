"""The command line's part for containers: ``headrace byoc new|check|orchestrator``."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from byoc.check.findings import Findings

byoc = typer.Typer(help="A container of your own as a capability of an orchestrator.", no_args_is_help=True)

WIDTH = 140
"""Columns where nobody looks at a terminal."""
FAILED = 1


@byoc.command()
def new(
    name: Annotated[str, typer.Argument(help="The capability's name, and the folder's.")],
    template: Annotated[str, typer.Option(help="One of the examples.")] = "invert",
    folder: Annotated[Path, typer.Option(help="Where to make the folder.")] = Path(),
) -> None:
    """Make a folder with a program, its test, a Dockerfile and a README, to begin with."""
    from byoc.check.templates import make

    made = make(name, template, folder)
    sys.stdout.write(
        f"{made} is made of {template!r}: run `headrace byoc check {made}`, then edit worker.py\n"
    )


@byoc.command()
def templates() -> None:
    """What `new --template` can begin with."""
    from byoc.check.templates import described

    for name, line in described().items():
        sys.stdout.write(f"{name:<14} {line}\n")


@byoc.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with the program.")] = Path(),
    command: Annotated[
        str | None, typer.Option(help="What to run there (default: as check.toml says, or worker.py).")
    ] = None,
    port: Annotated[int, typer.Option(help="Where it listens, when it does not heed PORT.")] = 0,
    seconds: Annotated[float, typer.Option(min=2, max=600, help="Length of the stream.")] = 6.0,
    size: Annotated[int, typer.Option(min=128, max=1920, help="Width and height, pixels.")] = 384,
    fps: Annotated[int, typer.Option(min=5, max=60, help="Frames a second.")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Run the program against a mock orchestrator and say what it does right and wrong."""
    from rich.console import Console

    from byoc.check.plan import read_plan
    from byoc.check.run import CheckOptions
    from byoc.check.run import check as run_check

    plan = read_plan(folder, shlex.split(command) if command else None)
    options = CheckOptions(seconds=seconds, size=size, fps=fps, port=port)
    with Console(stderr=True).status("checking") as status:
        check_of = run_check(folder.resolve(), plan, options, lambda text: status.update(text))
        found = asyncio.run(_ended_by_sigterm(check_of))
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict(), indent=2) + "\n")
    else:
        from headrace.byoc_table import print_findings

        print_findings(found, str(folder))
    if not found.passed:
        raise SystemExit(FAILED)


async def _ended_by_sigterm(work: Awaitable[Findings]) -> Findings:
    """``work``, which SIGTERM cancels: what it has started is ended then."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        if task.cancelled():
            raise SystemExit(128 + signal.SIGTERM) from None
        raise


@byoc.command()
def orchestrator(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8935,
    secret: Annotated[str, typer.Option(help="What workers must have as ORCH_SECRET.")] = "secret",
    play: Annotated[
        float, typer.Option(min=0, max=3600, help="Seconds of generated video to send to whoever registers.")
    ] = 0.0,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run the mock orchestrator by hand; with --play each capability that registers gets a stream."""
    from byoc.mock.by_hand import serve_by_hand
    from stream.logs import configure

    configure(log_level, "text")
    asyncio.run(serve_by_hand(host, port, secret, play, sys.stdout.write))

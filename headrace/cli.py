"""The command line: ``headrace process``, ``headrace serve``, ``headrace trickle-server``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

try:
    from byoc.packages import hidden

    problems = hidden(("stream", "workflows", "byoc"))
except ImportError:
    problems = ["another package 'byoc' hides Headrace's; `python -c 'import byoc; print(byoc)'` says which"]
if problems:
    sys.stderr.writelines(f"headrace: error: {problem}\n" for problem in problems)
    sys.exit(2)

from headrace.cli_byoc import byoc
from headrace.cli_check import check
from headrace.cli_models import models
from headrace.cli_process import process
from headrace.cli_running import announce, log_at, run, until_signal
from headrace.cli_serve import serve
from headrace.cli_workflows import workflows
from stream.errors import HeadraceError, InvalidInput, NotInstalled

app = typer.Typer(
    name="headrace",
    help="A real-time AI video worker: live video in, a workflow on every frame, live video out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(models, name="models")
app.add_typer(workflows, name="workflows")
app.add_typer(byoc, name="byoc")
app.command()(process)
app.command()(serve)
app.command()(check)

USAGE = 2
FAILED = 1
INTERRUPTED = 130


@app.command("trickle-server")
def trickle_server(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 2939,
    base_path: Annotated[str, typer.Option(help="Where the channels begin.")] = "/",
    autocreate: Annotated[bool, typer.Option(help="A POST to an unknown channel creates it.")] = True,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run a trickle server, for tests, demos and streams without a gateway."""
    from stream.trickle.server import TrickleServerSettings, serve_trickle

    log_at(log_level)
    settings = TrickleServerSettings(host=host, port=port, base_path=base_path, autocreate=autocreate)
    run(until_signal(lambda stop: serve_trickle(settings, stop, announce=announce)))


@app.command()
def sessions(
    url: Annotated[str, typer.Option(help="Where the worker listens.")] = "http://127.0.0.1:8000",
    token: Annotated[
        str | None, typer.Option(envvar=["HEADRACE_TOKEN", "AUTH_TOKEN"], help="Its bearer token.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show them once and end.")] = False,
    insecure_tls: Annotated[
        bool, typer.Option("--insecure-tls", help="Accept the worker's self-signed certificate.")
    ] = False,
) -> None:
    """Watch the sessions of a running worker."""
    from headrace.watch import Target, watch

    watch(Target(url, token or None, verify_tls=not insecure_tls), once=once)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="What was found, for programs.")] = False,
) -> None:
    """Say what this machine can do, what is wrong with it, and what to do about that."""
    from headrace.doctor.report import run_doctor

    if not run_doctor(as_json=as_json):
        raise SystemExit(FAILED)


def main() -> None:
    """The console script. Exit status: 0 done, 1 failed, 2 wrong usage or missing package, 130 Ctrl-C."""
    if not sys.platform.startswith("linux"):
        sys.stderr.write("headrace: error: Headrace needs Linux (it shares frames by sealed memory files)\n")
        raise SystemExit(USAGE)
    try:
        app()
    except (InvalidInput, NotInstalled) as error:
        _complain(error)
        raise SystemExit(USAGE) from None
    except HeadraceError as error:
        _complain(error)
        raise SystemExit(FAILED) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _complain(error: HeadraceError) -> None:
    details = [d.get("message") for d in error.details]
    lines = [str(text) for text in details if text] or [error.message]
    sys.stderr.write("".join(f"headrace: error: {line}\n" for line in lines))

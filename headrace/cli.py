"""The command line: ``headrace process``, ``headrace serve``, ``headrace trickle-server``."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

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
app.command()(check)

USAGE = 2
FAILED = 1
INTERRUPTED = 130
FRAME_TIMEOUT = 600.0
"""Seconds for a frame of a file, which has no viewer who waits: a slow model on a CPU may take minutes."""


@app.command()
def process(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A video file.")],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="Where to write; the suffix names the format.")
    ],
    workflow: Annotated[
        str | None, typer.Option("--workflow", "-w", help="A bundled workflow or a workflow JSON file.")
    ] = None,
    processor: Annotated[
        str | None, typer.Option(help="A FrameProcessor class instead, as package.module:Class.")
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="node.input=value; may be repeated.")
    ] = None,
    input_folder: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder of LoadImage's pictures (default: that of the workflow's file, else this one).",
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT, centre-cropped (default: as it is).")
    ] = None,
    bitrate: Annotated[int, typer.Option(min=50_000, help="Bits per second of the picture.")] = 4_000_000,
    preset: Annotated[str, typer.Option(help="x264 preset.")] = "superfast",
    hardware: Annotated[str, typer.Option(help="NVENC: auto, off or require.")] = "auto",
    comfyui: Annotated[
        Path | None, typer.Option(envvar="HEADRACE_COMFYUI", help="Folder of an existing ComfyUI to run in.")
    ] = None,
    comfyui_python: Annotated[
        str | None,
        typer.Option(envvar="HEADRACE_COMFYUI_PYTHON", help="Its interpreter (default: in its folder)."),
    ] = None,
    custom_nodes: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of custom nodes for our engine.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device of the engine: auto, cpu, cuda, cuda:N.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Threads of one torch operation on the CPU.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", "-y", help="Replace OUT if it exists.")] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "warning",
) -> None:
    """Turn a video file into a processed one, every frame of it."""
    _log(log_level)
    require_engine()
    if target.exists() and not overwrite:
        raise InvalidInput(f"{target} exists; --overwrite replaces it", field="OUT")
    from headrace.engine.launch import launch
    from headrace.engine.settings import EngineSettings
    from headrace.nodes.packs import home_for

    engine = EngineSettings(
        name="file",
        device=device,
        threads=threads,
        call_timeout=FRAME_TIMEOUT,
        home=home_for(custom_nodes),
    )
    # Until the loop looks after signals.
    signal.signal(signal.SIGTERM, _leave)
    # Before everything else: it imports torch while this process imports codecs and opens the files.
    with launch(engine) as launched:
        from headrace.process import ProcessOptions, process_file

        options = ProcessOptions(
            source=source,
            target=target,
            workflow=workflow,
            processor=processor,
            params=tuple(param or ()),
            size=size,
            bitrate=bitrate,
            preset=preset,
            hardware=hardware,
            engine=engine,
            input_folder=input_folder,
            comfyui=comfyui,
            comfyui_python=comfyui_python,
            custom_nodes=custom_nodes,
        )
        _run(process_file(options, launched))


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (HEADRACE_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (HEADRACE_PORT).")] = None,
    workflow: Annotated[
        str | None, typer.Option("--workflow", "-w", help="For streams that name none.")
    ] = None,
    processor: Annotated[
        str | None,
        typer.Option(help="A FrameProcessor class instead, as package.module:Class (HEADRACE_PROCESSOR)."),
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option(help="stream-diffusion: real-time diffusion for streams that name nothing.")
    ] = None,
    pipeline_params: Annotated[
        str | None, typer.Option(help="JSON object that the pipeline or processor begins with.")
    ] = None,
    capacity: Annotated[int | None, typer.Option(help="Sessions at once (HEADRACE_CAPACITY).")] = None,
    insecure_tls: Annotated[
        bool, typer.Option("--insecure-tls", help="Accept self-signed certificates of trickle servers.")
    ] = False,
    allow_processors: Annotated[
        bool, typer.Option("--allow-processors", help="Let a stream name a Python class.")
    ] = False,
    recordings: Annotated[
        Path | None, typer.Option(help="Folder that streams are recorded to on request.")
    ] = None,
    comfyui: Annotated[
        Path | None,
        typer.Option(help="Folder of an existing ComfyUI to run in (HEADRACE_COMFYUI)."),
    ] = None,
    comfyui_python: Annotated[
        str | None, typer.Option(help="Its interpreter (default: the one in its folder).")
    ] = None,
    custom_nodes: Annotated[
        Path | None, typer.Option(help="Folder of custom nodes for our engine (HEADRACE_CUSTOM_NODES).")
    ] = None,
    object_info: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|URL", help="A ComfyUI's nodes, to check workflows by (docs/workflows.md)."
        ),
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Show a test pattern through the workflow.")] = False,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings (HEADRACE_CONFIG).")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file: listen by TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file with the certificate's key.")] = None,
    self_signed: Annotated[
        bool, typer.Option("--self-signed", help="Listen by TLS with a certificate made for this machine.")
    ] = False,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.")] = None,
) -> None:
    """Run the worker. All settings, from the environment or a file: docs/running.md."""
    from headrace.settings import Settings, load_settings
    from headrace.settings_sources import notes_on_environment

    if workflow is not None and processor is not None:
        raise InvalidInput("give --workflow or --processor, not both", field="--processor")
    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "workflow": workflow,
        "processor": processor,
        "pipeline": pipeline,
        "pipeline_params": pipeline_params,
        "capacity": capacity,
        "verify_tls": False if insecure_tls else None,
        "allow_processors": allow_processors or None,
        "recordings": recordings,
        "comfyui": comfyui,
        "comfyui_python": comfyui_python,
        "custom_nodes": custom_nodes,
        "object_info": object_info,
        "demo": demo or None,
        "config": config,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "self_signed": self_signed or None,
        "log_level": log_level,
        "log_format": log_format,
    }
    settings = load_settings(given)
    _log(settings.log_level, settings.log_format)
    for note in notes_on_environment(os.environ, Settings.model_fields):
        logging.getLogger(__name__).warning(note)
    if settings.engine_python is None:
        require_engine()
    from headrace.server.app import serve as run_server

    _run(run_server(settings, _announce_page))


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

    _log(log_level)
    settings = TrickleServerSettings(host=host, port=port, base_path=base_path, autocreate=autocreate)
    _run(_until_signal(lambda stop: serve_trickle(settings, stop, announce=_announce)))


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


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def require_engine() -> None:
    """Raise `NotInstalled` when torch, which the engine needs, is not there."""
    if importlib.util.find_spec("torch") is None:
        raise NotInstalled("the engine needs torch, which is not installed: pip install 'headrace[engine]'")


async def _until_signal(work: Any) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await work(stop)


def _announce(url: str) -> None:
    # Standard output, so that a script can wait for the line; logs go to standard error.
    sys.stdout.write(f"headrace listens on {url}\n")
    sys.stdout.flush()


def _announce_page(url: str) -> None:
    _announce(url)
    sys.stdout.write(f"open {url}/ in a browser: live picture, latency, parameters\n")
    sys.stdout.flush()


def _run(work: Coroutine[Any, Any, None]) -> None:
    import uvloop

    try:
        uvloop.run(work)
    except OSError as error:
        raise InvalidInput(f"cannot start: {error}") from error


def _log(level: str, log_format: str = "text") -> None:
    from stream.logs import configure

    configure(level, log_format)


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

"""``headrace process``: a file through the engine, with progress and a closing table."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from headrace.comfyui.setup import ComfyBeside, wait_until_known
from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from headrace.engine.launch import Launched
from headrace.engine.settings import EngineSettings
from headrace.library.names import Library
from headrace.nodes.custom import CustomNodes
from headrace.server.definitions import WorkerDefinitions
from headrace.server.specs import Specs, processor_spec
from headrace.settings import Settings, load_settings
from stream.codecs.hardware import HardwarePolicy
from stream.codecs.video_encoder import VideoEncoderSettings
from stream.encoding_parts import EncodingSettings
from stream.errors import HeadraceError, InvalidInput
from stream.files import FileJob
from stream.pipeline import PipelineSettings
from stream.requests import MAX_SIZE, MIN_SIZE

DEFAULT_WORKFLOW = "passthrough"
READY_TIMEOUT = 300.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
STAGES = {"decode": "decode", "wait": "wait", "process": "process", "encode": "encode"}


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """The command line of ``headrace process``, as it was given."""

    source: Path
    target: Path
    engine: EngineSettings
    workflow: str | None = None
    processor: str | None = None
    params: tuple[str, ...] = ()
    size: str | None = None
    bitrate: int = 4_000_000
    preset: str = "superfast"
    hardware: str = "auto"
    input_folder: Path | None = None
    comfyui: Path | None = None
    comfyui_python: str | None = None
    custom_nodes: Path | None = None


async def process_file(options: ProcessOptions, launched: Launched) -> None:
    """Run the whole job in the engine that is ``launched``; raises `HeadraceError` with what went wrong.

    SIGINT and SIGTERM stop it: the half-written output and the engine go, and `SystemExit` is raised with
    128 and the signal's number, as a shell reports it.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    caught: list[int] = []

    def stop(number: int) -> None:
        # Once only: a second signal would break off the clearing up, which is bounded.
        if not caught:
            task.cancel()
        caught.append(number)

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        await _process(options, launched)
    except (asyncio.CancelledError, HeadraceError):
        if caught:
            raise SystemExit(128 + caught[0]) from None
        raise
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


async def _process(options: ProcessOptions, launched: Launched) -> None:
    console = Console(stderr=True)
    engine = Engine(options.engine, launched)
    specs = _specs(options)
    comfyui = _comfyui(options, engine, specs)
    at_once = comfyui is None and options.custom_nodes is None
    job = make_job(options, engine, specs) if at_once else None
    started = time.monotonic()
    try:
        if options.custom_nodes is not None:
            with console.status("loading custom nodes"):
                await _learn_custom_nodes(options.custom_nodes, engine, specs)
            job = make_job(options, engine, specs) if comfyui is None else None
        if comfyui is not None:
            with console.status("starting ComfyUI"):
                await wait_until_known(comfyui.service, READY_TIMEOUT)
            job, engine = _job_beside(comfyui, options, engine, specs)
        assert job is not None
        if engine.state == "stopped":
            await engine.start()
        with console.status("starting the engine"):
            await engine.wait_ready(READY_TIMEOUT)
        ready = time.monotonic()
        await _with_progress(job, console)
        _report(job, console, options.target, ready - started, time.monotonic() - ready)
    finally:
        if job is not None:
            job.close()
        await engine.stop()
        if comfyui is not None:
            await comfyui.service.stop()


async def _learn_custom_nodes(folder: Path, engine: Engine, specs: Specs) -> None:
    """Start the engine and put the classes of the packs in ``folder`` where workflows are checked."""
    custom = CustomNodes(folder, specs.definitions)
    custom.watch(engine)
    await engine.start()
    await engine.wait_ready(READY_TIMEOUT)
    await custom.wait_told(READY_TIMEOUT)


def make_job(options: ProcessOptions, engine: Engine, specs: Specs | None = None) -> FileJob:
    """What the options ask for, both files open. Raises `HeadraceError` for what cannot be."""
    spec, params = _what_to_run(options, specs)
    processor = EngineProcessor(engine, spec, session="file", params=params)
    return FileJob(options.source, options.target, processor, _pipeline_settings(options))


def _job_beside(
    comfyui: ComfyBeside, options: ProcessOptions, engine: Engine, specs: Specs
) -> tuple[FileJob, Engine]:
    """The same where ComfyUI is there too, and the engine that it needs."""
    spec, params = _what_to_run(options, specs)
    processor = EngineProcessor(engine, spec, session="file", params=params)
    if "engine" in spec:
        processor = comfyui.processor(spec, session="file", params=params).inner
    return FileJob(options.source, options.target, processor, _pipeline_settings(options)), processor.engine


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What ComfyUI needs to know of where it is used."""

    settings: Settings
    engine: Engine
    specs: Specs


def _comfyui(options: ProcessOptions, engine: Engine, specs: Specs) -> ComfyBeside | None:
    """ComfyUI's engines, of which none is started yet; None where no ComfyUI is named."""
    if options.comfyui is None:
        return None
    given: dict[str, Any] = {
        "comfyui": options.comfyui,
        "comfyui_python": options.comfyui_python,
        "comfyui_second": "off",
        "engine_device": options.engine.device,
        "engine_threads": options.engine.threads,
        "call_timeout": options.engine.call_timeout,
        "input_folder": options.input_folder,
    }
    return ComfyBeside(_Surroundings(load_settings(given), engine, specs))


def _specs(options: ProcessOptions) -> Specs:
    folder = options.input_folder or _home_of(options.workflow or DEFAULT_WORKFLOW)
    return Specs(WorkerDefinitions(folder), local=True, named=Library().load)


def _what_to_run(
    options: ProcessOptions, specs: Specs | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    pairs = {}
    for text in options.params:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidInput(f"--param must read node.input=value, not {text!r}", field="--param")
        pairs[key] = value
    if options.processor is not None:
        if options.workflow is not None:
            raise InvalidInput("give --workflow or --processor, not both", field="--processor")
        return processor_spec(options.processor), dict(pairs)
    specs = specs or _specs(options)
    spec = specs.of_workflow(options.workflow or DEFAULT_WORKFLOW, allow_files=True)
    table = specs.parameters(spec)
    return spec, {key: table.parse_text_value(key, text) for key, text in pairs.items()}


def _home_of(workflow: str) -> Path:
    """Where the pictures of a workflow are looked for: beside its file, else in the working directory."""
    is_file = workflow.endswith(".json") or ("/" in workflow and not workflow.lstrip().startswith(("{", "[")))
    return Path(workflow).parent if is_file else Path()


def _pipeline_settings(options: ProcessOptions) -> PipelineSettings:
    width = height = None
    if options.size is not None:
        found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", options.size)
        if not found:
            raise InvalidInput(f"--size must read WIDTHxHEIGHT, not {options.size!r}", field="--size")
        width, height = int(found[1]), int(found[2])
        if not all(MIN_SIZE <= side <= MAX_SIZE for side in (width, height)):
            raise InvalidInput(
                f"--size must lie between {MIN_SIZE} and {MAX_SIZE}, not {options.size}", field="--size"
            )
    if options.hardware not in get_args(HardwarePolicy):
        policies = ", ".join(get_args(HardwarePolicy))
        raise InvalidInput(
            f"--hardware must be one of {policies}, not {options.hardware!r}", field="--hardware"
        )
    hardware: Any = options.hardware
    video = VideoEncoderSettings(
        bitrate=options.bitrate,
        preset=options.preset,
        hardware=hardware,
    )
    return PipelineSettings(width=width, height=height, encoding=EncodingSettings(video=video))


async def _with_progress(job: FileJob, console: Console) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[frames]} frames, {task.fields[fps]:.1f} fps"),
        TimeRemainingColumn(),
    )
    work = asyncio.ensure_future(job.run())
    started = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("processing", total=job.duration, frames=0, fps=0.0)
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=0.2)
                frames = job.figures.counts.frames_out if job.figures else 0
                fps = frames / max(time.monotonic() - started, 1e-3)
                progress.update(bar, completed=job.position, frames=frames, fps=fps)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
    await work


def _report(job: FileJob, console: Console, target: Path, loading: float, working: float) -> None:
    figures = job.figures
    assert figures is not None
    counts = figures.counts
    table = Table(title=str(target), title_justify="left")
    for column in ("stage", "p50 ms", "p95 ms", "p99 ms", "max ms"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, label in STAGES.items():
        row = figures.latency.stages[name].summary()
        if row["count"]:
            table.add_row(label, *(f"{row[key]:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms", "max_ms")))
    console.print(table)
    console.print(
        f"{counts.frames_out} frames in {working:.1f} s, {counts.frames_out / working:.1f} fps "
        f"({job.encoder_name}); the engine took {loading:.1f} s to start"
    )
    if job.errors:
        packets = "1 packet" if job.errors == 1 else f"{job.errors} packets"
        console.print(f"the input is damaged: {packets} could not be decoded and are left out")

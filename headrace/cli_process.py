"""The command line's part for files: ``headrace process``."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli_running import log_at, require_engine, run
from stream.errors import InvalidInput

FRAME_TIMEOUT = 600.0
"""Seconds for a frame of a file, which has no viewer who waits: a slow model on a CPU may take minutes."""
FILE_ATTEMPTS = 2
"""Starts of an engine for a file: what ends it before it is ready is rarely gone a moment later."""

Source = Annotated[Path, typer.Argument(metavar="IN", help="A video file.")]
Target = Annotated[Path, typer.Argument(metavar="OUT", help="Where to write; the suffix names the format.")]
Workflow = Annotated[
    str | None, typer.Option("--workflow", "-w", help="A bundled workflow or a workflow JSON file.")
]
Processor = Annotated[
    str | None, typer.Option(help="A FrameProcessor class instead, as package.module:Class.")
]
Parameters = Annotated[
    list[str] | None, typer.Option("--param", "-p", help="node.input=value; may be repeated.")
]
InputFolder = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        file_okay=False,
        help="Folder of LoadImage's pictures (default: that of the workflow's file, else this one).",
    ),
]
Size = Annotated[str | None, typer.Option(help="WIDTHxHEIGHT, centre-cropped (default: as it is).")]
Bitrate = Annotated[int, typer.Option(min=50_000, max=400_000_000, help="Bits per second of the picture.")]
Preset = Annotated[str, typer.Option(help="x264 preset.")]
Hardware = Annotated[str, typer.Option(help="NVENC: auto, off or require.")]
Comfyui = Annotated[
    Path | None, typer.Option(envvar="HEADRACE_COMFYUI", help="Folder of an existing ComfyUI to run in.")
]
ComfyuiPython = Annotated[
    str | None,
    typer.Option(envvar="HEADRACE_COMFYUI_PYTHON", help="Its interpreter (default: in its folder)."),
]
CustomNodes = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, help="Folder of custom nodes for our engine.")
]
Device = Annotated[str, typer.Option(help="Device of the engine: auto, cpu, cuda, cuda:N.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of one torch operation on the CPU.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", "-y", help="Replace OUT if it exists.")]
LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error.")]


def process(
    source: Source,
    target: Target,
    workflow: Workflow = None,
    processor: Processor = None,
    param: Parameters = None,
    input_folder: InputFolder = None,
    size: Size = None,
    bitrate: Bitrate = 4_000_000,
    preset: Preset = "superfast",
    hardware: Hardware = "auto",
    comfyui: Comfyui = None,
    comfyui_python: ComfyuiPython = None,
    custom_nodes: CustomNodes = None,
    device: Device = "auto",
    threads: Threads = 1,
    overwrite: Overwrite = False,
    log_level: LogLevel = "warning",
) -> None:
    """Turn a video file into a processed one, every frame of it."""
    log_at(log_level)
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
        attempts=FILE_ATTEMPTS,
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
        run(process_file(options, launched))


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)

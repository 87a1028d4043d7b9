"""The command line's part for looking at workflows before they run: ``headrace check``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stream.errors import HeadraceError

WIDTH = 140
"""Columns where nobody looks at a terminal."""
PROBLEMS = 1
UNREADABLE = 2


def check(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="JSON in either format, a picture that carries one, a name."),
    ],
    object_info: Annotated[
        str | None,
        typer.Option(metavar="FILE|URL", help="Nodes of a ComfyUI: its /object_info, or where it listens."),
    ] = None,
    comfyui: Annotated[
        Path | None,
        typer.Option(envvar="HEADRACE_COMFYUI", help="Nodes of the ComfyUI in this folder, beside our own."),
    ] = None,
    comfyui_python: Annotated[
        str | None,
        typer.Option(envvar="HEADRACE_COMFYUI_PYTHON", help="Its interpreter (default: in its folder)."),
    ] = None,
    input_node: Annotated[str | None, typer.Option(help="Id of the node that the stream replaces.")] = None,
    output_node: Annotated[str | None, typer.Option(help="Id of the node whose pictures go out.")] = None,
    input_folder: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of LoadImage's pictures (the file's own)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what workflows are and whether they can run, without running them.

    Exit status: 0 they can, 1 one has problems, 2 one cannot be read or the command is wrong.
    """
    from headrace.checking.examined import examine_file
    from headrace.checking.report import print_report
    from headrace.library.names import Library
    from workflows import library

    definitions = None if object_info is None else _definitions_of(object_info)
    in_comfyui = None
    if definitions is None and comfyui is not None:
        from headrace.comfyui import checking

        in_comfyui = checking.definitions_of(comfyui, comfyui_python)
    results: list[dict[str, Any]] = []
    failed, wrong = False, False
    console = _console()
    for name in files:
        try:
            data = library.load(name) if library.is_path(name) else Library().load(name)
            known, local = definitions or _builtin(name, input_folder), definitions is None
            if in_comfyui is not None:
                known, local = checking.definitions_for(data, known, in_comfyui)
        except HeadraceError as error:
            failed = True
            results.append({"file": name, "ok": False, "error": error.as_dict()})
            if not as_json:
                sys.stderr.write(f"headrace: error: {error.message}\n")
            continue
        found = examine_file(
            data,
            known,
            input_node=input_node,
            output_node=output_node,
            local=local,
        )
        wrong = wrong or any(one.problems for one in found)
        results.append(
            {
                "file": name,
                "ok": not any(one.problems for one in found),
                "workflows": [one.as_dict() for one in found],
            }
        )
        if not as_json:
            print_report(console, name, found)
    if as_json:
        sys.stdout.write(json.dumps(results, indent=2) + "\n")
    if failed or wrong:
        raise SystemExit(UNREADABLE if failed else PROBLEMS)


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if Console().is_terminal else WIDTH, highlight=False)


def _definitions_of(source: str) -> Any:
    from headrace.checking.object_info import load_object_info, told_age
    from workflows.registry import definitions_from_object_info

    try:
        info = load_object_info(source)
    except HeadraceError as error:
        sys.stderr.write(f"headrace: error: {error.message}\n")
        raise SystemExit(UNREADABLE) from None
    if info.age is not None:
        told = told_age(info.age)
        sys.stderr.write(f"headrace: {info.origin} does not answer; using what it said {told} ago\n")
    return definitions_from_object_info(info.data)


def _builtin(name: str, input_folder: Path | None) -> Any:
    from headrace.nodes import builtin
    from workflows import library

    folder = input_folder or (Path(name).parent if library.is_path(name) else Path())
    return builtin.registry(folder.resolve()).definitions

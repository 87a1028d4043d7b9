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
    definitions = None if object_info is None else _definitions_of(object_info)
    in_comfyui = None
    if definitions is None and comfyui is not None:
        from headrace.comfyui import checking

        in_comfyui = checking.definitions_of(comfyui, comfyui_python)
    checks = _Checks(definitions, in_comfyui, input_folder, input_node, output_node, aloud=not as_json)
    results = [checks.of(name) for name in files]
    if as_json:
        sys.stdout.write(json.dumps(results, indent=2) + "\n")
    if checks.unreadable or checks.wrong:
        raise SystemExit(UNREADABLE if checks.unreadable else PROBLEMS)


class _Checks:
    """Examines files by the same nodes; ``aloud``: tells of each as it goes."""

    def __init__(
        self,
        definitions: Any,
        in_comfyui: Any,
        input_folder: Path | None,
        input_node: str | None,
        output_node: str | None,
        *,
        aloud: bool,
    ) -> None:
        self.unreadable = self.wrong = False
        """Whether one of them cannot be read, or has problems."""
        self._definitions = definitions
        self._in_comfyui = in_comfyui
        self._input_folder = input_folder
        self._nodes = {"input_node": input_node, "output_node": output_node}
        self._aloud = aloud
        self._console = _console()

    def of(self, name: str) -> dict[str, Any]:
        """What is found in a file, as JSON data."""
        from headrace.checking.examined import examine_file
        from headrace.checking.report import print_report

        try:
            data, known, local = self._read(name)
        except HeadraceError as error:
            self.unreadable = True
            if self._aloud:
                sys.stderr.write(f"headrace: error: {error.message}\n")
            return {"file": name, "ok": False, "error": error.as_dict()}
        found = examine_file(data, known, local=local, **self._nodes)
        wrong = any(one.problems for one in found)
        self.wrong = self.wrong or wrong
        if self._aloud:
            print_report(self._console, name, found)
        return {"file": name, "ok": not wrong, "workflows": [one.as_dict() for one in found]}

    def _read(self, name: str) -> tuple[Any, Any, bool]:
        """A file's data, the nodes that it is checked by, and whether they are ours."""
        from headrace.library.names import Library
        from workflows import library

        data = library.load(name) if library.is_path(name) else Library().load(name)
        if self._definitions is not None:
            return data, self._definitions, False
        ours = _builtin(name, self._input_folder)
        if self._in_comfyui is None:
            return data, ours, True
        from headrace.comfyui.checking import definitions_for

        return data, *definitions_for(data, ours, self._in_comfyui)


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

"""From a specification (JSON) to a processor, inside the engine.

    {"kind": "passthrough"}
    {"kind": "class", "target": "package.module:Class", "kwargs": {...}}
    {"kind": "workflow", "workflow": {...}, "input_folder": "/absolute/path", "models_folder": ...}

A workflow may be a list of such, run in a row; ``input_folder``, for LoadImage, and ``models_folder`` may be
left out. A class target may also be a function that returns a processor. Its module is looked for on the
engine's ``sys.path``, which ends with `EngineSettings.extra_path`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.engine.home import Home
from stream.errors import HeadraceError, InvalidInput, ProcessorError
from stream.frames import VideoFrame
from stream.processor import FrameProcessor, VideoResult

KINDS = ("passthrough", "class", "workflow")


_home: Home | None = None


def live_in(home: Home | None) -> None:
    """From now on workflows run on the nodes of ``home`` instead of the built-in ones."""
    global _home
    _home = home


class Passthrough(FrameProcessor):
    """Every frame as it came."""

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        return frame


def build(spec: Mapping[str, Any]) -> FrameProcessor:
    """Make the processor that ``spec`` describes; its model is not loaded yet.

    Raises `InvalidInput` for a wrong specification, `ProcessorError` when the target cannot be imported or
    made, and whatever error of ours the workflow raises.
    """
    kind = spec.get("kind")
    if kind == "passthrough":
        return Passthrough()
    if kind == "class":
        return _from_class(spec)
    if kind == "workflow" and _home is not None:
        return _home.build(spec)
    if kind == "workflow":
        if spec.get("workflow") is None:
            raise InvalidInput("a workflow specification needs the workflow", field="workflow")
        # By name, because only sessions with a workflow should pay for its import.
        registry = _call("headrace.nodes.builtin:registry", **folders_of(spec))
        made = _call("workflows.processor:WorkflowProcessor", spec["workflow"], registry)
        return _checked(made, "WorkflowProcessor")
    raise InvalidInput(f"kind is {kind!r}; known are {', '.join(KINDS)}", field="kind")


def folders_of(spec: Mapping[str, Any]) -> dict[str, Path | None]:
    """The folders that a workflow's specification names. Raises `InvalidInput` for what is no path."""
    return {name: _folder(spec, name) for name in ("input_folder", "models_folder")}


def _folder(spec: Mapping[str, Any], name: str) -> Path | None:
    folder = spec.get(name)
    if not (folder is None or isinstance(folder, str)):
        raise InvalidInput(f"{name} is a {type(folder).__name__}, not a path", field=name)
    return None if folder is None else Path(folder)


def _from_class(spec: Mapping[str, Any]) -> FrameProcessor:
    target, kwargs = spec.get("target"), spec.get("kwargs", {})
    if not isinstance(target, str) or not all(target.partition(":")[::2]):
        raise InvalidInput(f"target is {target!r}, not 'package.module:Class'", field="target")
    if not isinstance(kwargs, dict):
        raise InvalidInput(f"kwargs is a {type(kwargs).__name__}, not an object", field="kwargs")
    return _checked(_call(target, **kwargs), target)


def _call(target: str, *arguments: Any, **kwargs: Any) -> object:
    module_name, _, attribute = target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for name in attribute.split("."):
            found = getattr(found, name)
        return found(*arguments, **kwargs)
    except HeadraceError:
        raise
    except Exception as error:  # the edge to code that is not ours
        raise ProcessorError(f"{target} cannot be made: {type(error).__name__}: {error}") from error


def _checked(made: object, target: str) -> FrameProcessor:
    if not isinstance(made, FrameProcessor):
        raise ProcessorError(f"{target} made a {type(made).__name__}, which is not a FrameProcessor")
    return made

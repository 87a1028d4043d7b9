"""Custom nodes in Headrace's own engine: the files and folders that ComfyUI loads, without ComfyUI.

A pack is a .py file or a package with ``NODE_CLASS_MAPPINGS`` (and ``NODE_DISPLAY_NAME_MAPPINGS``), or with a
``comfy_entrypoint``. Its faults stay with it. Pre-start scripts are not run, web folders not served.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from headrace.comfyui.host.packs import Pack, kept_in

log = logging.getLogger(__name__)

COMFYUI = frozenset(
    {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "nodes", "server"}
)
"""Modules that only a ComfyUI has."""


HOME = "headrace.nodes.home"


def home_for(folder: Path | None) -> dict[str, Any] | None:
    """What `EngineSettings.home` is for an engine that loads the packs in ``folder``."""
    return None if folder is None else {"module": HOME, "options": {"folder": str(folder.resolve())}}


@dataclass
class Loaded:
    """What the packs of a folder brought. Of classes with one name the one of the last pack counts."""

    packs: list[Pack] = field(default_factory=list)
    classes: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def load(folder: Path) -> Loaded:
    """Import every pack in ``folder``, in the order of their names. Raises nothing of a pack's."""
    loaded = Loaded()
    for path in packs_in(folder):
        begun = time.monotonic()
        found: tuple[Mapping[str, Any], Mapping[str, str]] = {}, {}
        with kept_in(path.name) as trouble:
            try:
                found = _nodes_of(_import(path))
                trouble.loaded = True
            except ModuleNotFoundError as error:
                raise _explained(error) from error
        loaded.classes.update(found[0])
        loaded.names.update(found[1])
        seconds = round(time.monotonic() - begun, 3)
        reason = "" if trouble.loaded else trouble.reason()
        loaded.packs.append(Pack(path.name, "custom", trouble.loaded, seconds, len(found[0]), reason))
    return loaded


def packs_in(folder: Path) -> Iterator[Path]:
    """The files and folders that are packs, by name."""
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith((".", "_")) or path.name.endswith(".disabled")
        if not hidden and (path.suffix == ".py" or (path / "__init__.py").is_file()):
            yield path


def _explained(error: ModuleNotFoundError) -> ImportError:
    top = (error.name or "").partition(".")[0]
    if top in COMFYUI:
        return ImportError(f"it needs ComfyUI's own module {top}, so it runs with --comfyui alone")
    return ImportError(f"{error} (pip install it for {sys.executable})")


def _import(path: Path) -> ModuleType:
    """The module of a pack, under a name of its own; its folder is not put on ``sys.path``."""
    name = "headrace_custom_nodes_" + re.sub(r"\W", "_", path.stem)
    file = path if path.suffix == ".py" else path / "__init__.py"
    inside = None if path.suffix == ".py" else [str(path)]
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=inside)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _nodes_of(module: ModuleType) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Classes and display names. Raises `ImportError` where a module has neither of what makes it a pack."""
    classes = getattr(module, "NODE_CLASS_MAPPINGS", None)
    names = getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", None)
    if isinstance(classes, Mapping):
        return dict(classes), dict(names) if isinstance(names, Mapping) else {}
    entry = getattr(module, "comfy_entrypoint", None)
    if entry is None:
        raise ImportError("it has neither NODE_CLASS_MAPPINGS nor comfy_entrypoint")
    found = asyncio.run(_extension_nodes(entry))
    return {str(one.GET_SCHEMA().node_id): one for one in found}, {}


async def _extension_nodes(entry: Any) -> list[Any]:
    extension = entry()
    if inspect.isawaitable(extension):
        extension = await extension
    found = extension.get_node_list()
    return list(await found if inspect.isawaitable(found) else found)

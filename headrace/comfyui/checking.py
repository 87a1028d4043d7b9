"""The classes of an installation for whoever has no worker: kept ones, else asked of an engine that ends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.comfyui.routing import place_of, used_classes
from headrace.comfyui.service import ComfyService
from headrace.comfyui.setup import comfy_settings, wait_until_known
from headrace.settings import load_settings
from workflows.definitions import Definitions

START = 600.0
"""Seconds for the installation and all its packs to be imported."""


def definitions_of(directory: Path, python: str | None) -> Definitions:
    """Of the ComfyUI in ``directory``. Raises `InvalidInput`, or `EngineError` when it does not start."""
    settings = comfy_settings(load_settings({"comfyui": directory, "comfyui_python": python}))

    async def ask() -> Definitions:
        service = ComfyService(settings, lambda definitions: None)
        try:
            if not service.definitions:
                await wait_until_known(service, START)
            return service.definitions
        finally:
            await service.stop()

    return asyncio.run(ask())


def definitions_for(data: Any, builtin: Definitions, comfyui: Definitions) -> tuple[Definitions, bool]:
    """The definitions that hold for a workflow, and whether they are our own. Raises `InvalidWorkflow`."""
    ours = place_of(used_classes(data), builtin, comfyui) == "builtin"
    chosen: Mapping[str, Any] = builtin if ours else comfyui
    return chosen, ours

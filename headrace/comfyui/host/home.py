"""The engine's home in a ComfyUI installation: see `headrace.engine.home`."""

from __future__ import annotations

import gc
import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.comfyui.host import startup
from headrace.comfyui.host.describing import object_info
from headrace.comfyui.host.options import ComfyOptions
from headrace.comfyui.host.processor import ComfyProcessor
from headrace.comfyui.host.registry import ComfyRegistry
from headrace.comfyui.host.turn import Turn
from headrace.engine.host_memory import taken
from stream.errors import InvalidInput
from stream.processor import FrameProcessor

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

BUSY_FOR = 10.0
"""Seconds after its last frame for which a stream would soon want its models again."""


def open_home(options: Mapping[str, Any]) -> ComfyHome:
    return ComfyHome(ComfyOptions.from_dict(options))


class ComfyHome:
    """ComfyUI's modules, its classes and its memory management."""

    def __init__(self, options: ComfyOptions) -> None:
        self._options = options
        self._started = startup.Started(options)
        self._turn = Turn(self._clear)
        self._registry: ComfyRegistry | None = None
        self._trusting: ComfyRegistry | None = None
        """For the operator's own workflows: all classes."""

    # -- start-up ----------------------------------------------------------------------------------------

    def before_torch(self) -> None:
        startup.before_torch(self._started)

    def after_torch(self) -> torch.device | None:
        started = self._started
        startup.after_torch(started)
        self._registry = self._registry_of(self._options.classes)
        self._trusting = self._registry_of(()) if self._options.classes else self._registry
        device: torch.device | None = started.device
        return device

    def _registry_of(self, classes: tuple[str, ...]) -> ComfyRegistry:
        nodes = self._started.nodes
        registry = ComfyRegistry(
            roots=self._roots(), classes=classes, network=self._options.network, lock=self._turn
        )
        registry.add(nodes.NODE_CLASS_MAPPINGS, nodes.NODE_DISPLAY_NAME_MAPPINGS)
        return registry

    def blobs(self) -> Mapping[str, bytes]:
        return {"facts": json.dumps(self._facts()).encode(), "object_info": self._object_info()}

    def _facts(self) -> dict[str, Any]:
        started = self._started
        return {
            "directory": self._options.directory,
            "version": started.version,
            "python": sys.version.split()[0],
            "packs": [pack.as_dict() for pack in started.packs],
            "classes": len(started.nodes.NODE_CLASS_MAPPINGS),
            "input_folder": started.folder_paths.get_input_directory(),
            "server_uses": dict(started.server.uses) if started.server is not None else {},
        }

    def _object_info(self) -> bytes:
        nodes = self._started.nodes
        described = object_info(
            nodes.NODE_CLASS_MAPPINGS, nodes.NODE_DISPLAY_NAME_MAPPINGS, self._started.folder_paths
        )
        return json.dumps(described).encode()

    def _roots(self) -> list[str]:
        """The folders that workflows may name by absolute paths: its own, and those of the settings."""
        paths = self._started.folder_paths
        found = [str(Path(folder)) for folder in self._options.folders]
        for kind in ("input", "output", "temp"):
            found.append(getattr(paths, f"get_{kind}_directory")())
        for kind, (folders, *_) in paths.folder_names_and_paths.items():
            if kind != "custom_nodes":
                found += folders
        return [folder.rstrip("/") for folder in dict.fromkeys(found)]

    # -- work --------------------------------------------------------------------------------------------

    def build(self, spec: Mapping[str, Any]) -> FrameProcessor:
        if spec.get("workflow") is None:
            raise InvalidInput("a workflow specification needs the workflow", field="workflow")
        assert self._registry is not None
        assert self._trusting is not None
        for registry in (self._registry, self._trusting):
            registry.forget_lists()
        first = self._trusting if spec.get("trusted") is True else self._registry
        return ComfyProcessor(
            spec["workflow"], first, self._turn, later=self._registry, device=self._picture_device()
        )

    def _picture_device(self) -> str:
        """Pictures are made where its nodes keep them: on the CPU unless it runs with ``--gpu-only``."""
        between = self._started.memory.intermediate_device()
        return "engine" if between == self._started.device and between.type != "cpu" else "cpu"

    def _clear(self) -> None:
        """What one session has left behind in its global state is not for the next."""
        self._started.memory.interrupt_current_processing(False)
        server = self._started.server
        if server is not None:
            server.client_id = server.last_node_id = None

    # -- memory and questions ----------------------------------------------------------------------------

    def memory(self) -> Mapping[str, int]:
        size = 0
        for loaded in list(self._started.memory.current_loaded_models):
            if loaded.device == self._started.device and loaded.model is not None:
                size += int(loaded.model_loaded_memory())
        busy = time.monotonic() - self._turn.frame_at < BUSY_FOR
        device, memory = self._started.device, self._started.memory
        return {
            "held": max(taken(device), size),
            "reclaimable": size,
            "free": int(memory.get_free_memory(device)),
            "total": int(memory.get_total_memory(device)),
            "busy": int(busy),
        }

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        what = body.get("do")
        if what == "release":
            return self._release()
        raise InvalidInput(f"a home is not asked to {what!r}", field="do")

    def _release(self) -> dict[str, Any]:
        """Unload all models by its own functions, while no node runs."""
        before = self.memory()["reclaimable"]
        with self._turn:
            self._started.memory.unload_all_models()
            gc.collect()
            self._started.memory.soft_empty_cache()
        after = self.memory()["reclaimable"]
        log.info("ComfyUI gave back %d of %d bytes of models", before - after, before)
        return {"released": max(0, before - after)}

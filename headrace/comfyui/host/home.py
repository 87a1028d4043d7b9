"""The engine's home in a ComfyUI installation: see `headrace.engine.home`."""

from __future__ import annotations

import gc
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
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

_ALL = float(1 << 60)
"""Bytes that no device has: all that may be unloaded is."""


def open_home(options: Mapping[str, Any]) -> ComfyHome:
    return ComfyHome(ComfyOptions.from_dict(options))


class ComfyHome:
    """ComfyUI's modules, its classes and its memory management."""

    def __init__(self, options: ComfyOptions) -> None:
        self._options = options
        self._started = startup.Started(options)
        self._turn = Turn(self._clear)
        self._tell_memory: Callable[[], None] = lambda: None
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

    def connect(self, say: Callable[[Mapping[str, Any]], None], tell_memory: Callable[[], None]) -> None:
        self._tell_memory = tell_memory
        self._started.loads.connect(say, tell_memory)

    def memory(self) -> Mapping[str, int]:
        device, memory = self._started.device, self._started.memory
        loads, busy = self._started.loads, self._is_busy()
        size = idle = 0
        for loaded in self._loaded():
            own = int(loaded.model_loaded_memory())
            size += own
            # What loads has the turn, without which nothing is unloaded.
            is_used = loads.is_loading or (busy and loads.in_use(loaded.model))
            idle += 0 if is_used else own
        return {
            "held": max(taken(device), size),
            "reclaimable": size,
            "idle": idle,
            "free": int(memory.get_free_memory(device)),
            "total": int(memory.get_total_memory(device)),
            "busy": int(busy),
        }

    def _loaded(self) -> list[Any]:
        """ComfyUI's records of what is on its device."""
        records = list(self._started.memory.current_loaded_models)
        return [one for one in records if one.device == self._started.device and one.model is not None]

    def _is_busy(self) -> bool:
        """Whether a stream would soon want its models again."""
        recent = time.monotonic() - self._turn.frame_at < self._options.keep
        return recent or self._started.loads.is_loading

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        what = body.get("do")
        if what == "release":
            return self._release()
        if what == "admitted":
            self._started.loads.admitted(body)
            return {}
        raise InvalidInput(f"a home is not asked to {what!r}", field="do")

    def _release(self) -> dict[str, Any]:
        """Unload what is not in use by its own functions, while no node runs; what went, and what is left."""
        memory = self._started.memory
        before = self.memory()["reclaimable"]
        with self._turn:
            kept = [one for one in self._loaded() if self._started.loads.in_use(one.model)]
            if kept and self._is_busy():
                memory.free_memory(_ALL, self._started.device, keep_loaded=kept)
            else:
                memory.unload_all_models()
            gc.collect()
            memory.soft_empty_cache()
        after = self.memory()["reclaimable"]
        self._tell_memory()
        log.info("ComfyUI gave back %d of %d bytes of models", before - after, before)
        return {"released": max(0, before - after), "left": after}

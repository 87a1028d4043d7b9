"""A home for engines of our own that load custom nodes beside the built-in ones (`headrace.engine.home`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.nodes import builtin, packs
from stream.errors import InvalidInput
from stream.processor import FrameProcessor
from workflows.registry import NodeRegistry

if TYPE_CHECKING:
    import torch


def open_home(options: Mapping[str, Any]) -> CustomNodesHome:
    """``options``: ``folder``, that of the packs."""
    return CustomNodesHome(Path(str(options["folder"])))


class CustomNodesHome:
    """See `headrace.engine.home.Home`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded = packs.Loaded()

    def before_torch(self) -> None:
        """Nothing comes before torch."""

    def after_torch(self) -> torch.device | None:
        self._loaded = packs.load(self._folder)
        return None

    def blobs(self) -> Mapping[str, bytes]:
        registry = NodeRegistry.from_mappings(self._loaded.classes)
        registry.add(self._loaded.classes, self._loaded.names)
        info = {name: entry for name, entry in registry.object_info().items() if name in self._loaded.classes}
        facts = {
            "packs": [pack.as_dict() for pack in self._loaded.packs],
            "broken": registry.definitions.failures,
        }
        return {"facts": json.dumps(facts).encode(), "object_info": json.dumps(info).encode()}

    def build(self, spec: Mapping[str, Any]) -> FrameProcessor:
        from headrace.engine.processors import folders_of
        from workflows.processor import WorkflowProcessor

        if spec.get("workflow") is None:
            raise InvalidInput("a workflow specification needs the workflow", field="workflow")
        registry = builtin.registry(**folders_of(spec))
        registry.add(self._loaded.classes, self._loaded.names)
        return WorkflowProcessor(spec["workflow"], registry)

    def connect(self, say: Callable[[Mapping[str, Any]], None], tell_memory: Callable[[], None]) -> None:
        """It has nothing to ask."""

    def memory(self) -> Mapping[str, int]:
        """What packs hold is counted with all that sessions take."""
        return dict.fromkeys(("total", "free", "held", "reclaimable", "idle", "busy"), 0)

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        raise InvalidInput(f"this engine is not asked to {body.get('do')!r}", field="do")

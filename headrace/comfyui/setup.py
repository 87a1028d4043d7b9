"""ComfyUI beside a worker's own engine, from its settings."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Protocol

from headrace.comfyui.host.options import ComfyOptions
from headrace.comfyui.installation import Installation
from headrace.comfyui.placement import COMFYUI, ComfyPlacement
from headrace.comfyui.routing import place_of, used_classes
from headrace.comfyui.service import ComfyService, ComfySettings
from headrace.engine.client import EngineProcessor, replacing
from headrace.engine.guardian import Engine
from headrace.engine.swapping import SwappingProcessor
from headrace.models.ledger_service import LedgerService
from headrace.models.roots import Roots
from headrace.server.specs import Spec, Specs
from headrace.server.stopping import ENGINE
from headrace.settings import Settings
from stream.errors import EngineError, InvalidInput
from stream.processor import Params
from workflows.changes import differing_values
from workflows.definitions import Definitions

_EDITOR_ONLY = frozenset({"MarkdownNote", "Note", "PrimitiveNode", "Reroute"})
_UUID_LENGTH = 36


class Worker(Protocol):
    """What of a worker is needed here."""

    @property
    def settings(self) -> Settings: ...

    @property
    def engine(self) -> Engine: ...

    @property
    def specs(self) -> Specs: ...


def comfy_settings(settings: Settings) -> ComfySettings:
    """Raises `InvalidInput` for a folder that is no ComfyUI, and for what cannot be its arguments."""
    assert settings.comfyui is not None
    installation = Installation.at(settings.comfyui, settings.comfyui_python)
    try:
        arguments = tuple(shlex.split(settings.comfyui_args))
    except ValueError as error:
        raise InvalidInput(
            f"comfyui_args cannot be split into words: {error}", field="comfyui_args"
        ) from None
    folder = settings.input_folder
    return ComfySettings(
        installation=installation,
        options=ComfyOptions(
            directory=str(installation.directory),
            scratch="",
            arguments=arguments,
            input_folder=str(folder.resolve()) if folder is not None else None,
            prestart=settings.comfyui_prestart,
            network=settings.comfyui_network,
            skip_packs=settings.comfyui_skip_packs,
            classes=settings.comfyui_classes,
            folders=tuple(str(Path(name).expanduser().resolve()) for name in settings.comfyui_folders),
        ),
        cache=Roots.from_environment().cache / "comfyui",
        device=settings.engine_device,
        threads=settings.engine_threads or 1,
        call_timeout=settings.call_timeout,
        stop_timeout=ENGINE,
        second=settings.comfyui_second,
    )


class ComfyBeside:
    """ComfyUI's engines, and the choice of engine for each workflow of a worker."""

    def __init__(self, worker: Worker, ledger: LedgerService | None = None) -> None:
        self._specs = worker.specs
        self._prefer = worker.settings.comfyui_prefer
        self.service = ComfyService(comfy_settings(worker.settings), self._known, ledger)
        self._placement = ComfyPlacement(worker.engine, self.service, self._bring)
        definitions = worker.specs.definitions
        definitions.apart.add(COMFYUI)
        definitions.choose = self._choose

    def processor(self, spec: Spec, *, session: str, params: Params | None = None) -> SwappingProcessor:
        """The stand-in for a session that may move between engines."""

        def make(engine: Engine, spec: dict[str, Any], params: Params) -> EngineProcessor:
            complete = self._specs.completing(spec)
            return EngineProcessor(engine, spec, session=session, params=params, complete=complete)

        return SwappingProcessor(self._placement.engine_for(spec), spec, self._placement, make, params)

    def _known(self, definitions: Definitions) -> None:
        self._specs.definitions.put(COMFYUI, definitions)

    def _choose(self, data: Any) -> str | None:
        """Raises `InvalidWorkflow` for a workflow that needs both, `EngineError` while nobody can know."""
        used, builtin = used_classes(data), self._specs.definitions.ours()
        if not self.service.definitions:
            foreign = [one.class_type for one in used if one.class_type not in builtin]
            if any(name not in _EDITOR_ONLY and len(name) != _UUID_LENGTH for name in foreign):
                self.service.require()
        place = place_of(used, builtin, self.service.definitions, prefer_comfyui=self._prefer)
        return COMFYUI if place == "comfyui" else None

    def _bring(self, spec: dict[str, Any], params: Params) -> dict[str, Any] | None:
        """The spec of the workflow that ``params`` bring, unless it is the running one with other values."""
        key = replacing(params)
        if key is None or spec.get("kind") != "workflow":
            return None
        brought = self._specs.of_workflow(params[key])
        if brought.get("engine") != spec.get("engine"):
            return brought
        values = differing_values(self._specs.graphs(spec), self._specs.graphs(brought))
        return brought if values is None else None


async def wait_until_known(service: ComfyService, timeout: float) -> None:
    """Start its first engine and wait until it has said which classes it has. Raises `EngineError`."""
    await service.start()
    await service.first.wait_ready(timeout)
    await service.wait_introduced(timeout)
    if not service.definitions:
        raise EngineError("ComfyUI has started, but says nothing of its classes")

"""Which engine a session's workflow runs in, when there is a ComfyUI beside our own engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace.comfyui.service import ComfyService
from headrace.engine.guardian import Engine
from headrace.engine.swapping import Target
from stream.processor import Params
from workflows.processor import WORKFLOW_KEYS

COMFYUI = "comfyui"
"""Value of a spec's ``engine`` whose workflow runs in ComfyUI."""
GAP = (
    "the other workflow is prepared in the ComfyUI that works on the frames, for want of memory for a second "
    "one: the picture may stand still meanwhile"
)


class ComfyPlacement:
    """`headrace.engine.swapping.Placement` over our live engine and ComfyUI's.

    ``bring`` gives the spec that changed parameters bring for a session that runs another, and the parameters
    beside it; None when they bring no other workflow.
    """

    def __init__(
        self,
        live: Engine,
        comfyui: ComfyService,
        bring: Callable[[dict[str, Any], Params], dict[str, Any] | None],
    ) -> None:
        self._live = live
        self._comfyui = comfyui
        self._bring = bring

    def engine_for(self, spec: dict[str, Any]) -> Engine:
        """Where a new session of ``spec`` begins."""
        return self._comfyui.first if spec.get("engine") == COMFYUI else self._live

    def target(self, engine: Engine, spec: dict[str, Any], params: Params) -> Target | None:
        brought = self._bring(spec, params)
        if brought is None:
            return None
        rest = {name: value for name, value in params.items() if name not in WORKFLOW_KEYS}
        if brought.get("engine") != COMFYUI:
            return Target(brought, rest, None if engine is self._live else self._live)
        if engine is self._live:
            return Target(brought, rest, self._comfyui.first)
        beside = self._comfyui.beside(engine)
        return Target(brought, rest, beside, None if beside is not None else GAP)

    async def made_ready(self, engine: Engine) -> None:
        if engine is not self._live:
            await self._comfyui.made_ready(engine)

    def entered(self, engine: Engine) -> None:
        if engine is not self._live:
            self._comfyui.entered(engine)

    def left(self, engine: Engine) -> None:
        if engine is not self._live:
            self._comfyui.left(engine)

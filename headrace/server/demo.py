"""The stream that a newcomer meets: the test pattern through a bundled workflow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from headrace.server.catalogue import title_of
from headrace.server.specs import Spec, Specs
from stream.errors import AtCapacity
from stream.logs import about_session
from stream.pattern import PatternSettings
from stream.pattern_session import pattern_session
from stream.pipeline import PipelineSettings
from stream.processor import FrameProcessor
from stream.session import Session, SessionSettings
from stream.table import SessionTable

log = logging.getLogger(__name__)

DEMO_ID = "demo"
DEFAULT_WORKFLOW = "cartoon"


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A workflow and what it is called."""

    name: str
    spec: Spec


class Demo:
    """One session ``demo``, started with the worker, and again whenever somebody asks for it.

    It is not started again by itself: who stopped it meant it.
    """

    def __init__(
        self,
        engine: Engine,
        table: SessionTable,
        pipeline: PipelineSettings,
        specs: Specs,
        *,
        workflow: str = DEFAULT_WORKFLOW,
        processor: Spec | None = None,
        pattern: PatternSettings | None = None,
        make: Callable[[Spec, str], FrameProcessor] | None = None,
    ) -> None:
        self._engine = engine
        self._table = table
        self._pipeline = pipeline
        self._pattern = pattern or PatternSettings()
        self._lock = asyncio.Lock()
        self._chosen: _Chosen | None = None
        self._default = workflow
        self._processor = processor
        self._specs = specs
        self._make = make or self._in_engine
        self._session: Session | None = None

    @property
    def workflow(self) -> str:
        """The name of the workflow that runs, or would run: a bundled one or a path."""
        if self._chosen is not None:
            return self._chosen.name
        return self._processor["target"] if self._processor is not None else self._default

    @property
    def running(self) -> Session | None:
        session = self._session
        return session if session is not None and session.ending is None else None

    def describe(self) -> dict[str, Any]:
        """What the page says of it."""
        pattern = self._pattern
        return {
            "id": DEMO_ID,
            "running": self.running is not None,
            "workflow": self.workflow,
            "title": title_of(self.workflow),
            "source": f"test pattern, {pattern.width} × {pattern.height}, {pattern.fps:g} fps",
        }

    async def start(
        self, workflow: str | dict[str, Any] | None = None, *, title: str | None = None
    ) -> Session:
        """Run a workflow (a bundled one's name, or JSON data called ``title``; None: the one before) from the
        beginning, in place of what runs.

        Raises `NotFound` or `InvalidWorkflow` and leaves alone what runs; `AtCapacity`, `Conflict`.
        """
        async with self._lock:
            # In a thread: other streams go on while a large one is checked.
            chosen = await asyncio.to_thread(self._choose, workflow, title)
            await self._end("another workflow was chosen")
            processor = self._make(chosen.spec, DEMO_ID)
            with about_session(DEMO_ID):
                session = pattern_session(
                    DEMO_ID, processor, SessionSettings(pipeline=self._pipeline), self._pattern
                )
                session.pipeline_name = chosen.name
                self._table.add(session)
            self._chosen, self._session = chosen, session
            return session

    async def stop(self) -> None:
        """End it; nothing happens when it does not run."""
        async with self._lock:
            await self._end("stopped on the page")

    def _in_engine(self, spec: Spec, session: str) -> FrameProcessor:
        return EngineProcessor(self._engine, spec, session=session, complete=self._specs.completing(spec))

    def _choose(self, workflow: str | dict[str, Any] | None, title: str | None) -> _Chosen:
        if workflow is None and self._chosen is not None:
            return self._chosen
        if self._processor is not None and workflow in (None, self._processor["target"]):
            return _Chosen(self._processor["target"], self._processor)
        if workflow is None:
            # What the operator named may be a file.
            name = self._default
            spec = self._specs.of_workflow(name, allow_files=True)
        elif isinstance(workflow, str):
            name = workflow
            spec = self._specs.of_workflow(self._specs.named(workflow))
        else:
            name = title or "Your workflow"
            spec = self._specs.of_workflow(workflow)
        return _Chosen(name, spec)

    async def _end(self, reason: str) -> None:
        session = self._session
        if session is None or all(other is not session for other in self._table):
            return
        session.stop(reason)
        if not await self._table.wait_ended(session.id):
            raise AtCapacity("the demo is still closing; try again in a moment")

"""What the page shows, as JSON, and a session's state in words."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from headrace.engine.client import EngineProcessor
from headrace.library.names import Library
from headrace.server.specs import Specs
from stream.errors import HeadraceError
from stream.pausing import innermost
from stream.session import Session
from stream.states import ERROR_MEMORY, RESTART_MEMORY, State
from stream.status import session_report


@dataclass(frozen=True, slots=True)
class RunningWorkflow:
    """``names`` are those of bundled and kept workflows, none for any other; ``schema`` has the workflow's
    own values as defaults."""

    spec: dict[str, Any]
    names: tuple[str, ...]
    schema: dict[str, Any]


class RunningWorkflows:
    """What each session runs, worked out once for each workflow."""

    def __init__(self, specs: Specs, names: Library) -> None:
        self._specs = specs
        self._names = names
        self._known: WeakKeyDictionary[Session, RunningWorkflow] = WeakKeyDictionary()
        self._turn = asyncio.Lock()
        self._version = names.store.version

    async def of(self, session: Session) -> RunningWorkflow:
        """What ``session`` runs; for what is no workflow, the parameters that the processor tells of."""
        processor = innermost(session.processor)
        spec = processor.spec if isinstance(processor, EngineProcessor) else {}
        if spec.get("kind") != "workflow":
            # A class has a name of its own, which the page shows as it would a workflow's.
            names = (str(spec["target"]),) if "target" in spec else ()
            return RunningWorkflow(spec, names, session.processor.info().schema)
        if self._version != self._names.store.version:
            # What runs may have a name now, or no longer.
            self._version = self._names.store.version
            self._known.clear()
        # Many pages may ask; one large workflow at a time is looked at, in a thread.
        async with self._turn:
            known = self._known.get(session)
            if known is None or known.spec is not spec:
                known = self._known[session] = await asyncio.to_thread(self._examined, spec)
            return known

    def _examined(self, spec: dict[str, Any]) -> RunningWorkflow:
        try:
            # After a change it is as the caller gave it: JSON data, text, or a name.
            data = self._specs.of_workflow(spec["workflow"])["workflow"]
            schema = self._specs.parameters({**spec, "workflow": data}).schema()
        except HeadraceError:
            # The engine said the same to whoever asked for it.
            return RunningWorkflow(spec, (), {})
        return RunningWorkflow(spec, tuple(self._names.names_of(data)), schema)


def session_state_of_page(session: Session, running: RunningWorkflow) -> dict[str, Any]:
    """The figures of a session with its parameters and the reason for its state in words."""
    words, progress = session.processor.progress()
    return {
        **session_report(session),
        "workflow": session.pipeline_name,
        "begun": session.started_at,
        "chosen": next(iter(running.names), None),
        "known_as": running.names,
        "schema": running.schema,
        "values": current_values(running.schema, session.params),
        "explanation": explain(session, words),
        "progress": progress,
        "restarts": session.restarts,
    }


def explain(session: Session, words: str) -> str:
    """Why a session is in its state; ``words`` are those of its processor."""
    figures, now = session.pipeline.figures, time.monotonic_ns()
    state = session.state
    if session.ending is not None:
        return f"Ended: {session.ending.reason}."
    if session.fatal is not None:
        return _sentence(session.fatal.message)
    if state is State.LOADING:
        return _sentence(words if words != "ready" else "waiting for the first result")
    if state is State.ONLINE:
        return _pace(session)
    if state is State.DEGRADED_INPUT:
        return "No input arrives."
    if words != "ready":
        return _sentence(words)
    if figures.last_error is not None and _seconds(now, figures.last_error_at) < ERROR_MEMORY:
        return f"A frame failed: {_sentence(figures.last_error.message)}"
    if session.restarted_at is not None and time.time() - session.restarted_at < RESTART_MEMORY:
        return f"The engine was restarted {time.time() - session.restarted_at:.0f} s ago."
    if state is State.ERROR:
        return "There has been no result for over ten seconds."
    return _pace(session)


def _pace(session: Session) -> str:
    figures, now = session.pipeline.figures, time.monotonic_ns()
    done, offered = figures.result_rate.rate(now), figures.input_rate.rate(now)
    if not offered:
        return "No frames come in."
    if done >= 0.95 * offered:
        return "Every frame is processed."
    return f"{done:.1f} of {offered:.1f} frames a second are processed, always the newest."


def current_values(schema: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The value of each parameter of ``schema``: its default, unless ``params`` has another.

    ``params`` may use the canonical name or the node's title, in any case, flat or nested; a title that
    several nodes have names nothing.
    """
    properties: Mapping[str, Mapping[str, Any]] = schema.get("properties", {})
    names: dict[str, set[str]] = {}
    for key, about in properties.items():
        title, _, name = str(about.get("title", "")).rpartition(": ")
        for alias in {key.lower(), f"{title}.{name}".lower()}:
            names.setdefault(alias, set()).add(key)
    values = {key: about.get("default") for key, about in properties.items()}
    for name, value in _flat(params):
        keys = names.get(name.lower(), set())
        if len(keys) == 1:
            values[next(iter(keys))] = value
    return values


def _flat(params: Mapping[str, Any]) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat += ((f"{name}.{inner}", inner_value) for inner, inner_value in value.items())
        else:
            flat.append((name, value))
    return flat


def _sentence(words: str) -> str:
    words = words.strip()
    words = words[:1].upper() + words[1:]
    return words if words.endswith((".", "!", "?")) else f"{words}."


def _seconds(now: int, moment: int | None) -> float:
    return float("inf") if moment is None else (now - moment) / 1e9

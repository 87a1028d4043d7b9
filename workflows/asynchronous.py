"""A planned flow with async nodes: what does not need each other is awaited at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from workflows.failures import node_failed
from workflows.inference import in_inference_mode
from workflows.layout import Flow, Step
from workflows.protocol import IS_BLOCKER
from workflows.results import NotPlain
from workflows.slowroad import Given


class _Pending:
    """Stands in a slot for an output of a step that is still awaited."""

    __slots__ = ("index", "task")

    def __init__(self, task: asyncio.Task[Any], index: int) -> None:
        self.task = task
        self.index = index


Plain = Callable[[Flow, Any, Any, int], Any]


async def run_steps(flow: Flow, slots: list[Any], given: Given, plain: Plain) -> Given | None:
    """Run the steps on ``slots``. Where they cannot go on as planned: what there is for the slow road.

    Raises `ProcessorError` that names the node at fault; what is still awaited then is cancelled.
    """
    tasks: list[asyncio.Task[Any]] = []
    step: Step
    result: Any = None
    arguments: dict[str, Any] = {}
    try:
        for step in flow.steps:
            arguments = step.static.copy()
            for name, slot in step.links:
                value = slots[slot]
                if value.__class__ is _Pending:
                    value = slots[slot] = await _awaited(value)
                arguments[name] = value
            for slot in step.release:
                slots[slot] = None
            if step.overlaps:
                task = asyncio.create_task(in_inference_mode(_call(flow, step, arguments, plain)))
                tasks.append(task)
                for index, slot in step.outputs:
                    slots[slot] = _Pending(task, index)
                continue
            result = await _raw(step, arguments)
            values = _read(flow, step, result, arguments, plain)
            for index, slot in step.outputs:
                slots[slot] = values[index]
        for slot, value in enumerate(slots):
            if value.__class__ is _Pending:
                slots[slot] = await _awaited(value)
        for task in tasks:
            await task
    except NotPlain as surprise:
        if tasks:
            # What overlaps may have come to something that was not planned, too; all of it is run again.
            return replace(given, slots=[])
        step.give_back(slots, arguments)
        return replace(given, slots=slots, step=step, result=(result,) if surprise.made else ())
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
    return None


async def _awaited(pending: _Pending) -> Any:
    return (await pending.task)[pending.index]


async def _raw(step: Step, arguments: dict[str, Any]) -> Any:
    try:
        result = step.call(**arguments)
        return await result if step.is_async else result
    except NotPlain:
        raise
    except (Exception, SystemExit) as error:
        # An exit must not leave a task: it would end the event loop.
        raise node_failed(step.node, error, arguments) from error


async def _call(flow: Flow, step: Step, arguments: dict[str, Any], plain: Plain) -> Any:
    return _read(flow, step, await _raw(step, arguments), arguments, plain)


def _read(flow: Flow, step: Step, result: Any, arguments: dict[str, Any], plain: Plain) -> Any:
    if result.__class__ is not tuple or len(result) < step.width:
        try:
            result = plain(flow, step.call, result, step.width)
        except ValueError as error:
            raise node_failed(step.node, error, arguments) from error
    if any(IS_BLOCKER[result[index].__class__] for index, _ in step.outputs):
        raise NotPlain(made=True)
    return result

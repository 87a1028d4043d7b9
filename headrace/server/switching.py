"""What a session runs, as workflow graphs with their present values, and how it is changed."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.engine.client import EngineProcessor
from headrace.server.specs import Specs
from stream.errors import InvalidInput
from stream.pausing import innermost
from stream.processor import Params
from stream.requests import take_media_params
from stream.session import Session
from stream.webrtc.channels import READY_WAIT
from workflows.changes import differing_values
from workflows.definitions import Definitions, InputDefinition
from workflows.graph import RULE, Graph, Link
from workflows.parameters import ParameterTable, Place


@dataclasses.dataclass(frozen=True, slots=True)
class Running:
    """The workflows of a session in their order, with the values that hold now."""

    graphs: tuple[Graph, ...]
    table: ParameterTable
    definitions: Definitions
    spec: Mapping[str, Any]

    @property
    def workflow(self) -> Any:
        """Data, or a list of such, as somebody gave it."""
        return self.spec["workflow"]


def running(session: Session, specs: Specs) -> Running:
    """What a session runs. Raises `InvalidInput` when that is no workflow."""
    processor = innermost(session.processor)
    if not isinstance(processor, EngineProcessor) or processor.spec.get("kind") != "workflow":
        raise InvalidInput("this session runs no workflow", field="type")
    spec = processor.spec
    table, values = specs.parameters(spec), dict[Place, Any]()
    told = processor.info().schema.get("properties")
    if told is not None:
        # The engine tells the present values as defaults.
        known = {key: about.get("default") for key, about in told.items() if key in table.parameters}
        values = {table.parameters[key].place: value for key, value in known.items()}
    else:
        own = {name: value for name, value in processor.params.items() if table.knows(name)}
        values = table.resolve(own)
    graphs = [_with_values(graph, index, values) for index, graph in enumerate(specs.graphs(spec))]
    definitions = specs.definitions.of(spec)
    return Running(tuple(graphs), ParameterTable(graphs, definitions), definitions, spec)


async def schema_of(session: Session, specs: Specs) -> dict[str, Any]:
    """JSON Schema of a session's live parameters, known for a workflow before it is loaded."""
    schema = session.processor.info().schema
    if schema:
        return schema
    try:
        found = await asyncio.to_thread(running, session, specs)
        return found.table.schema()
    except InvalidInput:
        return {}


def change_to(session: Session, workflow: Any, specs: Specs) -> Params:
    """The parameters that make a session run ``workflow``: the values that differ where nothing else does,
    else the workflow itself. Empty when it is what runs.

    ``workflow`` is JSON data, a name, or a list of these. Raises `InvalidWorkflow` with every
    problem, `NotFound` for an unknown name.
    """
    before = running(session, specs)
    spec = specs.of_workflow(workflow)
    after = specs.graphs(spec)
    values = _changed_values(before, after)
    return {"workflow": spec["workflow"]} if values is None else values


async def switch(session: Session, workflow: Any, specs: Specs) -> dict[str, Any]:
    """Have a session run ``workflow`` from between two frames on; what ran goes on while it loads. One that
    is still being loaded itself is waited for.

    Returns ``frame``, the first that it holds for, unless nothing had to change, and ``changed``:
    ``workflow``, ``params`` or None. Raises as `change_to`, or what the processor raises, and then nothing
    has changed.
    """
    # In a thread: other streams go on while a large one is checked.
    params = await asyncio.to_thread(change_to, session, workflow, specs)
    if not params:
        return {"changed": None}
    await session.processor.wait_ready(READY_WAIT)
    applied = await session.update_params(params)
    return {**applied, "changed": "workflow" if "workflow" in params else "params"}


def resize(session: Session, width: Any, height: Any) -> dict[str, int]:
    """Hand frames to the processor at another size from the next one on. Raises `InvalidInput`."""
    media, _ = take_media_params({"width": width, "height": height})
    if media.width is None or media.height is None:
        raise InvalidInput("width and height are numbers", field="width")
    session.pipeline.resize(media.width, media.height)
    return {"width": media.width, "height": media.height}


def nodes_info(session: Session, specs: Specs) -> dict[str, dict[str, Any]]:
    """The nodes of each workflow in ComfyStream's form: ``{"0": {"5": {"class_type", "inputs"}}}``."""
    found = running(session, specs)
    nodes: dict[str, dict[str, Any]] = {}
    for index, graph in enumerate(found.graphs):
        nodes[str(index)] = of_graph = {}
        for node in graph:
            definition = found.definitions.get(node.class_type)
            declared: Mapping[str, InputDefinition] = definition.inputs if definition is not None else {}
            inputs = {name: _input_info(value, declared.get(name)) for name, value in node.inputs.items()}
            of_graph[node.id] = {"class_type": node.class_type, "inputs": inputs}
    return nodes


def _input_info(value: Any, declared: InputDefinition | None) -> dict[str, Any]:
    """One input. ComfyStream gives a combo's options as its value; ``current`` keeps what holds."""
    plain = [value.node_id, value.output] if isinstance(value, Link) else value
    info: dict[str, Any] = {"value": plain, "type": "unknown", "min": None, "max": None, "widget": None}
    if declared is None:
        return info
    info |= {"type": declared.type, "min": declared.minimum, "max": declared.maximum}
    if declared.choices is not None and not isinstance(value, Link):
        info |= {"type": "combo", "widget": "combo", "value": list(declared.choices), "current": plain}
    return info


def _with_values(graph: Graph, index: int, values: Mapping[Place, Any]) -> Graph:
    return graph.with_values(
        {
            (place.node_id, place.input): value
            for place, value in values.items()
            if place.graph == index and place.node_id in graph.nodes
        }
    )


def _changed_values(before: Running, after: Sequence[Graph]) -> Params | None:
    """The parameters that differ, by name, when the values and rules of literals are all that does, in
    whatever order the nodes are written; else None."""
    values = differing_values(before.graphs, after)
    if values is None:
        return None
    keys = {parameter.place: key for key, parameter in before.table.parameters.items()}
    if any(place not in keys and place.input.endswith(RULE) for place in values):
        return None  # a rule for an input that has had none
    return {keys[place]: value for place, value in values.items() if place in keys}

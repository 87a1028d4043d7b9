"""What classes are asked before anything runs: whether they accept their inputs, and whether these have
changed."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workflows.binding import BoundNode
from workflows.graph import Graph
from workflows.problems import Problem
from workflows.protocol import is_blocker, question
from workflows.registry import NodeRegistry

log = logging.getLogger(__name__)

ALWAYS = object()
"""The answer of a node that is to run each time though nothing has changed."""


async def refusals(
    graph: Graph, node_ids: Iterable[str], bound: Mapping[str, BoundNode], registry: NodeRegistry
) -> list[Problem]:
    """What the registry, and the classes themselves (VALIDATE_INPUTS, ``validate_inputs``), have against
    these nodes' inputs."""
    problems: list[Problem] = []
    for node_id in node_ids:
        item = bound.get(node_id)
        if item is None:
            continue
        found = list(registry.refusals(graph, item.node))
        problems += found
        if found or not (item.definition.validates or item.definition.validates_all):
            continue
        if question(item.node_class, "VALIDATE_INPUTS", "validate_inputs") is None:
            continue
        arguments = _validated_arguments(graph, item, registry)
        if not arguments:
            continue  # as in ComfyUI: a verdict on no input is none
        verdict = await _ask(item, "VALIDATE_INPUTS", "validate_inputs", arguments)
        if isinstance(verdict, _Raised):
            problems.append(item.node.problem("rejected_by_node", f"its own check failed: {verdict.text}"))
        elif verdict is not True and not is_blocker(verdict):
            reason = verdict if isinstance(verdict, str) else "the node does not accept these values"
            problems.append(item.node.problem("rejected_by_node", reason))
    return problems


def _validated_arguments(graph: Graph, item: BoundNode, registry: NodeRegistry) -> dict[str, Any]:
    definition = item.definition
    arguments = {
        name: value
        for name, value in _without_links(item).items()
        if definition.validates_all or name in definition.validates
    }
    if "input_types" in definition.validates:
        sources = {name: (graph.nodes[link.node_id], link.output) for name, link in item.links}
        arguments["input_types"] = {
            name: registry.definitions[source.class_type].outputs[output].type
            for name, (source, output) in sources.items()
        }
    return arguments


def _without_links(item: BoundNode) -> dict[str, Any]:
    """What a class is asked with: literals, and None for what other nodes will give."""
    return {name: None for name, _ in item.links} | item.literals()


async def fingerprint(item: BoundNode) -> Any:
    """What IS_CHANGED or ``fingerprint_inputs`` says of a node, as a text; None for a class without it.

    `ALWAYS` when the node must run each time (it gives NaN). A class that fails counts as unchanged.
    """
    if question(item.node_class, "IS_CHANGED", "fingerprint_inputs") is None:
        return None
    answer = await _ask(item, "IS_CHANGED", "fingerprint_inputs", _without_links(item))
    if isinstance(answer, _Raised):
        log.warning("%s: IS_CHANGED failed, the node counts as unchanged: %s", item.node.label, answer.text)
        return None
    if isinstance(answer, float) and answer != answer:
        return ALWAYS
    return f"{type(answer).__name__}:{answer!r}"


@dataclass(frozen=True, slots=True)
class _Raised:
    text: str


async def _ask(item: BoundNode, old_name: str, schema_name: str, arguments: dict[str, Any]) -> Any:
    try:
        ask: Callable[..., Any] = item.answer(schema_name if item.is_schema else old_name)
        if item.definition.input_is_list:
            arguments = {
                name: value if name == "input_types" else [value] for name, value in arguments.items()
            }
        # Without the registry's guard: a class is asked, no instance of it, and frames would wait for a file
        # to be hashed. ComfyUI's web server asks beside its running nodes, too.
        answer = ask(**arguments)
        return await answer if inspect.isawaitable(answer) else answer
    except (Exception, SystemExit) as error:  # noqa: BLE001 (foreign code)
        return _Raised(f"{type(error).__name__}: {error}")

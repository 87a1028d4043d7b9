"""Nodes of a graph bound to instances of their classes, and the questions that are put to the classes."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from stream.errors import ProcessorError
from workflows import stream_rules
from workflows.definitions import NodeDefinition
from workflows.graph import Graph, Link, Node
from workflows.problems import Problem
from workflows.registry import NodeRegistry
from workflows.results import mapped, mapped_async, taking_lists

log = logging.getLogger(__name__)

# The plan itself does what these do.
UNCALLED = frozenset({stream_rules.LOAD, stream_rules.SAVE})


@dataclass(frozen=True, slots=True)
class BoundNode:
    """A node with the method that runs it. ``lists`` tells of each output whether it is a list of values."""

    node_class: Any
    definition: NodeDefinition
    call: Callable[..., Any]
    is_async: bool
    lists: tuple[bool, ...]
    guard: Callable[[], AbstractContextManager[Any]] = nullcontext
    """`NodeRegistry.guard`, held during calls outside the frame's path."""


def bind(graph: Graph, order: Iterable[str], registry: NodeRegistry) -> dict[str, BoundNode]:
    """An instance for each node of ``order``, in which each node comes after what feeds it.

    Raises `ProcessorError` when a class cannot be instantiated.
    """
    bound: dict[str, BoundNode] = {}
    for node_id in order:
        node = graph.nodes[node_id]
        if node.class_type in UNCALLED:
            continue
        definition = registry.definitions[node.class_type]
        node_class = registry.node_class(node.class_type)
        try:
            call = getattr(node_class(), definition.function)
        except (Exception, SystemExit) as error:
            raise node_failed(node, error) from error
        is_async = inspect.iscoroutinefunction(call)
        list_inputs = frozenset(
            name
            for name, link in node.links()
            if link.node_id in bound and _gives_list(bound[link.node_id], link.output)
        )
        lists = tuple(output.is_list for output in definition.outputs)
        if definition.input_is_list:
            call = taking_lists(call, list_inputs)
        elif list_inputs:
            width = max(len(lists), int(node.class_type == stream_rules.SAVE_TEXT))
            call = (mapped_async if is_async else mapped)(call, list_inputs, lists, width)
            lists = (True,) * width
        bound[node_id] = BoundNode(node_class, definition, call, is_async, lists, registry.guard)
    return bound


def _gives_list(bound: BoundNode, output: int) -> bool:
    return output < len(bound.lists) and bound.lists[output]


def literal_arguments(graph: Graph, node: Node, definition: NodeDefinition) -> dict[str, Any]:
    """The arguments that do not come from other nodes: literals and hidden inputs."""
    arguments = {
        name: value
        for name, value in node.inputs.items()
        if not isinstance(value, Link) and _is_input(definition, name)
    }
    for name, asked in definition.hidden.items():
        if asked == "UNIQUE_ID":
            arguments[name] = node.id
        elif asked == "PROMPT":
            arguments[name] = graph.to_api()
        elif asked in _NOT_HERE:
            arguments[name] = None
    return arguments


# Hidden inputs that ComfyUI hands over as None when a prompt comes without an editor or an account.
_NOT_HERE = frozenset({"EXTRA_PNGINFO", "DYNPROMPT", "AUTH_TOKEN_COMFY_ORG", "API_KEY_COMFY_ORG"})


def link_arguments(node: Node, definition: NodeDefinition) -> list[tuple[str, Link]]:
    """The arguments that come from other nodes."""
    return [(name, link) for name, link in node.links() if _is_input(definition, name)]


def _is_input(definition: NodeDefinition, name: str) -> bool:
    return name in definition.inputs or definition.open_inputs


async def refusals(graph: Graph, node_ids: Iterable[str], registry: NodeRegistry) -> list[Problem]:
    """What the registry, and the classes themselves by VALIDATE_INPUTS, have against these nodes."""
    problems: list[Problem] = []
    for node_id in node_ids:
        node = graph.nodes[node_id]
        definition = registry.definitions[node.class_type]
        if node.class_type in UNCALLED:
            continue
        found = list(registry.refusals(graph, node))
        problems += found
        if found or not (definition.validates or definition.validates_all):
            continue
        question = registry.node_class(node.class_type).VALIDATE_INPUTS
        verdict = await _ask(question, _validated_arguments(graph, node, definition, registry))
        if isinstance(verdict, _Raised):
            problems.append(node.problem("rejected_by_node", f"its own check failed: {verdict.text}"))
        elif verdict is not True:
            reason = verdict if isinstance(verdict, str) else "the node does not accept these values"
            problems.append(node.problem("rejected_by_node", reason))
    return problems


def _validated_arguments(
    graph: Graph, node: Node, definition: NodeDefinition, registry: NodeRegistry
) -> dict[str, Any]:
    arguments = {
        name: value
        for name, value in literal_arguments(graph, node, definition).items()
        if definition.validates_all or name in definition.validates
    }
    if "input_types" in definition.validates:
        sources = {name: graph.nodes[link.node_id] for name, link in link_arguments(node, definition)}
        arguments["input_types"] = {
            name: registry.definitions[sources[name].class_type].outputs[link.output].type
            for name, link in link_arguments(node, definition)
        }
    return arguments


async def runs_every_time(graph: Graph, node: Node, item: BoundNode) -> bool:
    """Whether IS_CHANGED says that a node must run again though its inputs are the same (it gives NaN)."""
    if not item.definition.may_change:
        return False
    answer = await _ask(item.node_class.IS_CHANGED, literal_arguments(graph, node, item.definition))
    if isinstance(answer, _Raised):
        log.warning("%s: IS_CHANGED failed, the node counts as unchanged: %s", node.label, answer.text)
        return False
    return isinstance(answer, float) and answer != answer


@dataclass(frozen=True, slots=True)
class _Raised:
    text: str


async def _ask(question: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        answer = question(**arguments)
        return await answer if inspect.isawaitable(answer) else answer
    except (Exception, SystemExit) as error:  # noqa: BLE001 (foreign code)
        return _Raised(f"{type(error).__name__}: {error}")


def node_failed(node: Node, error: BaseException) -> ProcessorError:
    """The error that names the node whose code raised ``error``."""
    cause = str(error) or "no message"
    problem = node.problem("node_failed", f"{type(error).__name__}: {cause}")
    return ProcessorError(str(problem), field=node.id, details=[problem.as_dict()])

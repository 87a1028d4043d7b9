"""Everything that keeps a workflow from running, found before anything is loaded.

Works on definitions alone: neither torch nor a node class is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from workflows import stream_rules
from workflows.definitions import Definitions, InputDefinition, NodeDefinition, accepts
from workflows.dynamic import inputs_of
from workflows.graph import LIMITS, Graph, Limits, Link, Node
from workflows.model_files import is_file_choice, is_there, may_be_there, missing_file
from workflows.networks import install, missing_packages
from workflows.problems import Problem, invalid_workflow
from workflows.reading import read
from workflows.stream_rules import convert, frame_sources, video_output
from workflows.topology import cycles, downstream, upstream
from workflows.values import ValueRefused, check_value, nearest


def prepare(
    data: Any,
    definitions: Definitions,
    *,
    input_node: str | None = None,
    output_node: str | None = None,
    limits: Limits = LIMITS,
) -> Graph:
    """The graph of workflow ``data``, converted, checked, its literals as the nodes want them.

    Raises `InvalidWorkflow` whose details are every `Problem` at once.
    """
    graph, problems = examine(
        data, definitions, input_node=input_node, output_node=output_node, limits=limits
    )
    if problems:
        raise invalid_workflow(problems)
    return normalise(graph, definitions)


def examine(
    data: Any,
    definitions: Definitions,
    *,
    input_node: str | None = None,
    output_node: str | None = None,
    limits: Limits = LIMITS,
) -> tuple[Graph, list[Problem]]:
    """The converted graph of workflow ``data``, as far as there is one, and every problem of it."""
    graph, problems = read(data, definitions, limits)
    if not graph:
        return graph, problems
    broken = {problem.node_id for problem in problems if problem.node_id is not None}
    graph, found = convert(graph, input_node, generates=_generates(graph, definitions))
    problems += found
    return graph, problems + check(graph, definitions, output_node, unreadable=broken)


def check(
    graph: Graph,
    definitions: Definitions,
    output_node: str | None = None,
    *,
    unreadable: Collection[str] = (),
) -> list[Problem]:
    """What is wrong with a converted graph, in the order of the file.

    As in ComfyUI, every class must be known, and all else is asked only of nodes that an output needs.
    Links to nodes named in ``unreadable`` are not held against whoever has them.
    """
    problems: list[Problem] = []
    live = live_nodes(graph, definitions)
    among = live or set(graph.nodes)
    for node in graph:
        definition = definitions.get(node.class_type)
        if definition is None:
            problems.append(_unknown_class(node, definitions))
        elif node.id in among:
            problems += _check_node(node, definition)
            problems += _check_links(node, definition, graph, definitions, unreadable)
    problems += _check_cycles(graph, among)
    problems += _check_outputs(graph, definitions, output_node)
    return problems


def live_nodes(graph: Graph, definitions: Definitions) -> set[str]:
    """The nodes that an output needs, be it the stream's or of a class that declares itself one."""
    return upstream(graph, (node.id for node in graph if _is_output(node, definitions)))


def needed_nodes(graph: Graph, definitions: Definitions, output_node: str | None = None) -> set[str]:
    """The nodes that have to run: `live_nodes` without those that only feed pictures that are not shown."""
    shown, _ = video_output(graph, output_node)
    return upstream(
        graph,
        (
            node.id
            for node in graph
            if _is_output(node, definitions) and (node.class_type != stream_rules.SAVE or node is shown)
        ),
    )


def not_installed(graph: Graph, node_ids: Iterable[str], definitions: Definitions) -> list[Problem]:
    """The packages that these nodes need and that this interpreter does not have."""
    problems: list[Problem] = []
    for node_id in node_ids:
        node = graph.nodes[node_id]
        definition = definitions.get(node.class_type)
        missing = missing_packages(definition.packages) if definition is not None else []
        if missing:
            need = f"the package {missing[0]}" if len(missing) == 1 else f"the packages {', '.join(missing)}"
            verb = "is" if len(missing) == 1 else "are"
            message = f"needs {need}, which {verb} not installed: {install(missing)}"
            problems.append(node.problem("not_installed", message))
    return problems


def _is_output(node: Node, definitions: Definitions) -> bool:
    definition = definitions.get(node.class_type)
    return node.class_type in stream_rules.OUTPUTS or (definition is not None and definition.is_output)


def _unknown_class(node: Node, definitions: Definitions) -> Problem:
    failure = getattr(definitions, "failures", {}).get(node.class_type)
    if failure is not None:
        return node.problem("broken_class", f"the node class cannot be used: {failure}")
    hint = nearest(node.class_type, definitions)
    return node.problem("unknown_class", f"there is no node class {node.class_type}{hint}")


def _check_node(node: Node, definition: NodeDefinition) -> Iterator[Problem]:
    for name, declared in inputs_of(definition, node.inputs).items():
        value = node.inputs.get(name)
        if name not in node.inputs:
            if declared.required:
                message = f"the required input {name} ({declared.type}) is missing"
                yield node.problem("missing_required_input", message, name)
        elif not isinstance(value, Link) and not _is_absent(declared, value):
            yield from _check_literal(node, declared, value)


def _check_literal(node: Node, declared: InputDefinition, value: Any) -> Iterator[Problem]:
    there = is_there(declared, value)
    try:
        check_value(declared, value)
        if there is not False:
            return
        code, message = "missing_file", missing_file(node.class_type, declared, value)
    except ValueRefused as refused:
        code, message = refused.code, str(refused)
        if code == "not_a_choice" and is_file_choice(node.class_type, declared, value):
            if there or (there is None and may_be_there(declared, value)):
                return
            code, message = "missing_file", missing_file(node.class_type, declared, value)
    problem = node.problem(code, message, declared.name)
    listed = code in ("missing_file", "not_a_choice")
    yield replace(problem, choices=declared.choices) if listed else problem


def _is_absent(declared: InputDefinition, value: Any) -> bool:
    return value is None and not declared.required


def _check_links(
    node: Node,
    definition: NodeDefinition,
    graph: Graph,
    definitions: Definitions,
    unreadable: Collection[str],
) -> Iterator[Problem]:
    known = inputs_of(definition, node.inputs)
    for name, link in node.links():
        declared = known.get(name)
        if (declared is None and not definition.open_inputs) or link.node_id in unreadable:
            continue
        source = graph.nodes.get(link.node_id)
        if source is None:
            message = f"is linked to node {link.node_id}, which does not exist"
            yield node.problem("missing_node", message, name)
        elif source.class_type in definitions:
            yield from _check_slot(node, name, link, declared, source, definitions[source.class_type])


def _check_slot(
    node: Node,
    name: str,
    link: Link,
    declared: InputDefinition | None,
    source: Node,
    definition: NodeDefinition,
) -> Iterator[Problem]:
    have = len(definition.outputs)
    if link.output >= have:
        outputs = "no outputs" if have == 0 else "1 output" if have == 1 else f"{have} outputs"
        message = f"is linked to output {link.output} of {source.label}, which has {outputs} (counted from 0)"
        yield node.problem("missing_output_slot", message, name)
        return
    given = definition.outputs[link.output].type
    if declared is not None and not accepts(declared.type, given):
        message = f"expects {declared.type}, but output {link.output} of {source.label} is {given}"
        yield node.problem("type_mismatch", message, name)


def _check_cycles(graph: Graph, among: set[str]) -> Iterator[Problem]:
    for path in cycles(graph, among):
        names = " -> ".join(graph.nodes[node_id].label for node_id in (*path, path[0]))
        yield graph.nodes[path[0]].problem("cycle", f"nodes feed each other in a circle: {names}")


def _check_outputs(graph: Graph, definitions: Definitions, output_node: str | None) -> list[Problem]:
    _, problems = video_output(graph, output_node)
    outputs = [node for node in graph if node.class_type in stream_rules.OUTPUTS]
    sources = _changing(graph, definitions)
    if not outputs or not sources:
        return problems  # which the rules of the stream have said
    changing = downstream(graph, sources)
    if not any(node.id in changing for node in outputs):
        labels = ", ".join(node.label for node in outputs)
        message = f"nothing that goes out changes from frame to frame: {labels}"
        problems.append(Problem("constant_output", message))
    return problems


def _generates(graph: Graph, definitions: Definitions) -> bool:
    known = (node for node in graph if node.class_type in definitions)
    return bool(frame_sources(graph)) or any(_may_change(node, definitions) for node in known)


def _changing(graph: Graph, definitions: Definitions) -> set[str]:
    """The nodes that may give something else for each frame, whatever feeds them."""
    return frame_sources(graph) | {node.id for node in graph if _may_change(node, definitions)}


def _may_change(node: Node, definitions: Definitions) -> bool:
    definition = definitions.get(node.class_type)
    return definition is None or (definition.may_change and node.class_type not in stream_rules.VIDEO_INPUTS)


def normalise(graph: Graph, definitions: Definitions) -> Graph:
    """A checked graph with its literals coerced, and without what its classes would not be handed."""
    changed: dict[str, Node] = {}
    for node in graph:
        definition = definitions.get(node.class_type)
        if definition is None:
            continue
        inputs: dict[str, Any] = {}
        declared = inputs_of(definition, node.inputs)
        for name, value in node.inputs.items():
            known = declared.get(name)
            if isinstance(value, Link) or known is None:
                inputs[name] = value
            elif not _is_absent(known, value):
                try:
                    inputs[name] = check_value(known, value)
                except ValueRefused:  # of a node that nothing needs
                    inputs[name] = value
        changed[node.id] = replace(node, inputs=MappingProxyType(inputs))
    return graph.with_nodes(changed)

"""A workflow in ComfyUI's API format, as a typed graph that is never changed once made.

API format: ``{"<node id>": {"class_type": str, "inputs": {name: value}, "_meta": {"title": str}}}``, where a
value is a link ``["<node id>", <output index>]`` or a literal. A literal that is itself a list is written
``{"__value__": [...]}``. ``_meta`` may have ``control_after_generate``: what the control of that name in the
editor says of inputs, one of `AFTER_GENERATE` for each name.

Standard library only, so that a workflow can be read where neither torch nor a node class is.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from stream.errors import InvalidWorkflow, TooLarge
from workflows.problems import Problem, invalid_workflow, node_label

API_FORMAT_HINT = "in ComfyUI: Workflow menu, Export (API)"

AFTER_GENERATE = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
"""What becomes of a value after each run of the graph, as ComfyUI's editor offers it."""

_CONTROL = "control_after_generate"
SHARED = "shared_value"
RULE = f".{_CONTROL}"
"""Behind the name of an input: its rule, one of `AFTER_GENERATE`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on a workflow; what a person has drawn is far below all of them."""

    text_bytes: int = 8 * 1024 * 1024
    nodes: int = 4096
    inputs_per_node: int = 1024
    string_characters: int = 1024 * 1024
    nesting: int = 32


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Link:
    """Output number ``output`` of node ``node_id``."""

    node_id: str
    output: int


@dataclass(frozen=True, slots=True)
class Node:
    """One node. A value of ``inputs`` is a `Link` or a literal.

    ``origin`` is the class and title that the node had in the file, where a rule has replaced them.
    ``after_generate`` says of literals what becomes of them after each run, one of `AFTER_GENERATE`.
    ``shared`` names the value of the file that a literal is, where several inputs have that one value.
    """

    id: str
    class_type: str
    title: str
    inputs: Mapping[str, Any]
    origin: tuple[str, str] | None = None
    after_generate: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The node as the author of the file knows it."""
        class_type, title = self.origin or (self.class_type, self.title)
        return node_label(self.id, class_type, title)

    def problem(self, code: str, message: str, input: str | None = None) -> Problem:  # noqa: A002
        class_type, title = self.origin or (self.class_type, self.title)
        return Problem(code, message, self.id, class_type, title, input)

    def links(self) -> Iterator[tuple[str, Link]]:
        """Names and targets of the inputs that are links."""
        return ((name, value) for name, value in self.inputs.items() if isinstance(value, Link))

    def changed_literals(self, other: Node) -> dict[str, Any] | None:
        """Literals of ``other`` that differ from this node's; None when more than literals differ."""
        if (self.id, self.class_type, self.origin) != (other.id, other.class_type, other.origin):
            return None
        if self.title != other.title or self.inputs.keys() != other.inputs.keys():
            return None
        if self.after_generate != other.after_generate:
            return None
        changed: dict[str, Any] = {}
        for name, value in other.inputs.items():
            old = self.inputs[name]
            if old != value or type(old) is not type(value):
                if isinstance(old, Link) or isinstance(value, Link):
                    return None
                changed[name] = value
        return changed


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes by id, in the order of the file."""

    nodes: Mapping[str, Node]

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> Graph:
        return cls(MappingProxyType({node.id: node for node in nodes}))

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def __len__(self) -> int:
        return len(self.nodes)

    def with_nodes(self, changed: Mapping[str, Node]) -> Graph:
        """The same graph with some nodes replaced by others of the same id."""
        return Graph.of(changed.get(node.id, node) for node in self)

    def with_values(self, values: Mapping[tuple[str, str], Any]) -> Graph:
        """The same graph with other literals, keyed by node id and input.

        The name of an input with `RULE` behind it means what becomes of it after each run.
        """
        changed: dict[str, Node] = {}
        for (node_id, name), value in values.items():
            node = changed.get(node_id) or self.nodes[node_id]
            if name.endswith(RULE) and name not in node.inputs:
                rules = {**node.after_generate, name[: -len(RULE)]: value}
                changed[node_id] = replace(node, after_generate=MappingProxyType(rules))
            else:
                inputs = {**node.inputs, name: value}
                changed[node_id] = replace(node, inputs=MappingProxyType(inputs))
        return self.with_nodes(changed)

    def to_api(self) -> dict[str, Any]:
        """The graph as API-format JSON data of its own (nothing is shared with the graph)."""
        return {
            node.id: {
                "inputs": {name: _value_to_api(value) for name, value in node.inputs.items()},
                "class_type": node.class_type,
                "_meta": {"title": node.title}
                | ({_CONTROL: dict(node.after_generate)} if node.after_generate else {})
                | ({SHARED: dict(node.shared)} if node.shared else {}),
            }
            for node in self
        }


def _value_to_api(value: Any) -> Any:
    if isinstance(value, Link):
        return [value.node_id, value.output]
    return {"__value__": copy.deepcopy(value)} if isinstance(value, list) else copy.deepcopy(value)


def load_json(text: str | bytes, name: str = "workflow", limits: Limits = LIMITS) -> Any:
    """JSON text as data. Raises `InvalidWorkflow` with line and column, `TooLarge` over the limit."""
    if len(text) > limits.text_bytes:
        raise TooLarge(f"{name}: {len(text)} bytes; a workflow has at most {limits.text_bytes}", field=name)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidWorkflow(f"{name} is not JSON: {error.msg} at {where}", field=name) from error
    except UnicodeDecodeError as error:
        raise InvalidWorkflow(
            f"{name} is not UTF-8 text: {error.reason} at byte {error.start}", field=name
        ) from error
    except RecursionError as error:
        raise InvalidWorkflow(f"{name} is nested too deeply", field=name) from error
    except ValueError as error:  # a number of thousands of digits
        raise InvalidWorkflow(f"{name} is not JSON that can be read: {error}", field=name) from error


def parse_graph(data: Any, limits: Limits = LIMITS) -> Graph:
    """The graph in ``data``; raises `InvalidWorkflow` with every structural problem at once."""
    graph, problems = read_graph(data, limits)
    if problems:
        raise invalid_workflow(problems)
    return graph


def read_graph(data: Any, limits: Limits = LIMITS) -> tuple[Graph, list[Problem]]:
    """The well-formed nodes of ``data`` and what is wrong with the rest; never raises."""
    if isinstance(data, Mapping) and isinstance(data.get("prompt"), Mapping):
        # The body of ComfyUI's POST /prompt: {"prompt": <graph>, "client_id": ...}.
        data = data if "class_type" in data["prompt"] else data["prompt"]
    refusal = _not_a_graph(data, limits)
    if refusal is not None:
        return Graph.of(()), [refusal]
    nodes: list[Node] = []
    problems: list[Problem] = []
    for node_id, entry in data.items():
        node, found = _read_node(node_id, entry, limits)
        problems += found
        if node is not None:
            nodes.append(node)
    return Graph.of(nodes), problems


def _not_a_graph(data: Any, limits: Limits) -> Problem | None:
    if not isinstance(data, Mapping):
        return Problem("not_a_graph", f"a workflow is a JSON object of nodes, not {_kind(data)}")
    if is_editor_format(data):
        return Problem(
            "editor_format",
            "this is the format that ComfyUI's editor saves, where the API format is expected "
            f"({API_FORMAT_HINT})",
        )
    if not data:
        return Problem("empty_graph", "the workflow has no nodes")
    if len(data) > limits.nodes:
        return Problem("too_large", f"the workflow has {len(data)} nodes; the limit is {limits.nodes}")
    if not any(isinstance(entry, Mapping) for entry in data.values()):
        return Problem("not_a_graph", f"this is not a workflow in API format ({API_FORMAT_HINT})")
    return None


def is_editor_format(data: Any) -> bool:
    """Whether ``data`` is what ComfyUI's editor saves: lists of ``nodes`` and ``links``."""
    if not isinstance(data, Mapping) or not isinstance(data.get("nodes"), list):
        return False
    return isinstance(data.get("links"), list | Mapping) or "last_node_id" in data or "version" in data


def looks_like_graph(data: Any) -> bool:
    """Whether ``data`` is meant as a workflow in either format, well-formed or not."""
    if is_editor_format(data):
        return True
    if not isinstance(data, Mapping):
        return False
    inner = data.get("prompt")
    entries = [*data.values(), *(inner.values() if isinstance(inner, Mapping) else ())]
    return any(isinstance(entry, Mapping) and "class_type" in entry for entry in entries)


def _read_node(node_id: Any, entry: Any, limits: Limits) -> tuple[Node | None, list[Problem]]:
    if not isinstance(node_id, str) or not node_id:
        return None, [Problem("bad_node", f"a node id is a text, not {_kind(node_id)}")]
    if not isinstance(entry, Mapping):
        return None, [Problem("bad_node", f"a node is an object, not {_kind(entry)}", node_id)]
    meta = entry.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    title = title if isinstance(title, str) and title else None
    class_type = entry.get("class_type")
    if not isinstance(class_type, str) or not class_type:
        return None, [Problem("bad_node", "the node has no class_type", node_id, None, title)]
    place = Node(node_id, class_type, title or class_type, {})
    given = entry.get("inputs", {})
    if not isinstance(given, Mapping):
        return None, [place.problem("bad_node", f"inputs is an object, not {_kind(given)}")]
    if len(given) > limits.inputs_per_node:
        return None, [
            place.problem("too_large", f"{len(given)} inputs; the limit is {limits.inputs_per_node}")
        ]
    inputs: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in given.items():
        try:
            inputs[str(name)] = _read_value(value, limits)
        except ValueError as error:
            problems.append(place.problem("bad_value", str(error), str(name)))
    after = {name: rule for name, rule in _of_literals(meta, _CONTROL, inputs) if rule in AFTER_GENERATE}
    shared = {name: value for name, value in _of_literals(meta, SHARED, inputs) if isinstance(value, str)}
    node = replace(
        place,
        inputs=MappingProxyType(inputs),
        after_generate=MappingProxyType(after),
        shared=MappingProxyType(shared),
    )
    return node, problems


def _of_literals(meta: Any, key: str, inputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What ``_meta`` says of literals by name: a link has its value from elsewhere."""
    given = meta.get(key) if isinstance(meta, Mapping) else None
    for name, value in given.items() if isinstance(given, Mapping) else ():
        if name in inputs and not isinstance(inputs[name], Link):
            yield name, value


def _read_value(value: Any, limits: Limits) -> Any:
    if isinstance(value, list | tuple):
        if len(value) == 2 and _is_node_id(value[0]) and _is_index(value[1]):
            return Link(str(value[0]), value[1])
        raise ValueError(
            "a list is a link [node id, output index]; a list that is meant as a value is written "
            '{"__value__": [...]}'
        )
    if isinstance(value, Mapping) and set(value) == {"__value__"}:
        value = value["__value__"]
    _check_literal(value, limits)
    return copy.deepcopy(value)


def _is_node_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_literal(value: Any, limits: Limits) -> None:
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if depth > limits.nesting:
            raise ValueError(f"nested deeper than {limits.nesting} levels")
        if isinstance(item, str):
            if len(item) > limits.string_characters:
                raise ValueError(f"{len(item)} characters; the limit is {limits.string_characters}")
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise ValueError(f"{item} is not a finite number")
        elif isinstance(item, Mapping):
            pending += ((child, depth + 1) for child in item.values())
        elif isinstance(item, list | tuple):
            pending += ((child, depth + 1) for child in item)
        elif item is not None and not isinstance(item, bool | int):
            raise ValueError(f"not a JSON value: {type(item).__name__}")


def _kind(value: Any) -> str:
    names: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "a boolean"),
        ((int, float), "a number"),
        (str, "a text"),
        ((list, tuple), "a list"),
        (Mapping, "an object"),
    )
    return next(
        (name for kind, name in names if isinstance(value, kind)), "null" if value is None else "that"
    )

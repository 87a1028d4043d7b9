"""The live parameters of workflows: every literal input, by the names that people give it.

A parameter is known as ``<node id>.<input>``, and, where that is unique, as ``<title>.<input>`` and
``<class>.<input>``, whatever the case of the letters. Of several workflows in a row the id is preceded by
the workflow's number from 0 and a slash (``1/5.sigma``). ``{"5": {"sigma": 2}}`` means ``{"5.sigma": 2}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stream.errors import InvalidInput
from workflows import stream_rules
from workflows.costs import recompute_cost
from workflows.definitions import Definitions, InputDefinition
from workflows.dynamic import inputs_of
from workflows.graph import AFTER_GENERATE, RULE, Graph, Link, Node
from workflows.rules import FIXED, can_have_rule
from workflows.topology import downstream
from workflows.values import ValueRefused, check_value, nearest, parse_text

# Their literals reach no code: the stream takes the place of these nodes.
_WITHOUT_PARAMETERS = frozenset({stream_rules.LOAD, stream_rules.SAVE})

_JSON_TYPES = {"INT": "integer", "FLOAT": "number", "STRING": "string", "BOOLEAN": "boolean"}


@dataclass(frozen=True, slots=True)
class Place:
    """Which literal: workflow (from 0), node and input."""

    graph: int
    node_id: str
    input: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One live parameter. ``cost``: ``frame`` when the next frame shows it, ``recompute`` when constant nodes
    run again for it, ``reload`` when weights are loaded."""

    key: str
    place: Place
    title: str
    class_type: str
    definition: InputDefinition | None
    value: Any
    cost: str

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the value. ``step`` and ``cost`` are annotations: no value is refused for them."""
        schema: dict[str, Any] = {"title": f"{self.title}: {self.place.input}", "default": self.value}
        declared = self.definition
        if declared is not None:
            if declared.choices is not None:
                schema["enum"] = list(declared.choices)
                kinds = {type(choice) for choice in declared.choices}
                if kinds == {str}:
                    schema["type"] = "string"
            elif declared.type in _JSON_TYPES:
                schema["type"] = _JSON_TYPES[declared.type]
                limits = {"minimum": declared.minimum, "maximum": declared.maximum, "step": declared.step}
                schema.update((name, limit) for name, limit in limits.items() if limit is not None)
            if declared.options.get("multiline"):
                schema["multiline"] = True
            if isinstance(declared.options.get("tooltip"), str):
                schema["description"] = declared.options["tooltip"]
        schema["cost"] = self.cost
        return schema


class ParameterTable:
    """The live parameters of the workflows of one processor, by canonical key and by every other name."""

    def __init__(self, graphs: Sequence[Graph], definitions: Definitions) -> None:
        self.parameters: dict[str, Parameter] = {}
        self._names: dict[str, list[str]] = {}
        self._shared: dict[tuple[int, str], list[Parameter]] = {}
        self._shares: dict[Place, tuple[int, str]] = {}
        for index, graph in enumerate(graphs):
            per_frame = downstream(graph, stream_rules.frame_sources(graph))
            for node in graph:
                prefix = f"{index}/" if len(graphs) > 1 else ""
                self._add_node(
                    node, index, prefix, "frame" if node.id in per_frame else "recompute", definitions
                )

    def _add_node(self, node: Node, index: int, prefix: str, cost: str, definitions: Definitions) -> None:
        definition = definitions.get(node.class_type)
        if node.class_type in _WITHOUT_PARAMETERS or definition is None:
            return
        class_type, title = node.origin or (node.class_type, node.title)
        known = inputs_of(definition, node.inputs)
        for name, value in node.inputs.items():
            declared = known.get(name)
            if isinstance(value, Link) or (declared is None and not definition.open_inputs):
                continue
            key = f"{prefix}{node.id}.{name}"
            place = Place(index, node.id, name)
            costs = "frame" if cost == "frame" else recompute_cost(definition, declared, name, value)
            one = Parameter(key, place, title, class_type, declared, value, costs)
            self._add(one, prefix)
            self._share(one, node.shared.get(name))
            if can_have_rule(declared, name) or name in node.after_generate:
                rule = InputDefinition(name + RULE, "COMBO", choices=AFTER_GENERATE, default=FIXED)
                place = Place(index, node.id, name + RULE)
                present = node.after_generate.get(name, FIXED)
                one = Parameter(key + RULE, place, title, class_type, rule, present, costs)
                self._add(one, prefix)
                self._share(one, node.shared[name] + RULE if name in node.shared else None)

    def _add(self, parameter: Parameter, prefix: str) -> None:
        self.parameters[parameter.key] = parameter
        node_id, name = parameter.place.node_id, parameter.place.input
        for owner in {prefix + node_id, node_id, parameter.title, parameter.class_type}:
            self._names.setdefault(f"{owner}.{name}".lower(), []).append(parameter.key)

    def _share(self, parameter: Parameter, name: str | None) -> None:
        if name is not None:
            of_file = (parameter.place.graph, name)
            self._shares[parameter.place] = of_file
            self._shared.setdefault(of_file, []).append(parameter)

    def schema(self) -> dict[str, Any]:
        """JSON Schema of a parameter object with canonical keys; JSON data."""
        return {
            "type": "object",
            "properties": {key: parameter.schema() for key, parameter in self.parameters.items()},
            "additionalProperties": False,
        }

    def knows(self, name: str) -> bool:
        """Whether ``name`` is that of a parameter, or of a node in the nested form, unique or not."""
        lowered = name.lower()
        return lowered in self._names or any(known.startswith(f"{lowered}.") for known in self._names)

    def find(self, name: str) -> Parameter:
        """The parameter of that name. Raises `InvalidInput` when there is none, or more than one."""
        if name in self.parameters:
            return self.parameters[name]
        keys = self._names.get(name.lower(), [])
        if len(keys) == 1:
            return self.parameters[keys[0]]
        if keys:
            raise InvalidInput(f"{name} could be any of {', '.join(keys)}; use one of these", field=name)
        raise InvalidInput(f"there is no parameter {name}{nearest(name, self._suggestions())}", field=name)

    def _suggestions(self) -> list[str]:
        unique = [name for name, keys in self._names.items() if len(keys) == 1]
        return [*self.parameters, *unique]

    def parse_text_value(self, name: str, text: str) -> Any:
        """The value that a person typed for a parameter, checked. Raises `InvalidInput`."""
        parameter = self.find(name)
        try:
            value = parse_text(parameter.definition, text)
            return _checked(parameter, value)
        except ValueRefused as refused:
            raise InvalidInput(f"{name}: {refused}", field=name) from refused

    def resolve(self, params: Mapping[str, Any]) -> dict[Place, Any]:
        """Checked values for the literals that ``params`` names, and for those that share a value with them.

        Raises `InvalidInput` that lists everything wrong with ``params``; then nothing of it may be used.
        """
        values: dict[Place, Any] = {}
        given_as: dict[Place, str] = {}
        refusals: list[InvalidInput] = []
        for name, value in self._flat(params):
            try:
                parameter = self.find(name)
                checked = _checked(parameter, value)
            except InvalidInput as refusal:
                refusals.append(refusal)
                continue
            except ValueRefused as refused:
                refusals.append(InvalidInput(f"{name}: {refused}", field=name))
                continue
            place = parameter.place
            if place in values:
                refusals.append(
                    InvalidInput(f"{name} and {given_as[place]} are the same parameter", field=name)
                )
            values[place], given_as[place] = checked, name
        for place, name in given_as.items():
            for other in self._shared.get(self._shares.get(place, (0, "")), ()):
                try:
                    if other.place not in values:
                        values[other.place] = _checked(other, values[place])
                except ValueRefused as refused:
                    refusals.append(InvalidInput(f"{name}, which {other.key} shares: {refused}", field=name))
        if refusals:
            raise _together(refusals)
        return values

    def _flat(self, params: Mapping[str, Any]) -> list[tuple[str, Any]]:
        flat: list[tuple[str, Any]] = []
        for name, value in params.items():
            if isinstance(value, Mapping) and name.lower() not in self._names:
                flat += ((f"{name}.{inner}", inner_value) for inner, inner_value in value.items())
            else:
                flat.append((name, value))
        return flat


def _checked(parameter: Parameter, value: Any) -> Any:
    return value if parameter.definition is None else check_value(parameter.definition, value)


def _together(refusals: list[InvalidInput]) -> InvalidInput:
    if len(refusals) == 1:
        return refusals[0]
    return InvalidInput(
        "; ".join(refusal.message for refusal in refusals),
        field=refusals[0].field,
        details=[{"field": refusal.field, "message": refusal.message} for refusal in refusals],
    )

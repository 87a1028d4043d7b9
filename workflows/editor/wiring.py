"""Where a wire of the editor comes from: through reroutes, bypassed nodes and the edges of subgraphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workflows.editor.drawing import BYPASS, NEVER, SUBGRAPH_INPUT
from workflows.editor.scopes import EDITOR_ONLY, Placed, Scope, promoted_value, widget_behind
from workflows.graph import AFTER_GENERATE, Link

_PASSING = frozenset({"Reroute", "Reroute (rgthree)", "SetNode"})
_ANY = frozenset({"*", ""})


@dataclass(frozen=True, slots=True)
class Constant:
    """A value of the editor itself. ``after_generate`` as of a `Node`'s input, where it has its own rule;
    ``name`` is the same for all inputs that it feeds."""

    value: Any
    after_generate: str | None = None
    name: str | None = None


Source = Link | Constant | None
"""What feeds an input; None: nothing does, so that its own widget counts."""


class Endless(Exception):
    """A wire that leads back to itself."""


class Wiring:
    """Finds what feeds an input. What has been followed once is remembered."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, str | None], Source] = {}

    def source(self, node: Placed, index: int) -> Source:
        """What feeds input number ``index`` of a node. Raises `Endless`."""
        passed: dict[tuple[int, int, str | None], bool] = {}
        step: _Step | Source = _Into(node, index)
        while isinstance(step, _Into | _OutOf):
            at = step.index if isinstance(step, _Into) else -1 - step.slot
            key = (id(step.node), at, step.type)
            if key in self._known:
                step = self._known[key]
                break
            if key in passed:
                raise Endless
            passed[key] = True
            step = _into(step) if isinstance(step, _Into) else _out_of(step)
        self._known.update(dict.fromkeys(passed, step))
        return step


@dataclass(frozen=True, slots=True)
class _Into:
    """Look at an input from the node's side. ``type`` is what the far end of the wire wants."""

    node: Placed
    index: int
    type: str | None = None


@dataclass(frozen=True, slots=True)
class _OutOf:
    """Look at an output from the wire's side."""

    node: Placed
    slot: int
    type: str


_Step = _Into | _OutOf


def _into(step: _Into) -> _Step | Source:
    node, scope = step.node, step.node.scope
    slot = node.inputs[step.index]
    wire = scope.drawing.wires.get(slot.wire) if slot.wire is not None else None
    if wire is None:
        return None
    return _origin(scope, wire.origin, wire.origin_slot, step.type or slot.type)


def _origin(scope: Scope, origin: str, slot: int, kind: str) -> _Step | Source:
    if origin == SUBGRAPH_INPUT and scope.host is not None:
        return _through_edge(scope.host, slot)
    node = scope.nodes.get(origin)
    return None if node is None else _OutOf(node, slot, kind)


def _through_edge(host: Placed, number: int) -> _Step | Source:
    """From the inside of a subgraph to what its instance is given."""
    if number >= len(host.inputs):
        return None
    wire = host.inputs[number].wire
    if wire is not None and wire in host.scope.drawing.wires:
        return _Into(host, number)
    has_widget, value = promoted_value(host, number)
    if not has_widget:
        return None
    behind = None if host.inner is None else widget_behind(host.inner, number)
    # The control of the widget that is shown acts on what is shown, and so on all that it feeds.
    rule = None if behind is None else behind[0].widgets.after_generate.get(behind[1])
    return Constant(value, rule, f"{host.path}.{host.inputs[number].name}")


def _out_of(step: _OutOf) -> _Step | Source:
    node = step.node
    if node.drawn.mode == NEVER:
        return None
    if node.drawn.mode == BYPASS:
        index = _bypass(node, step.slot, step.type)
        return None if index is None else _Into(node, index)
    if node.inner is not None:
        inside = node.inner
        end = inside.drawing.exits.get(step.slot)
        return None if end is None else _origin(inside, end.origin, end.origin_slot, step.type)
    if node.drawn.type in EDITOR_ONLY:
        return _editor_node(node, step.type)
    return Link(node.path, step.slot)


def _editor_node(node: Placed, kind: str) -> _Step | Source:
    if node.drawn.type == "PrimitiveNode":
        return _primitive(node)
    if node.drawn.type == "GetNode":
        setter = _setter(node)
        return None if setter is None else _OutOf(setter, 0, kind)
    if node.drawn.type in _PASSING and node.inputs:
        return _Into(node, 0, kind)
    return None


def _primitive(node: Placed) -> Source:
    """Its values are what it gives and, for numbers and choices, what becomes of that after a run."""
    if "value" in node.widgets.values:
        value: Any = node.widgets.values["value"]
    elif isinstance(node.drawn.values, list) and node.drawn.values:
        value = node.drawn.values[0]
    else:
        return None
    values = node.drawn.values if isinstance(node.drawn.values, list) else []
    rule = values[1] if len(values) > 1 else None
    kept = rule if isinstance(rule, str) and rule in AFTER_GENERATE else "fixed"
    return Constant(value, kept, node.path)


def _setter(getter: Placed) -> Placed | None:
    """The node that stores what a ``GetNode`` fetches by name, in its drawing or one around it."""
    scope: Scope | None = getter.scope
    wanted = _first_value(getter)
    while scope is not None and wanted is not None:
        for node in scope.nodes.values():
            if node.drawn.type == "SetNode" and _first_value(node) == wanted:
                return node
        scope = scope.host.scope if scope.host is not None else None
    return None


def _first_value(node: Placed) -> Any:
    return node.drawn.values[0] if isinstance(node.drawn.values, list) and node.drawn.values else None


def _bypass(node: Placed, slot: int, wanted: str) -> int | None:
    """The input that goes out at ``slot`` of a bypassed node: the one of the same number if its type fits,
    else one of exactly the type that is wanted, else the first that fits."""
    inputs = node.inputs
    if not inputs:
        return None
    if wanted in _ANY:
        return slot if slot < len(inputs) else 0
    given = _output_type(node, slot)

    def fits(index: int) -> bool:
        return _match(inputs[index].type, given) and _match(inputs[index].type, wanted)

    if slot < len(inputs) and fits(slot):
        return slot
    exact = next((index for index, one in enumerate(inputs) if one.type == wanted), None)
    return exact if exact is not None else next(filter(fits, range(len(inputs))), None)


def _output_type(node: Placed, slot: int) -> str:
    if node.inner is not None:
        outputs = [output.type for output in node.inner.drawing.outputs]
    elif node.definition is not None:
        outputs = [output.type for output in node.definition.outputs]
    else:
        outputs = [output.type for output in node.drawn.outputs]
    return outputs[slot] if slot < len(outputs) else "*"


def _match(one: str, other: str) -> bool:
    if (
        one in _ANY
        or other in _ANY
        or one.startswith("COMFY_MATCHTYPE")
        or other.startswith("COMFY_MATCHTYPE")
    ):
        return True
    return bool(set(one.lower().split(",")) & set(other.lower().split(",")))

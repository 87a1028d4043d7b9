"""Every instance of a subgraph as nodes of its own: the tree that the editor's file stands for.

A subgraph is drawn once and may be placed many times; each place has its own values for the widgets that are
promoted to it. A node is then known by the ids of the places that it is in and its own: ``12:34``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from workflows.definitions import Definitions, NodeDefinition
from workflows.dynamic import inputs_of
from workflows.editor.drawing import (
    BYPASS,
    NEVER,
    Drawing,
    DrawnNode,
    EditorFile,
    Slot,
)
from workflows.editor.widgets import Widgets, is_widget, read_widgets
from workflows.graph import Limits
from workflows.problems import Problem

EDITOR_ONLY = frozenset(
    {"Note", "MarkdownNote", "Reroute", "PrimitiveNode", "SetNode", "GetNode"}
    | {"Label (rgthree)", "Bookmark (rgthree)", "Reroute (rgthree)"}
    | {"Fast Groups Muter (rgthree)", "Fast Groups Bypasser (rgthree)"}
)
"""Nodes that the editor resolves itself; no class of that name has to exist."""


@dataclass(slots=True, eq=False)
class Placed:
    """A node in one place. ``inputs`` are all that it has, whether drawn or not, in the editor's order.

    ``inner`` is the inside of an instance of a subgraph; ``promoted`` its own values, by number of the input.
    ``by_wire`` numbers the inputs by what is attached to them.
    """

    drawn: DrawnNode
    scope: Scope
    definition: NodeDefinition | None
    inputs: list[Slot]
    widgets: Widgets
    inner: Scope | None = None
    promoted: dict[int, Any] = field(default_factory=dict)
    by_wire: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.by_wire = {slot.wire: index for index, slot in enumerate(self.inputs) if slot.wire is not None}

    @property
    def path(self) -> str:
        return ":".join((*self.scope.path, self.drawn.id))

    @property
    def runs(self) -> bool:
        return self.drawn.mode not in (NEVER, BYPASS)

    def problem(self, code: str, message: str, input: str | None = None) -> Problem:  # noqa: A002
        return Problem(code, message, self.path, self.drawn.type, self.drawn.title, input)


@dataclass(slots=True, eq=False)
class Scope:
    """The nodes of one drawing in one place; ``host`` is the instance that they are the inside of."""

    path: tuple[str, ...]
    drawing: Drawing
    host: Placed | None = None
    nodes: dict[str, Placed] = field(default_factory=dict)

    def walk(self) -> Iterator[Placed]:
        """The nodes that run, outermost first, each instance followed by its inside."""
        waiting = [iter(self.nodes.values())]
        while waiting:
            placed = next(waiting[-1], None)
            if placed is None:
                waiting.pop()
            elif placed.runs:
                yield placed
                if placed.inner is not None:
                    waiting.append(iter(placed.inner.nodes.values()))


class TooManyNodes(Exception):
    """Placing everything would make more nodes than a workflow may have."""


def place_all(file: EditorFile, definitions: Definitions, limits: Limits) -> tuple[Scope, list[Problem]]:
    """The top of the tree, with everything in it placed. Raises `TooManyNodes`."""
    placing = _Placing(file, definitions, limits)
    return placing.scope(file.top, (), None, ()), placing.problems


class _Placing:
    def __init__(self, file: EditorFile, definitions: Definitions, limits: Limits) -> None:
        self._file = file
        self._definitions = definitions
        self._limits = limits
        self._count = 0
        self.problems: list[Problem] = []

    def scope(
        self, drawing: Drawing, path: tuple[str, ...], host: Placed | None, within: tuple[str, ...]
    ) -> Scope:
        scope = Scope(path, drawing, host)
        for drawn in drawing.nodes.values():
            self._count += 1
            if self._count > self._limits.nodes:
                raise TooManyNodes
            scope.nodes[drawn.id] = self._place(drawn, scope, within)
        return scope

    def _place(self, drawn: DrawnNode, scope: Scope, within: tuple[str, ...]) -> Placed:
        subgraph = self._file.subgraphs.get(drawn.type)
        if subgraph is None:
            definition = self._definitions.get(drawn.type)
            widgets = read_widgets(drawn, definition)
            return Placed(drawn, scope, definition, _all_inputs(drawn, definition, widgets), widgets)
        placed = Placed(drawn, scope, None, _outer_inputs(drawn, subgraph), Widgets())
        if subgraph.id in within or len(within) >= self._limits.nesting:
            names = " in ".join((subgraph.name or subgraph.id, *within[-3:]))
            self.problems.append(placed.problem("nested_subgraph", f"the subgraph contains itself: {names}"))
            return placed
        inside = self.scope(subgraph, (*scope.path, drawn.id), placed, (*within, subgraph.id))
        placed.inner = inside
        _promote(placed, inside)
        return placed


def _all_inputs(drawn: DrawnNode, definition: NodeDefinition | None, widgets: Widgets) -> list[Slot]:
    """Those of the class, first those without a widget; then those that only the file has."""
    if definition is None:
        return list(drawn.inputs)
    drawn_by_name = {slot.name: slot for slot in drawn.inputs}
    given = dict.fromkeys(drawn_by_name) | widgets.values
    declared = inputs_of(definition, given)
    plain = [inner for inner in declared.values() if not is_widget(inner)]
    shown = [inner for inner in declared.values() if is_widget(inner)]
    inputs = []
    for inner in (*plain, *shown):
        slot = drawn_by_name.pop(inner.name, None)
        wire = slot.wire if slot is not None else None
        inputs.append(Slot(inner.name, inner.type, wire, inner.name if is_widget(inner) else None))
    return [*inputs, *drawn_by_name.values()]


def _outer_inputs(drawn: DrawnNode, subgraph: Drawing) -> list[Slot]:
    """The inputs of an instance are those of its subgraph; the file says by name what is attached to them."""
    waiting = list(drawn.inputs)
    inputs = []
    for inner in subgraph.inputs:
        fits = [slot for slot in waiting if slot.name == inner.name]
        same = [slot for slot in fits if slot.type == inner.type]
        slot = next(iter(same or fits), None)
        if slot is not None:
            waiting.remove(slot)
        inputs.append(Slot(inner.name, inner.type, slot.wire if slot is not None else None))
    return inputs


def targets_of(scope: Scope, number: int) -> Iterator[tuple[Placed, int]]:
    """The nodes inside that an input of their subgraph leads to, each with the number of its own input."""
    for node_id, wire_id in scope.drawing.entries.get(number, ()):
        target = scope.nodes[node_id]
        if wire_id in target.by_wire:
            yield target, target.by_wire[wire_id]


def widget_behind(scope: Scope, number: int) -> tuple[Placed, str] | None:
    """The node and input whose widget an input of a subgraph shows; None where it shows none."""
    for target, index in targets_of(scope, number):
        if target.inner is not None:
            behind = widget_behind(target.inner, index)
            if behind is not None:
                return behind
        elif (name := target.inputs[index].widget) is not None:
            return target, name
    return None


def promoted_value(host: Placed, number: int) -> tuple[bool, Any]:
    """Whether an input of an instance has a widget, and its value there."""
    if host.inner is None or (behind := widget_behind(host.inner, number)) is None:
        return False, None
    if number in host.promoted:
        return True, host.promoted[number]
    # Nearer instances than the outermost may have a value of their own.
    for target, index in targets_of(host.inner, number):
        if target.inner is not None:
            return promoted_value(target, index)
        break
    node, name = behind
    return True, node.widgets.values.get(name)


def _promote(host: Placed, inside: Scope) -> None:
    """Give an instance its own values: by position of the inputs that show a widget, then by their origin."""
    drawn = host.drawn
    shown = [number for number in range(len(host.inputs)) if widget_behind(inside, number) is not None]
    values = drawn.values if isinstance(drawn.values, list) else []
    names = list(drawn.named) if drawn.named is not None and len(drawn.named) == len(values) else None
    if names is not None:
        by_name = dict(zip(names, values, strict=True))
        shown_names = {number: host.inputs[number].name for number in shown}
        host.promoted.update({n: by_name[name] for n, name in shown_names.items() if name in by_name})
    else:
        host.promoted.update(zip(shown, values, strict=False))
    host.promoted = {number: value for number, value in host.promoted.items() if value is not None}
    proxies = _Proxies(host, inside)
    entries = drawn.properties.get("proxyWidgets")
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        if index < len(values) and values[index] is not None:
            proxies.set(entry, values[index])
    held = drawn.properties.get("proxyWidgetErrorQuarantine")
    for item in held if isinstance(held, list) else []:
        if isinstance(item, Mapping) and item.get("hostValue") is not None:
            entry = item.get("originalEntry")
            if isinstance(entry, list) and entry[:1] == [_OUTER]:
                proxies.set(entry, item["hostValue"])


_OUTER = "-1"


class _Proxies:
    """Values of an instance that name where they belong: ``[node id, widget]`` of a node inside, or an input
    of the subgraph by the id -1."""

    def __init__(self, host: Placed, inside: Scope) -> None:
        self._host = host
        self._inside = inside
        self._numbers = {(_OUTER, slot.name): number for number, slot in enumerate(host.inputs)}
        self._shown: dict[str, dict[str, int]] = {}
        for number in range(len(host.inputs)):
            for node, index in targets_of(inside, number):
                self._numbers.setdefault((node.drawn.id, node.inputs[index].name), number)

    def set(self, entry: Any, value: Any) -> None:
        if not isinstance(entry, list) or len(entry) < 2 or not all(isinstance(part, str) for part in entry):
            return
        node_id, name = entry[0], entry[1]
        number = self._numbers.get((node_id, name))
        target = self._inside.nodes.get(node_id)
        if number is not None:
            self._host.promoted[number] = value
        elif target is None:
            return
        elif target.inner is not None:
            inner = self._shown_by(target, target.inner).get(name)
            if inner is not None:
                target.promoted[inner] = value
        elif target.drawn.type == "PrimitiveNode":
            target.widgets.values["value"] = value
        elif name in target.widgets.values:
            target.widgets.values[name] = value

    def _shown_by(self, target: Placed, inner: Scope) -> dict[str, int]:
        """The inputs of an instance by their own names, and by those of the widgets that they show."""
        if target.drawn.id not in self._shown:
            numbers = {slot.name: number for number, slot in enumerate(target.inputs)}
            for number in range(len(target.inputs)):
                behind = widget_behind(inner, number)
                if behind is not None:
                    numbers.setdefault(behind[1], number)
            self._shown[target.drawn.id] = numbers
        return self._shown[target.drawn.id]

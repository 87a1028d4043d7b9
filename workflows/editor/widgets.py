"""The widgets of a drawn node: which value in the file belongs to which input.

ComfyUI's editor saves values by position. Their names come from ``widgets_values_named`` where a file has
it, else from the file's inputs that are widgets too where these are as many as the values are, else from
the node's class. Between them stand values of controls that only the editor has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from workflows.definitions import InputDefinition, NodeDefinition
from workflows.dynamic import DYNAMIC_COMBO, as_combo, brought_by, inputs_of
from workflows.editor.drawing import DrawnNode
from workflows.graph import AFTER_GENERATE

CONTROL = "control_after_generate"
FILTER = "control_filter_list"

_WIDGET_TYPES = frozenset(
    {
        "INT",
        "FLOAT",
        "BOOLEAN",
        "STRING",
        "COMBO",
        "COLOR",
        "COLORS",
        "MARKDOWN",
        "TEXTAREA",
        "CURVE",
        "RANGE",
    }
    | {"BOUNDING_BOX", "BOUNDING_BOXES", "CHART", "GALLERIA", "PAINTER", "COMPOSITOR", "VIDEO_EDIT"}
    | {"WEBCAM", "AUDIO_RECORD", "LOAD_3D", "LOAD_3D_ANIMATION", DYNAMIC_COMBO}
)
_DEFAULTS: dict[str, Any] = {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False, "STRING": ""}
_SEEDS = frozenset({"seed", "noise_seed"})
_MAX_WIDGETS = 4096


@dataclass(frozen=True, slots=True)
class Widgets:
    """Values by name of the input, and what becomes of them after a run (`AFTER_GENERATE`)."""

    values: dict[str, Any] = field(default_factory=dict)
    after_generate: dict[str, str] = field(default_factory=dict)


def is_widget(declared: InputDefinition) -> bool:
    """Whether the editor shows a widget for an input."""
    kind = declared.options.get("widgetType", declared.type)
    return kind in _WIDGET_TYPES and not declared.options.get("forceInput")


def read_widgets(node: DrawnNode, definition: NodeDefinition | None) -> Widgets:
    """The widgets of a node; with a definition all that its class has, absent ones at their defaults."""
    found = _by_name(node) or _in_order_of_file(node, definition)
    if definition is None:
        return found or Widgets()
    return _completed(definition, found or _in_order_of_class(definition, _as_list(node.values)))


def _as_list(values: list[Any] | Mapping[str, Any]) -> list[Any]:
    return values if isinstance(values, list) else list(values.values())


def _by_name(node: DrawnNode) -> Widgets | None:
    if isinstance(node.values, Mapping):
        return Widgets({str(name): value for name, value in node.values.items()})
    if node.named is None or len(node.named) != len(node.values):
        return None
    widgets, owner = Widgets(), None
    for name, value in zip(node.named, node.values, strict=True):
        if str(name).endswith(CONTROL):
            if owner is not None:
                _note_control(widgets, owner, value)
        elif not str(name).endswith(FILTER):
            owner = str(name)
            widgets.values[owner] = value
    return widgets


def _in_order_of_class(definition: NodeDefinition, values: list[Any]) -> Widgets:
    widgets, used = _walk(definition, values, forced=False)
    if used != len(values) and any(
        declared.options.get("forceInput") for declared in definition.inputs.values()
    ):
        # Older editors saved a value for these too.
        others, used = _walk(definition, values, forced=True)
        if used == len(values):
            return others
    return widgets


def _walk(definition: NodeDefinition, values: list[Any], *, forced: bool) -> tuple[Widgets, int]:
    """Deal ``values`` out to the widgets of a class; how many were dealt out."""
    widgets, position = Widgets(), 0
    waiting = list(definition.inputs.values())[::-1]
    while waiting and len(widgets.values) < _MAX_WIDGETS:
        declared = waiting.pop()
        if not is_widget(declared):
            position += forced and bool(declared.options.get("forceInput")) and declared.type in _WIDGET_TYPES
            continue
        value = values[position] if position < len(values) else default_of(declared)
        position += 1
        widgets.values[declared.name] = value
        if declared.type == DYNAMIC_COMBO:
            waiting += reversed(brought_by(declared, value))
        following = next((other for other in reversed(waiting) if is_widget(other)), None)
        for control in _controls_after(declared, values[position : position + 2], following):
            _note_control(widgets, declared.name, control)
            position += 1
    return widgets, position


def _controls_after(
    declared: InputDefinition, coming: list[Any], following: InputDefinition | None
) -> Iterator[Any]:
    """Those of the next two values that belong to the controls of this widget, not to the next widget."""
    if not coming:
        return
    wanted = has_control(declared)
    is_rule = _is_rule(coming[0])
    if not wanted:
        # A class of another version may have had the control.
        if declared.type == "INT" and is_rule and (following is None or following.type in ("INT", "FLOAT")):
            yield coming[0]
        return
    # The first editors had an on and off for it.
    old = isinstance(coming[0], bool) and (following is None or following.type != "BOOLEAN")
    if is_rule or old or coming[0] is None:
        yield coming[0]
        if declared.choices is not None and len(coming) > 1 and isinstance(coming[1], str):
            yield coming[1]


def has_control(declared: InputDefinition) -> bool:
    """Whether the editor puts a ``control_after_generate`` behind a widget."""
    given = declared.options.get(CONTROL)
    if given is None:
        return declared.type == "INT" and declared.name in _SEEDS
    return bool(given) and (declared.type in ("INT", "FLOAT") or declared.choices is not None)


def _note_control(widgets: Widgets, owner: str, value: Any) -> None:
    if isinstance(value, bool):
        value = "randomize" if value else "fixed"
    if isinstance(value, str) and value in AFTER_GENERATE:
        widgets.after_generate.setdefault(owner, value)


def _in_order_of_file(node: DrawnNode, definition: NodeDefinition | None) -> Widgets | None:
    """By the names of the inputs that are widgets too; None where their number does not fit the values."""
    names = [slot.widget for slot in node.inputs if slot.widget]
    widgets, position, values = Widgets(), 0, _as_list(node.values)
    known = {} if definition is None else inputs_of(definition, dict.fromkeys(names))
    for index, name in enumerate(names):
        if position >= len(values):
            return None
        widgets.values[name] = values[position]
        position += 1
        spare = len(values) - position - (len(names) - index - 1)
        if spare > 0 and _is_rule(values[position]) and _may_have_control(known.get(name)):
            _note_control(widgets, name, values[position])
            position += 1
    return widgets if position == len(values) and names else None


def _is_rule(value: Any) -> bool:
    return isinstance(value, str) and value in AFTER_GENERATE


def _may_have_control(declared: InputDefinition | None) -> bool:
    """Whether a file's version of an input may have had one, which its class of here need not have."""
    return declared is None or declared.type in ("INT", "FLOAT") or has_control(declared)


def _completed(definition: NodeDefinition, found: Widgets) -> Widgets:
    """Without what the class does not have, with defaults for what the file does not have."""
    values: dict[str, Any] = {}
    for _ in range(2):  # the first pass finds the choices that bring further inputs
        for name, declared in inputs_of(definition, found.values | values).items():
            if is_widget(declared):
                values[name] = found.values.get(name, default_of(declared))
    after = {name: rule for name, rule in found.after_generate.items() if name in values}
    return Widgets(values, after)


def default_of(declared: InputDefinition) -> Any:
    """What the editor gives a new widget."""
    if declared.type == DYNAMIC_COMBO:
        declared = as_combo(declared)
    if declared.default is not None:
        return declared.default
    if declared.choices:
        return declared.choices[0]
    return _DEFAULTS.get(declared.type)

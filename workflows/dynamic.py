"""Inputs that a node has or has not, by what else it is given: ComfyUI's dynamic inputs.

``COMFY_DYNAMICCOMBO_V3`` is a choice that brings further inputs, named ``choice.input``;
``COMFY_AUTOGROW_V3`` is a row of like inputs, named ``row.name``; ``COMFY_MATCHTYPE_V3`` is an input of any
of some types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from workflows.definitions import ANY_TYPE, BadDefinition, InputDefinition, NodeDefinition, read_inputs

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
AUTOGROW = "COMFY_AUTOGROW_V3"
MATCH_TYPE = "COMFY_MATCHTYPE_V3"
_DYNAMIC = frozenset({DYNAMIC_COMBO, AUTOGROW, MATCH_TYPE})
_MAX_DEPTH = 8
_MAX_ROW = 256


def inputs_of(definition: NodeDefinition, values: Mapping[str, Any]) -> Mapping[str, InputDefinition]:
    """The inputs that a node of this class has when it is given ``values``, by name, in order."""
    if not any(declared.type in _DYNAMIC for declared in definition.inputs.values()):
        return definition.inputs
    found: dict[str, InputDefinition] = {}
    for declared in definition.inputs.values():
        found.update((inner.name, inner) for inner in _expanded(declared, values, 0))
    return found


def options_of(declared: InputDefinition) -> dict[str, Mapping[str, Any]]:
    """The choices of a dynamic combo and what each brings: groups of inputs by ``required``, ``optional``."""
    given = declared.options.get("options")
    found: dict[str, Mapping[str, Any]] = {}
    for option in given if isinstance(given, list | tuple) else ():
        if isinstance(option, Mapping) and isinstance(option.get("key"), str):
            inputs = option.get("inputs")
            found[option["key"]] = inputs if isinstance(inputs, Mapping) else {}
    return found


def brought_by(declared: InputDefinition, choice: Any) -> list[InputDefinition]:
    """The inputs that a choice of a dynamic combo brings; none for what is no choice."""
    group = options_of(declared).get(choice) if isinstance(choice, str) else None
    return [] if group is None else _prefixed(declared.name, group)


def as_combo(declared: InputDefinition) -> InputDefinition:
    """A dynamic combo as the plain choice that its own value is."""
    choices = tuple(options_of(declared))
    default = declared.default if declared.default in choices else next(iter(choices), None)
    return replace(declared, type="COMBO", choices=choices, default=default, options={})


def _expanded(declared: InputDefinition, values: Mapping[str, Any], depth: int) -> Iterator[InputDefinition]:
    if declared.type == DYNAMIC_COMBO and depth < _MAX_DEPTH:
        plain = as_combo(declared)
        yield plain
        for inner in brought_by(declared, values.get(declared.name, plain.default)):
            yield from _expanded(inner, values, depth + 1)
    elif declared.type == AUTOGROW:
        yield from _row(declared, values)
    elif declared.type == MATCH_TYPE:
        template = declared.options.get("template")
        allowed = template.get("allowed_types") if isinstance(template, Mapping) else None
        yield replace(declared, type=allowed if isinstance(allowed, str) and allowed else ANY_TYPE)
    else:
        yield declared


def _row(declared: InputDefinition, values: Mapping[str, Any]) -> Iterator[InputDefinition]:
    """The members of a row that are given, and those below its least length, which are missing then."""
    template = declared.options.get("template")
    template = template if isinstance(template, Mapping) else {}
    group = template.get("input")
    members = _prefixed("", group) if isinstance(group, Mapping) else []
    least, names, prefix = template.get("min", 1), template.get("names"), template.get("prefix")
    least = least if isinstance(least, int) else 1
    most = len(names) if isinstance(names, list | tuple) else template.get("max", 100)
    for number in range(min(most, _MAX_ROW) if isinstance(most, int) else _MAX_ROW):
        for member in members:
            base = prefix if len(members) == 1 and isinstance(prefix, str) else member.name
            name = names[number] if isinstance(names, list | tuple) else f"{base}{number}"
            full = f"{declared.name}.{name}"
            required = member.required and declared.required and number < least
            if full in values or required:
                yield replace(member, name=full, required=required)


def _prefixed(owner: str, group: Mapping[str, Any]) -> list[InputDefinition]:
    try:
        inner = read_inputs(group)
    except BadDefinition:
        return []
    prefix = f"{owner}." if owner else ""
    return [replace(declared, name=prefix + declared.name) for declared in inner.values()]

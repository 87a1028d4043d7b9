"""What a node class declares of itself, by ComfyUI's public node protocol.

A definition is made from a class (`NodeDefinition.from_class`) or from the JSON that ComfyUI's
``/object_info`` route gives (`NodeDefinition.from_object_info`); a workflow is checked against definitions
alone, so that checking needs neither torch nor a node class.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from workflows.protocol import is_schema_class, question

Choice = str | int | float | bool
ANY_TYPE = "*"

# Own key in the object_info of a node, for what ComfyUI does not say there.
_EXTENSION = "headrace"


class BadDefinition(ValueError):
    """A node class whose declarations cannot be read."""


@dataclass(frozen=True, slots=True)
class InputDefinition:
    """One input. ``choices`` for a COMBO; ``minimum``, ``maximum`` and ``step`` for numbers.

    ``options`` is everything else that the class declares of it (JSON values). ``checks_range`` is false
    where the class validates the value itself.
    """

    name: str
    type: str
    required: bool = True
    choices: tuple[Choice, ...] | None = None
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    checks_range: bool = True


@dataclass(frozen=True, slots=True)
class OutputDefinition:
    """One output; ``is_list`` when the node gives a list of values that are worked on one by one."""

    name: str
    type: str
    is_list: bool = False


@dataclass(frozen=True, slots=True)
class NodeDefinition:
    """All that is known of a node class without running it.

    ``hidden`` maps names of hidden inputs to what they ask for (UNIQUE_ID, PROMPT, EXTRA_PNGINFO, ...).
    ``validates`` names the inputs that the class validates itself. ``may_change`` tells that it has an
    IS_CHANGED, so that its outputs may differ though its inputs do not. ``open_inputs``: any further input is
    taken. ``expands``: it declares that it may expand into other nodes while it runs. ``packages`` are the
    import names of what it needs besides torch (PACKAGES).
    """

    class_type: str
    inputs: Mapping[str, InputDefinition]
    outputs: tuple[OutputDefinition, ...]
    function: str = ""
    display_name: str = ""
    category: str = ""
    description: str = ""
    python_module: str = ""
    hidden: Mapping[str, str] = field(default_factory=dict)
    is_output: bool = False
    input_is_list: bool = False
    validates: frozenset[str] = frozenset()
    validates_all: bool = False
    may_change: bool = False
    open_inputs: bool = False
    expands: bool = False
    packages: tuple[str, ...] = ()

    @classmethod
    def from_class(cls, class_type: str, node_class: Any, display_name: str | None = None) -> NodeDefinition:
        """Read a node class of either kind. Raises `BadDefinition` when its declarations make no sense."""
        if is_schema_class(node_class) and not hasattr(node_class, "INPUT_TYPES"):
            return cls._from_schema(class_type, node_class, display_name)
        try:
            declared = node_class.INPUT_TYPES()
        except Exception as error:
            raise BadDefinition(f"INPUT_TYPES raised {type(error).__name__}: {error}") from error
        if not isinstance(declared, Mapping):
            raise BadDefinition(f"INPUT_TYPES gave {type(declared).__name__}, not a dict")
        function = getattr(node_class, "FUNCTION", None)
        if not isinstance(function, str) or not callable(getattr(node_class, function, None)):
            raise BadDefinition(f"FUNCTION is {function!r}, which names no method")
        validates, validates_all = _validated_inputs(node_class)
        return cls(
            class_type=class_type,
            inputs=read_inputs(declared, validates, validates_all),
            outputs=_outputs(
                getattr(node_class, "RETURN_TYPES", ()),
                getattr(node_class, "RETURN_NAMES", None),
                getattr(node_class, "OUTPUT_IS_LIST", None),
            ),
            function=function,
            display_name=display_name or class_type,
            category=str(getattr(node_class, "CATEGORY", "")),
            description=str(getattr(node_class, "DESCRIPTION", "")),
            python_module=str(getattr(node_class, "__module__", "")),
            hidden=_hidden(declared.get("hidden")),
            is_output=bool(getattr(node_class, "OUTPUT_NODE", False)),
            input_is_list=bool(getattr(node_class, "INPUT_IS_LIST", False)),
            validates=validates,
            validates_all=validates_all,
            may_change=question(node_class, "IS_CHANGED", "fingerprint_inputs") is not None,
            expands=_may_expand(node_class),
            open_inputs=_takes_anything(declared.get("optional")),
            packages=_names(getattr(node_class, "PACKAGES", ())),
        )

    @classmethod
    def _from_schema(cls, class_type: str, node_class: Any, display_name: str | None) -> NodeDefinition:
        """A schema class that does not declare itself the older way, too: from its schema alone."""
        try:
            schema = node_class.define_schema()
            declared: dict[str, Any] = {"required": {}, "optional": {}}
            for one in schema.inputs or ():
                group = "optional" if getattr(one, "optional", False) else "required"
                declared[group][one.id] = (one.io_type, dict(one.as_dict()))
            outputs = list(schema.outputs or ())
        except Exception as error:
            raise BadDefinition(f"define_schema raised {type(error).__name__}: {error}") from error
        validates, validates_all = _validated_inputs(node_class)
        return cls(
            class_type=class_type,
            inputs=read_inputs(declared, validates, validates_all),
            outputs=_outputs(
                [output.io_type for output in outputs],
                [getattr(output, "display_name", None) or output.io_type for output in outputs],
                [bool(getattr(output, "is_output_list", False)) for output in outputs],
            ),
            function="execute",
            display_name=display_name or getattr(schema, "display_name", None) or class_type,
            category=str(getattr(schema, "category", "")),
            description=str(getattr(schema, "description", "")),
            python_module=str(getattr(node_class, "__module__", "")),
            hidden={_type_name(asked).lower(): _type_name(asked) for asked in schema.hidden or ()},
            is_output=bool(getattr(schema, "is_output_node", False)),
            input_is_list=bool(getattr(schema, "is_input_list", False)),
            validates=validates,
            validates_all=validates_all,
            may_change=question(node_class, "IS_CHANGED", "fingerprint_inputs") is not None,
            expands=bool(getattr(schema, "enable_expand", False)),
        )

    @classmethod
    def from_object_info(cls, class_type: str, info: Mapping[str, Any]) -> NodeDefinition:
        """Read one entry of ``/object_info``. Raises `BadDefinition` when it is not one."""
        declared = info.get("input")
        if not isinstance(declared, Mapping):
            raise BadDefinition(f"no input in the object info of {class_type}")
        own = info.get(_EXTENSION)
        own = own if isinstance(own, Mapping) else {}
        validates = frozenset(map(str, own.get("validates") or ()))
        return cls(
            class_type=class_type,
            inputs=read_inputs(declared, validates, bool(own.get("validates_all"))),
            outputs=_outputs(info.get("output") or (), info.get("output_name"), info.get("output_is_list")),
            function=str(own.get("function", "")),
            display_name=str(info.get("display_name") or class_type),
            category=str(info.get("category") or ""),
            description=str(info.get("description") or ""),
            python_module=str(info.get("python_module") or ""),
            hidden=_hidden(declared.get("hidden")),
            is_output=bool(info.get("output_node")),
            input_is_list=bool(info.get("is_input_list")),
            validates=validates,
            validates_all=bool(own.get("validates_all")),
            may_change=bool(own.get("may_change")),
            open_inputs=bool(own.get("open_inputs")),
            expands=bool(own.get("expands")),
            packages=_names(own.get("packages")),
        )

    def to_object_info(self) -> dict[str, Any]:
        """The definition as ComfyUI's ``/object_info`` gives it, with one key more; JSON data."""
        groups: dict[str, Any] = {"required": {}, "optional": {}}
        for definition in self.inputs.values():
            groups["required" if definition.required else "optional"][definition.name] = _input_spec(
                definition
            )
        if self.hidden:
            groups["hidden"] = dict(self.hidden)
        return {
            "input": groups,
            "input_order": {name: list(group) for name, group in groups.items()},
            "is_input_list": self.input_is_list,
            "output": [output.type for output in self.outputs],
            "output_is_list": [output.is_list for output in self.outputs],
            "output_name": [output.name for output in self.outputs],
            "name": self.class_type,
            "display_name": self.display_name,
            "description": self.description,
            "python_module": self.python_module,
            "category": self.category,
            "output_node": self.is_output,
            _EXTENSION: {
                "function": self.function,
                "validates": sorted(self.validates),
                "validates_all": self.validates_all,
                "may_change": self.may_change,
                "open_inputs": self.open_inputs,
                "expands": self.expands,
                "packages": list(self.packages),
            },
        }


Definitions = Mapping[str, NodeDefinition]


def accepts(expected: str, given: str) -> bool:
    """Whether an output of type ``given`` may feed an input of type ``expected``.

    A type may be a union (``IMAGE,MASK``); two unions fit when they overlap, as in ComfyUI.
    """
    if _is_any(expected) or _is_any(given):
        return True
    return bool({part.strip() for part in expected.split(",")} & {part.strip() for part in given.split(",")})


def _is_any(name: str) -> bool:
    return name == ANY_TYPE or name.startswith("COMFY_MATCHTYPE")


def read_inputs(
    declared: Mapping[str, Any], validates: frozenset[str] = frozenset(), validates_all: bool = False
) -> dict[str, InputDefinition]:
    """Inputs out of ``{"required": {name: spec}, "optional": ...}``. Raises `BadDefinition`."""
    inputs: dict[str, InputDefinition] = {}
    groups: tuple[Literal["optional", "required"], ...] = ("required", "optional")
    for group in groups:
        members = declared.get(group)
        if members is None:
            continue
        if not isinstance(members, Mapping):
            raise BadDefinition(f"{group} inputs are {type(members).__name__}, not a dict")
        for name, spec in members.items():
            checked = not (validates_all or name in validates)
            inputs[str(name)] = _read_input(str(name), spec, group == "required", checked)
    return inputs


def _read_input(name: str, spec: Any, required: bool, checks_range: bool) -> InputDefinition:
    if isinstance(spec, str):
        spec = (spec,)
    if not isinstance(spec, list | tuple) or not spec:
        raise BadDefinition(f"input {name} is declared as {spec!r}, not (type, options)")
    options = dict(spec[1]) if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    kind, choices = _type_name(spec[0]), None
    if isinstance(spec[0], list | tuple):
        kind, choices = "COMBO", _choices(spec[0])
    elif (
        kind == "COMBO"
        and isinstance(options.get("options"), list | tuple)
        and not options.get("multiselect")
    ):
        choices = _choices(options.pop("options"))
    return InputDefinition(
        name=name,
        type=kind,
        required=required,
        choices=choices,
        default=_json_value(options.pop("default", None)),
        minimum=_number(options.pop("min", None)),
        maximum=_number(options.pop("max", None)),
        step=_number(options.pop("step", None)),
        options={str(key): value for key, value in options.items() if _json_value(value) is not None},
        checks_range=checks_range,
    )


def _input_spec(definition: InputDefinition) -> list[Any]:
    options = dict(definition.options)
    for key, value in (
        ("default", definition.default),
        ("min", definition.minimum),
        ("max", definition.maximum),
        ("step", definition.step),
    ):
        if value is not None:
            options[key] = value
    return [definition.type if definition.choices is None else list(definition.choices), options]


def _choices(values: Any) -> tuple[Choice, ...]:
    return tuple(value for value in values if isinstance(value, str | int | float | bool))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


def _type_name(kind: Any) -> str:
    """Some packs declare types with an enumeration."""
    return str(kind.value if isinstance(kind, Enum) else kind)


def _json_value(value: Any) -> Any:
    """``value`` when JSON can carry it unchanged, else None."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    return value


def _outputs(types: Any, names: Any, lists: Any) -> tuple[OutputDefinition, ...]:
    types = (types,) if isinstance(types, str) else types
    kinds = ["COMBO" if isinstance(kind, list | tuple) else _type_name(kind) for kind in types or ()]
    names = [str(name) for name in names] if isinstance(names, list | tuple) else []
    flags = [bool(flag) for flag in lists] if isinstance(lists, list | tuple) else []
    return tuple(
        OutputDefinition(
            names[index] if index < len(names) else kind, kind, flags[index] if index < len(flags) else False
        )
        for index, kind in enumerate(kinds)
    )


def _names(declared: Any) -> tuple[str, ...]:
    """Foreign classes may mean something else by the same name; what is no list of texts counts as none."""
    if not isinstance(declared, list | tuple):
        return ()
    return tuple(name for name in declared if isinstance(name, str) and name)


def _hidden(declared: Any) -> dict[str, str]:
    if not isinstance(declared, Mapping):
        return {}
    found: dict[str, str] = {}
    for name, spec in declared.items():
        kind = spec[0] if isinstance(spec, list | tuple) and spec else spec
        found[str(name)] = _type_name(kind)
    return found


def _validated_inputs(node_class: Any) -> tuple[frozenset[str], bool]:
    validate = question(node_class, "VALIDATE_INPUTS", "validate_inputs")
    if validate is None:
        return frozenset(), False
    try:
        parameters = inspect.signature(validate).parameters.values()
    except (TypeError, ValueError):
        return frozenset(), False
    names = frozenset(
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    )
    return names, any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _may_expand(node_class: Any) -> bool:
    """Whether a schema class says so; of other classes only running them tells."""
    if not is_schema_class(node_class):
        return False
    try:
        return bool(getattr(node_class.define_schema(), "enable_expand", False))
    except Exception as error:
        raise BadDefinition(f"define_schema raised {type(error).__name__}: {error}") from error


def _takes_anything(optional: Any) -> bool:
    """Some packs declare an optional dict that claims to contain every name."""
    try:
        return isinstance(optional, Mapping) and "\0no such input" in optional
    except Exception:  # noqa: BLE001 (foreign __contains__)
        return False

"""Literal values against the declaration of their input: types, ranges, choices.

The coercions are those that make sense of what workflow files contain (``"20"`` or ``20.0`` for an INT,
Windows backslashes in a file choice); anything else of the wrong type is refused.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

from workflows.definitions import InputDefinition

# A value of one of these types can only come from another node, whatever the file says.
LINK_ONLY_TYPES = frozenset(
    {"AUDIO", "CLIP", "CLIP_VISION", "CLIP_VISION_OUTPUT", "CONDITIONING", "CONTROL_NET", "GLIGEN", "GUIDER"}
    | {"HOOKS", "IMAGE", "LATENT", "MASK", "MODEL", "NOISE", "SAMPLER", "SIGMAS", "STYLE_MODEL"}
    | {"UPSCALE_MODEL", "VAE", "VIDEO"}
)
_SHOWN_CHOICES = 12


class ValueRefused(ValueError):
    """``code`` is one of wrong_type, below_minimum, above_maximum, not_a_choice, needs_link."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_value(definition: InputDefinition, value: Any) -> Any:
    """``value`` as the node will get it. Raises `ValueRefused` with the limit and the value in words."""
    if definition.type in LINK_ONLY_TYPES:
        raise ValueRefused(
            "needs_link", f"expects a link to an output of type {definition.type}, got {show(value)}"
        )
    if definition.choices is not None:
        return _check_choice(definition, value)
    convert = _CONVERTERS.get(definition.type)
    if convert is None:
        return value
    converted = convert(definition.type, value)
    if definition.checks_range and not isinstance(converted, str):
        _check_range(definition, converted, value)
    return converted


def parse_text(definition: InputDefinition | None, text: str) -> Any:
    """What a person typed on a command line, as a value of the input's type; raises `ValueRefused`."""
    if definition is None:
        return text
    if definition.choices is not None:
        return next((choice for choice in definition.choices if str(choice) == text), text)
    if definition.type == "BOOLEAN":
        lowered = text.strip().lower()
        if lowered in _TRUE | _FALSE:
            return lowered in _TRUE
        raise ValueRefused("wrong_type", f"expected true or false, got {show(text)}")
    return text


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean X?)`` for the closest of ``known``, or nothing."""
    names = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return f" (did you mean {names[close[0]]}?)" if close else ""


def show(value: Any) -> str:
    """A value in a message, cut when long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or endless nesting
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= 80 else text[:77] + "..."


_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


def _to_int(kind: str, value: Any) -> int:
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            value = _finite(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueRefused("wrong_type", f"expected a whole number ({kind}), got {show(value)}")
    return value


def _to_float(kind: str, value: Any) -> float:
    number = _finite(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not _is_finite(number):
        raise ValueRefused("wrong_type", f"expected a number ({kind}), got {show(value)}")
    return float(number)


def _finite(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _to_str(kind: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueRefused("wrong_type", f"expected a text ({kind}), got {show(value)}")
    return str(value)


def _to_bool(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ValueRefused("wrong_type", f"expected true or false ({kind}), got {show(value)}")


_CONVERTERS: dict[str, Callable[[str, Any], int | float | str | bool]] = {
    "INT": _to_int,
    "FLOAT": _to_float,
    "STRING": _to_str,
    "BOOLEAN": _to_bool,
}


def _check_range(definition: InputDefinition, value: float, given: Any) -> None:
    if definition.minimum is not None and value < definition.minimum:
        raise ValueRefused("below_minimum", f"must be at least {definition.minimum}, got {show(given)}")
    if definition.maximum is not None and value > definition.maximum:
        raise ValueRefused("above_maximum", f"must be at most {definition.maximum}, got {show(given)}")


def _check_choice(definition: InputDefinition, value: Any) -> Any:
    choices = definition.choices or ()
    for choice in choices:
        if choice == value and isinstance(choice, bool) == isinstance(value, bool):
            return choice
    if isinstance(value, str):
        # A file chosen on Windows; the folder separators are all that differs.
        portable = value.replace("\\", "/")
        for choice in choices:
            if isinstance(choice, str) and choice.replace("\\", "/") == portable:
                return choice
    if not definition.checks_range:
        return value
    shown = ", ".join(show(choice) for choice in choices[:_SHOWN_CHOICES])
    more = f" and {len(choices) - _SHOWN_CHOICES} more" if len(choices) > _SHOWN_CHOICES else ""
    hint = (
        nearest(value, (choice for choice in choices if isinstance(choice, str)))
        if isinstance(value, str)
        else ""
    )
    expected = f"one of {shown}{more}" if choices else "a choice from a list, which is empty on this machine"
    raise ValueRefused("not_a_choice", f"must be {expected}, got {show(value)}{hint}")

"""What a node's function returns, and the calls of nodes that deal in lists of values.

By ComfyUI's protocol a function returns a tuple of its outputs, or a dict with ``result`` (that tuple) and
``ui`` (what an editor shows). A value can be a list that is worked on one by one: a function without
INPUT_IS_LIST is then called once for each element, shorter lists repeating their last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Call = Callable[..., Any]


def unpack(result: Any, width: int) -> tuple[Sequence[Any], Any]:
    """The outputs, at least ``width`` of them, and what is to be shown (None without).

    Raises `ValueError` in words when the result is something else.
    """
    shown = None
    if isinstance(result, Mapping):
        if "expand" in result:
            raise ValueError("it expands into other nodes while it runs, which is not supported yet")
        shown = result.get("ui")
        result = result.get("result", ())
    if not isinstance(result, tuple | list):
        if width == 0:
            return (), shown
        raise ValueError(f"it returned {_article(result)}, not a tuple of {width}")
    if len(result) < width:
        raise ValueError(
            f"it returned {len(result)} value(s), but output {width - 1} (counted from 0) is used"
        )
    return result, shown


def _article(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def taking_lists(call: Call, list_inputs: frozenset[str]) -> Call:
    """For INPUT_IS_LIST: every argument reaches ``call`` as a list. Works for async functions too."""

    def with_lists(**arguments: Any) -> Any:
        return call(**{name: value if name in list_inputs else [value] for name, value in arguments.items()})

    return with_lists


def mapped(call: Call, list_inputs: frozenset[str], lists_out: Sequence[bool], width: int) -> Call:
    """Call once for each element of the arguments named in ``list_inputs``; every output becomes a list."""

    def over_elements(**arguments: Any) -> Any:
        results = [call(**chosen) for chosen in _each(arguments, list_inputs)]
        return _gather(results, lists_out, width)

    return over_elements


def mapped_async(call: Call, list_inputs: frozenset[str], lists_out: Sequence[bool], width: int) -> Call:
    """`mapped` for an async function; one element after the other."""

    async def over_elements(**arguments: Any) -> Any:
        results = [await call(**chosen) for chosen in _each(arguments, list_inputs)]
        return _gather(results, lists_out, width)

    return over_elements


def _each(arguments: dict[str, Any], list_inputs: frozenset[str]) -> list[dict[str, Any]]:
    lists = {name: value for name, value in arguments.items() if name in list_inputs}
    empty = [name for name, value in lists.items() if not value]
    if len(empty) == len(lists):
        return []
    if empty:
        raise ValueError(f"its input {empty[0]} is an empty list")
    count = max(len(value) for value in lists.values())
    return [
        arguments | {name: value[min(index, len(value) - 1)] for name, value in lists.items()}
        for index in range(count)
    ]


def _gather(results: list[Any], lists_out: Sequence[bool], width: int) -> dict[str, Any]:
    outputs: list[list[Any]] = [[] for _ in range(width)]
    shown: dict[str, list[Any]] = {}
    for result in results:
        values, ui = unpack(result, width)
        for index, gathered in enumerate(outputs):
            if index < len(lists_out) and lists_out[index]:
                gathered.extend(values[index])
            else:
                gathered.append(values[index])
        for key, items in ui.items() if isinstance(ui, Mapping) else ():
            shown.setdefault(key, []).extend(items)
    return {"result": tuple(outputs), "ui": shown or None}

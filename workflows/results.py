"""What a node's function returns, and the calls of nodes that deal in lists of values.

By ComfyUI's protocol a function returns a tuple of its outputs, a dict with ``result`` (that tuple), ``ui``
(what an editor shows) and ``expand`` (a graph that is run in its place), an output object with the same
parts, or an execution blocker. A value can be a list that is worked on one by one: a function without
INPUT_IS_LIST is then called once for each element, shorter lists repeating their last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflows.protocol import ExecutionBlocker, is_blocker, is_node_output

Call = Callable[..., Any]


@dataclass(frozen=True)
class Outcome:
    """One call's result: its outputs, what is to be shown, and the graph that it expands into."""

    values: Sequence[Any]
    shown: Mapping[str, Any] | None = None
    expand: Mapping[str, Any] | None = None


def read(result: Any, outputs: int) -> Outcome:
    """What a function of a node with ``outputs`` outputs returned. Raises `ValueError` in words."""
    if isinstance(result, Mapping):
        values, shown, expand = result.get("result"), result.get("ui"), result.get("expand")
    elif is_node_output(result):
        values, shown, expand = result.result, result.ui, result.expand
        if result.block_execution is not None:
            values = ExecutionBlocker(result.block_execution)
    else:
        values, shown, expand = result, None, None
    if shown is not None and not isinstance(shown, Mapping):
        shown = shown.as_dict()
    if is_blocker(values):
        values = (values,) * outputs
    if values is None and (outputs == 0 or result is not values):
        values = ()
    if not isinstance(values, tuple | list):
        if outputs:
            raise ValueError(f"it returned {_article(values)}, not a tuple of {outputs}")
        values = ()
    return Outcome(values, shown, expand)


def checked(outcome: Outcome, width: int) -> Sequence[Any]:
    """The outputs, at least the ``width`` that are used. Raises `ValueError` in words."""
    if len(outcome.values) < width:
        raise ValueError(
            f"it returned {len(outcome.values)} value(s), but output {width - 1} (counted from 0) is used"
        )
    return outcome.values


def _article(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def blocked(count: int, blocker: Any) -> tuple[Any, ...]:
    return (blocker,) * count


def find_blocker(arguments: Mapping[str, Any], lists: bool = False) -> Any:
    """The first execution blocker among the arguments of one call, or None; ``lists``: each is a list."""
    for value in arguments.values():
        if lists:
            found = next((item for item in value if is_blocker(item)), None)
            if found is not None:
                return found
        elif is_blocker(value):
            return value
    return None


def each(lists: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The arguments of each call; one call without arguments for none. Raises `ValueError` for an empty
    list."""
    for name, value in lists.items():
        if not value:
            raise ValueError(f"its input {name} is an empty list")
    count = max((len(value) for value in lists.values()), default=1)
    return [
        {name: value[min(index, len(value) - 1)] for name, value in lists.items()} for index in range(count)
    ]


def merged(rows: Sequence[Sequence[Any]], lists_out: Sequence[bool], width: int) -> list[list[Any]]:
    """The outputs of several calls as lists; those of an output that is a list are put one behind the
    other."""
    outputs: list[list[Any]] = [[] for _ in range(width)]
    for row in rows:
        for index, gathered in enumerate(outputs):
            value = row[index]
            if index < len(lists_out) and lists_out[index] and not is_blocker(value):
                gathered.extend(value)
            else:
                gathered.append(value)
    return outputs


def merged_shown(shown: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """What several calls have to show; None when none has."""
    found: dict[str, Any] = {}
    for one in shown:
        for key, items in (one or {}).items():
            if isinstance(items, list | tuple) and isinstance(found.get(key, []), list):
                found.setdefault(key, []).extend(items)
            else:
                found[key] = items
    return found or None


class NotPlain(Exception):
    """A planned call cannot go on as planned. ``made``: it has been made, and its result is at hand."""

    def __init__(self, made: bool = False) -> None:
        super().__init__()
        self.made = made


def taking_lists(call: Call, list_inputs: frozenset[str], outputs: int, is_async: bool) -> Call:
    """For INPUT_IS_LIST: every argument reaches ``call`` as a list."""

    def listed(arguments: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        lists = {name: value if name in list_inputs else [value] for name, value in arguments.items()}
        return lists, find_blocker(lists, lists=True)

    def with_lists(**arguments: Any) -> Any:
        lists, blocker = listed(arguments)
        return call(**lists) if blocker is None else blocked(outputs, blocker)

    async def with_lists_async(**arguments: Any) -> Any:
        lists, blocker = listed(arguments)
        return await call(**lists) if blocker is None else blocked(outputs, blocker)

    return with_lists_async if is_async else with_lists


def mapped(
    call: Call, list_inputs: frozenset[str], lists_out: Sequence[bool], width: int, outputs: int
) -> Call:
    """Call once for each element of the arguments named in ``list_inputs``; every output becomes a list."""

    def over_elements(**arguments: Any) -> Any:
        results = []
        for chosen in _chosen(arguments, list_inputs):
            blocker = find_blocker(chosen)
            results.append(call(**chosen) if blocker is None else blocked(outputs, blocker))
        return _gathered(results, lists_out, width, outputs)

    return over_elements


def mapped_async(
    call: Call, list_inputs: frozenset[str], lists_out: Sequence[bool], width: int, outputs: int
) -> Call:
    """`mapped` for an async function; one element after the other."""

    async def over_elements(**arguments: Any) -> Any:
        results = []
        for chosen in _chosen(arguments, list_inputs):
            blocker = find_blocker(chosen)
            results.append(await call(**chosen) if blocker is None else blocked(outputs, blocker))
        return _gathered(results, lists_out, width, outputs)

    return over_elements


def _chosen(arguments: dict[str, Any], list_inputs: frozenset[str]) -> list[dict[str, Any]]:
    lists = {name: value if name in list_inputs else (value,) for name, value in arguments.items()}
    return each(lists)


def _gathered(results: list[Any], lists_out: Sequence[bool], width: int, outputs: int) -> dict[str, Any]:
    outcomes = [read(result, outputs) for result in results]
    if any(outcome.expand is not None for outcome in outcomes):
        raise NotPlain
    rows = [checked(outcome, width) for outcome in outcomes]
    return {
        "result": tuple(merged(rows, lists_out, width)),
        "ui": merged_shown([outcome.shown for outcome in outcomes]),
    }

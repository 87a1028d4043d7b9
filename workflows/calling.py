"""Calls of one node: once for each element of its lists, past execution blockers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from workflows.binding import BoundNode
from workflows.failures import node_failed
from workflows.protocol import ExecutionBlocker, name_expansions
from workflows.results import Outcome, blocked, checked, each, find_blocker
from workflows.results import read as read_result


class Calls:
    """``widths``: how many outputs each node must give. ``blocked`` is what blockers said, by the node that
    they kept from running."""

    def __init__(self, widths: Mapping[str, int]) -> None:
        self.blocked: dict[str, str] = {}
        self._widths = widths

    async def one_by_one(self, item: BoundNode, lists: dict[str, list[Any]]) -> list[Outcome]:
        """The calls of a node, one after the other."""
        outcomes = []
        for number, row in enumerate(self.rows(item, lists)):
            outcomes.append(await self._call(item, number, row))
        return outcomes

    async def at_once(self, item: BoundNode, lists: dict[str, list[Any]]) -> list[Outcome]:
        """The calls of an async node, which overlap."""
        calls = (self._call(item, number, row) for number, row in enumerate(self.rows(item, lists)))
        return list(await asyncio.gather(*calls))

    def rows(self, item: BoundNode, lists: dict[str, list[Any]]) -> list[dict[str, Any]]:
        """The arguments of each call. Raises `ProcessorError`."""
        if item.definition.input_is_list:
            return [lists]
        try:
            return each(lists)
        except ValueError as error:
            raise node_failed(item.node, error) from error

    async def _call(self, item: BoundNode, number: int, row: dict[str, Any]) -> Outcome:
        blocker = find_blocker(row, item.definition.input_is_list)
        if blocker is not None:
            return Outcome(blocked(item.outputs, self.quiet(item, blocker)))
        name_expansions(item.node.id, number)
        call = item.call
        try:
            with item.guard():
                result = call(**row)
                if asyncio.iscoroutine(result):
                    result = await result
        except (Exception, SystemExit) as error:
            raise node_failed(item.node, error, row) from error
        return self.read(item, result, row)

    def read(self, item: BoundNode, result: Any, row: Mapping[str, Any]) -> Outcome:
        """What a call gave. Raises `ProcessorError` for what is no result of the node."""
        try:
            outcome = read_result(result, item.outputs)
            if outcome.expand is None:
                checked(outcome, self._widths.get(item.node.id, 0))
        except ValueError as error:
            raise node_failed(item.node, error, row) from error
        return outcome

    def quiet(self, item: BoundNode, blocker: Any) -> Any:
        """Blocks further nodes without saying so again; what it said is kept in `blocked`."""
        if getattr(blocker, "message", None) is None:
            return blocker
        self.blocked[item.node.id] = str(blocker.message)
        return ExecutionBlocker()

    async def ask_lazy(self, item: BoundNode, lists: dict[str, list[Any]]) -> set[str]:
        """The names that ``check_lazy_status`` asks for."""
        check = item.lazy_check
        assert check is not None
        names: set[str] = set()
        for row in self.rows(item, lists):
            if find_blocker(row, item.definition.input_is_list) is not None:
                continue
            try:
                with item.guard():
                    answer = check(**row)
                    if asyncio.iscoroutine(answer):
                        answer = await answer
            except (Exception, SystemExit) as error:
                raise node_failed(item.node, error, row) from error
            names |= {name for name in answer or () if isinstance(name, str)}
        return names

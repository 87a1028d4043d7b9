"""Running a graph by the rules of the node protocol, node by node: the slow road.

A node runs when what it needs is there; lazy inputs are evaluated when it asks for them; a node may expand
into others; execution blockers pass through. Every output is a list of values, of one value unless the node
says otherwise, and a node is called once for each element.

With sources that are not known yet (the frame, when a graph is planned), all that does not depend on them is
run, and what is left is told (`Evaluation.residual`): this is how a plan is made. With all sources known,
everything that is asked for is run: this is how a frame goes through a graph that cannot be planned.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from stream.errors import ProcessorError
from workflows.binding import BoundNode
from workflows.calling import Calls
from workflows.expanding import Expansions
from workflows.graph import Link, Node
from workflows.inference import in_inference_mode
from workflows.protocol import is_blocker, is_link
from workflows.registry import NodeRegistry
from workflows.results import Outcome, blocked, merged, merged_shown
from workflows.world import Keeper, Outputs, Residual, Run, Sources, World

EXPANDS = "it expands into other nodes"
LAZY = "what it wants of its lazy inputs depends on the frame"


class Evaluation:
    """One run. ``done`` begins with what is known; `demand` adds to it, `residual`, `slow` and `shown`."""

    def __init__(
        self,
        world: World,
        done: Mapping[str, Outputs],
        unknown: Mapping[str, Sources] = MappingProxyType({}),
        volatile: Mapping[str, Sources] = MappingProxyType({}),
        keeper: Keeper | None = None,
    ) -> None:
        self.done: dict[str, Outputs] = dict(done)
        self.unknown: dict[str, Sources] = dict(unknown)
        self.residual: dict[str, Residual] = {}
        self.slow: dict[str, str] = {}
        self.shown: dict[str, Any] = {}
        self.raw: dict[str, Any] = {}
        """Results of calls that were made already, for nodes that need not be called any more."""
        self._world = world
        self._volatile = volatile
        self._keeper = keeper
        self._calls = Calls(world.widths)
        self._expanded = Expansions(world, self.done, self.unknown)
        self._asked: dict[str, set[str]] = {}
        self._waiting: dict[str, set[str]] = {}
        self._users: dict[str, set[str]] = {}
        self._ready: deque[str] = deque()
        self._running: dict[asyncio.Future[list[Outcome]], str] = {}
        self._expansions: dict[str, list[Outcome]] = {}
        self._one_by_one = type(world.registry).guard is not NodeRegistry.guard

    @property
    def blocked(self) -> dict[str, str]:
        """What execution blockers said, by the node that they kept from running."""
        return self._calls.blocked

    async def demand(self, node_ids: Iterable[str]) -> None:
        """Run what these nodes need, and them. Raises `ProcessorError` that names the node at fault."""
        for node_id in node_ids:
            self._need(node_id)
        try:
            while self._waiting:
                if self._ready:
                    await self._attempt(self._ready.popleft())
                elif self._running:
                    finished, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                    for task in finished:
                        node_id = self._running.pop(task)
                        self._finish(node_id, task.result())
                else:
                    circle = ", ".join(self._node(node_id).label for node_id in list(self._waiting)[:8])
                    raise ProcessorError(f"nodes wait for each other: {circle}")
        finally:
            await self._end()

    # -- what waits for what ---------------------------------------------------------------------------

    def _need(self, node_id: str) -> None:
        pending = [node_id]
        while pending:
            current = pending.pop()
            if current in self.done or current in self.unknown or current in self._waiting:
                continue
            if current not in self._expanded.nodes and current not in self._world.bound:
                raise ProcessorError(f"there is no node {current}, to which another is linked")
            if current in self.raw:
                self._wait(current, ())
                continue
            item = self._item(current)
            lazy = item.lazy
            asked = self._asked.get(current, set())
            sources = {link.node_id for name, link in item.links if name not in lazy or name in asked}
            pending += self._wait(current, sources)

    def _wait(self, node_id: str, sources: Iterable[str]) -> list[str]:
        """Let a node wait for ``sources``; those that have to be run for it."""
        missing = {source for source in sources if source not in self.done and source not in self.unknown}
        self._waiting[node_id] = missing
        for source in missing:
            self._users.setdefault(source, set()).add(node_id)
        if not missing:
            self._ready.append(node_id)
        return list(missing)

    def _settled(self, node_id: str) -> None:
        self._waiting.pop(node_id, None)
        for user in self._users.pop(node_id, ()):
            waits = self._waiting.get(user)
            if waits is not None and node_id in waits:
                waits.discard(node_id)
                if not waits:
                    self._ready.append(user)

    def _item(self, node_id: str) -> BoundNode:
        found = self._expanded.nodes.get(node_id)
        return self._world.bound[node_id] if found is None else found

    def _node(self, node_id: str) -> Node:
        return self._item(node_id).node

    # -- one node --------------------------------------------------------------------------------------

    async def _attempt(self, node_id: str) -> None:
        item = self._item(node_id)
        if node_id in self._expansions:
            self._join(node_id, item)
            return
        if node_id in self.raw:
            self._finish(node_id, [self._calls.read(item, self.raw.pop(node_id), {})])
            return
        lazy = item.lazy
        asked = self._asked.get(node_id, set())
        lists: dict[str, list[Any]] = {}
        links: list[tuple[str, Link]] = []
        unasked: set[str] = set()
        strong: Sources = self._volatile.get(node_id, frozenset())
        wanted: Sources = frozenset()
        for name, link in item.links:
            source = link.node_id
            if source in self.done:
                lists[name] = self._value(item, name, link)
                links.append((name, link))
            elif name in lazy and name not in asked:
                lists[name] = [None]
                unasked.add(name)
            else:
                links.append((name, link))
                if name in lazy:
                    wanted |= self.unknown[source]
                else:
                    strong |= self.unknown[source]
        if strong and unasked:
            self.slow[node_id] = LAZY
        if strong or wanted:
            blocker = _blocks_all(lists, item.definition.input_is_list)
            if blocker is not None:
                self._put(node_id, item, [blocked(item.outputs, self._calls.quiet(item, blocker))])
                return
            settled = Residual(strong | wanted, tuple(links), frozenset(unasked), bool(lazy))
            self._leave(node_id, settled)
            return
        lists |= {name: [value] for name, value in self._literals(node_id, item).items()}
        if unasked:
            more = await self._calls.ask_lazy(item, lists) & unasked
            if more:
                self._asked[node_id] = asked | more
                for source in self._wait(
                    node_id, {link.node_id for name, link in item.links if name in more}
                ):
                    self._need(source)
                return
        await self._execute(node_id, item, lists, links, unasked)

    def _leave(self, node_id: str, residual: Residual) -> None:
        self.unknown[node_id] = residual.sources
        self.residual[node_id] = residual
        self._settled(node_id)

    def _value(self, item: BoundNode, name: str, link: Link) -> list[Any]:
        outputs = self.done[link.node_id]
        if link.output >= len(outputs):
            problem = item.node.problem(
                "missing_output_slot", f"node {link.node_id} gave no such output", name
            )
            raise ProcessorError(str(problem), field=item.node.id, details=[problem.as_dict()])
        return outputs[link.output]

    def _literals(self, node_id: str, item: BoundNode) -> dict[str, Any]:
        found = item.literals()
        overrides = self._world.overrides.get(node_id)
        return found if overrides is None else {**found, **overrides}

    async def _execute(
        self,
        node_id: str,
        item: BoundNode,
        lists: dict[str, list[Any]],
        links: list[tuple[str, Link]],
        unasked: set[str],
    ) -> None:
        at_once = item.is_async and not self._one_by_one
        run: Run = lambda: (self._calls.at_once if at_once else self._calls.one_by_one)(item, lists)  # noqa: E731
        if self._keeper is not None and node_id not in self._expanded.nodes:
            outcomes: Coroutine[Any, Any, list[Outcome]] = self._keeper.outcomes(item, links, unasked, run)
        else:
            outcomes = run()
        if at_once and (self._ready or self._running):
            self._running[asyncio.create_task(in_inference_mode(outcomes))] = node_id
        else:
            self._finish(node_id, await outcomes)

    def _finish(self, node_id: str, outcomes: list[Outcome]) -> None:
        item = self._item(node_id)
        shown = merged_shown([outcome.shown for outcome in outcomes])
        if shown is not None:
            self.shown[node_id] = shown
        if any(outcome.expand is not None for outcome in outcomes):
            self._expand(node_id, item, outcomes)
        else:
            self._put(node_id, item, [outcome.values for outcome in outcomes])

    def _put(self, node_id: str, item: BoundNode, rows: list[Any]) -> None:
        width = min(len(row) for row in rows)
        self.done[node_id] = tuple(merged(rows, item.lists_out, width))
        self._settled(node_id)

    # -- nodes that expand into others -----------------------------------------------------------------

    def _expand(self, node_id: str, item: BoundNode, outcomes: list[Outcome]) -> None:
        roots: list[str] = []
        for outcome in outcomes:
            if outcome.expand is not None:
                roots += self._expanded.add(node_id, item, outcome.expand)
        self._expansions[node_id] = outcomes
        self.slow.setdefault(node_id, EXPANDS)
        sources = {
            value[0]
            for outcome in outcomes
            if outcome.expand is not None
            for value in outcome.values
            if is_link(value)
        }
        for source in [*self._wait(node_id, sources), *roots]:
            self._need(source)

    def _join(self, node_id: str, item: BoundNode) -> None:
        """The outputs of a node whose expansion has run."""
        sources: Sources = frozenset()
        rows: list[Any] = []
        for outcome in self._expansions.pop(node_id):
            if outcome.expand is None:
                rows.append(outcome.values)
                continue
            row: list[Any] = []
            for value in outcome.values:
                if not is_link(value):
                    row.append(value)
                elif value[0] in self.unknown:
                    sources |= self.unknown[value[0]]
                else:
                    row += self._value(item, "result", Link(value[0], value[1]))
            rows.append(row)
        if sources:
            self._leave(node_id, Residual(sources, tuple(item.links)))
        else:
            self._put(node_id, item, rows)

    async def _end(self) -> None:
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.gather(*running, return_exceptions=True)
        self._running.clear()


def _blocks_all(lists: Mapping[str, list[Any]], any_of_list: bool) -> Any:
    """A blocker that keeps every call of a node from being made, whatever its other inputs will be."""
    for values in lists.values():
        found = [value for value in values if is_blocker(value)]
        if found and (any_of_list or len(found) == len(values)):
            return found[0]
    return None

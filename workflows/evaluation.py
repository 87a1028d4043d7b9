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
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from stream.errors import ProcessorError
from workflows.binding import SOURCES, UNCALLED, BoundNode
from workflows.failures import node_failed
from workflows.graph import Graph, Link, Node
from workflows.inference import in_inference_mode
from workflows.problems import invalid_workflow
from workflows.protocol import DynamicPrompt, ExecutionBlocker, is_blocker, is_link, name_expansions
from workflows.registry import NodeRegistry
from workflows.results import Outcome, blocked, checked, each, find_blocker, merged, merged_shown, read

Outputs = tuple[list[Any], ...]
Sources = frozenset[str]

MAX_EXPANDED = 20_000
"""Nodes that one run may expand into."""

EXPANDS = "it expands into other nodes"
LAZY = "what it wants of its lazy inputs depends on the frame"


@dataclass(frozen=True, slots=True)
class Residual:
    """A node that waits for ``sources``: the links that it needs, and the lazy ones that it did not ask
    for."""

    sources: Sources
    links: tuple[tuple[str, Link], ...]
    unasked: frozenset[str] = frozenset()
    is_settled: bool = False
    """Whether it has lazy inputs of which it has said what it wants."""


@dataclass
class World:
    """What an evaluation works on. ``expanded`` keeps the instances of nodes that others expand into."""

    bound: Mapping[str, BoundNode]
    registry: NodeRegistry
    prompt: DynamicPrompt
    widths: Mapping[str, int]
    source_values: Mapping[str, Outputs] = field(default_factory=dict)
    """Outputs of source nodes by class; without one the sources are not known."""
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    expanded: dict[str, BoundNode] = field(default_factory=dict)


Run = Callable[[], Coroutine[Any, Any, list[Outcome]]]


class Keeper(Protocol):
    """Where the results of constant nodes are kept."""

    def outcomes(
        self, item: BoundNode, links: Iterable[tuple[str, Link]], unasked: Iterable[str], run: Run
    ) -> Coroutine[Any, Any, list[Outcome]]:
        """Those of a node: kept ones, or what ``run`` gives."""


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
        self.blocked: dict[str, str] = {}
        self.raw: dict[str, Any] = {}
        """Results of calls that were made already, for nodes that need not be called any more."""
        self._world = world
        self._volatile = volatile
        self._keeper = keeper
        self._extra: dict[str, BoundNode] = {}
        self._asked: dict[str, set[str]] = {}
        self._waiting: dict[str, set[str]] = {}
        self._users: dict[str, set[str]] = {}
        self._ready: deque[str] = deque()
        self._running: dict[asyncio.Future[list[Outcome]], str] = {}
        self._expansions: dict[str, list[Outcome]] = {}
        self._one_by_one = type(world.registry).guard is not NodeRegistry.guard

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

    async def run_rows(self, item: BoundNode, lists: dict[str, list[Any]]) -> list[Outcome]:
        """The calls of a node, one after the other."""
        outcomes = []
        for number, row in enumerate(self._rows(item, lists)):
            outcomes.append(await self._call(item, number, row))
        return outcomes

    # -- what waits for what ---------------------------------------------------------------------------

    def _need(self, node_id: str) -> None:
        pending = [node_id]
        while pending:
            current = pending.pop()
            if current in self.done or current in self.unknown or current in self._waiting:
                continue
            if current not in self._extra and current not in self._world.bound:
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
        found = self._extra.get(node_id)
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
            self._finish(node_id, [self._read(item, self.raw.pop(node_id), {})])
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
                self._put(node_id, item, [blocked(item.outputs, self._quiet(item, blocker))])
                return
            settled = Residual(strong | wanted, tuple(links), frozenset(unasked), bool(lazy))
            self._leave(node_id, settled)
            return
        lists |= {name: [value] for name, value in self._literals(node_id, item).items()}
        if unasked:
            more = await self._ask_lazy(item, lists) & unasked
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

    async def _ask_lazy(self, item: BoundNode, lists: dict[str, list[Any]]) -> set[str]:
        """The names that ``check_lazy_status`` asks for."""
        check = item.lazy_check
        assert check is not None
        names: set[str] = set()
        for row in self._rows(item, lists):
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

    async def _execute(
        self,
        node_id: str,
        item: BoundNode,
        lists: dict[str, list[Any]],
        links: list[tuple[str, Link]],
        unasked: set[str],
    ) -> None:
        at_once = item.is_async and not self._one_by_one
        run: Run = lambda: (self._rows_at_once if at_once else self.run_rows)(item, lists)  # noqa: E731
        if self._keeper is not None and node_id not in self._extra:
            outcomes: Coroutine[Any, Any, list[Outcome]] = self._keeper.outcomes(item, links, unasked, run)
        else:
            outcomes = run()
        if at_once and (self._ready or self._running):
            self._running[asyncio.create_task(in_inference_mode(outcomes))] = node_id
        else:
            self._finish(node_id, await outcomes)

    async def _rows_at_once(self, item: BoundNode, lists: dict[str, list[Any]]) -> list[Outcome]:
        calls = (self._call(item, number, row) for number, row in enumerate(self._rows(item, lists)))
        return list(await asyncio.gather(*calls))

    def _rows(self, item: BoundNode, lists: dict[str, list[Any]]) -> list[dict[str, Any]]:
        if item.definition.input_is_list:
            return [lists]
        try:
            return each(lists)
        except ValueError as error:
            raise node_failed(item.node, error) from error

    async def _call(self, item: BoundNode, number: int, row: dict[str, Any]) -> Outcome:
        blocker = find_blocker(row, item.definition.input_is_list)
        if blocker is not None:
            return Outcome(blocked(item.outputs, self._quiet(item, blocker)))
        name_expansions(item.node.id, number)
        call = item.call
        try:
            with item.guard():
                result = call(**row)
                if asyncio.iscoroutine(result):
                    result = await result
        except (Exception, SystemExit) as error:
            raise node_failed(item.node, error, row) from error
        return self._read(item, result, row)

    def _read(self, item: BoundNode, result: Any, row: Mapping[str, Any]) -> Outcome:
        try:
            outcome = read(result, item.outputs)
            if outcome.expand is None:
                checked(outcome, self._world.widths.get(item.node.id, 0))
        except ValueError as error:
            raise node_failed(item.node, error, row) from error
        return outcome

    def _quiet(self, item: BoundNode, blocker: Any) -> Any:
        """Blocks further nodes without saying so again; what it said is kept in `blocked`."""
        if getattr(blocker, "message", None) is None:
            return blocker
        self.blocked[item.node.id] = str(blocker.message)
        return ExecutionBlocker()

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
                roots += self._add(node_id, item, outcome.expand)
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

    def _add(self, parent: str, item: BoundNode, graph: Mapping[str, Any]) -> list[str]:
        """Take in what a node expands into; the output nodes among it, which run whoever needs them."""
        world, roots = self._world, []
        if len(self._extra) + len(graph) > MAX_EXPANDED:
            error = ValueError(f"it expands into more than {MAX_EXPANDED} nodes")
            raise node_failed(item.node, error)
        for node_id, entry in graph.items():
            if node_id in self._extra or node_id in world.bound or node_id in self.unknown:
                raise node_failed(item.node, ValueError(f"it expands into a node {node_id}, which exists"))
            node = _node(node_id, entry)
            world.prompt.add_ephemeral_node(
                node_id, entry, parent, entry.get("override_display_id") or parent
            )
            if node.class_type in UNCALLED:
                self._stand_in(node)
                continue
            if node.class_type not in world.registry.definitions:
                raise node_failed(
                    item.node, ValueError(f"it expands into the class {node.class_type}, which there is not")
                )
            known = world.expanded.get(node_id)
            if known is not None and known.node.class_type == node.class_type:
                bound = known.under(node, world.prompt)
            else:
                bound = BoundNode(node, world.registry, world.prompt)
            problems = list(world.registry.refusals(Graph.of((node,)), node))
            if problems:
                raise invalid_workflow(problems)
            if len(world.expanded) >= MAX_EXPANDED:
                world.expanded.clear()  # of names that never come again
            self._extra[node_id] = world.expanded[node_id] = bound
            if bound.definition.is_output:
                roots.append(node_id)
        return roots

    def _stand_in(self, node: Node) -> None:
        """Stream nodes within an expansion: a source is the stream's, an editor's preview is nothing."""
        if node.class_type in SOURCES and node.class_type in self._world.source_values:
            self.done[node.id] = self._world.source_values[node.class_type]
        elif node.class_type in SOURCES:
            self.unknown[node.id] = frozenset({"video"})
        else:
            self.done[node.id] = ()

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


def _node(node_id: str, entry: Any) -> Node:
    """A node of an expansion; its values are whatever the node that expands puts there."""
    class_type, given = str(entry.get("class_type")), entry.get("inputs") or {}
    inputs = {name: Link(value[0], value[1]) if is_link(value) else value for name, value in given.items()}
    return Node(node_id, class_type, class_type, MappingProxyType(inputs))

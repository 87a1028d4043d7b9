"""Order and reach in a graph: what feeds what."""

from __future__ import annotations

from collections.abc import Iterable

from workflows.graph import Graph


def upstream(graph: Graph, roots: Iterable[str]) -> set[str]:
    """``roots`` and every node that they depend on. Links to nodes that are not there lead nowhere."""
    return _closure(roots, {node.id: {link.node_id for _, link in node.links()} for node in graph})


def downstream(graph: Graph, roots: Iterable[str]) -> set[str]:
    """``roots`` and every node that depends on them."""
    consumers: dict[str, set[str]] = {node.id: set() for node in graph}
    for node in graph:
        for _, link in node.links():
            if link.node_id in consumers:
                consumers[link.node_id].add(node.id)
    return _closure(roots, consumers)


def _closure(roots: Iterable[str], edges: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    pending = [root for root in roots if root in edges]
    while pending:
        node_id = pending.pop()
        if node_id not in reached:
            reached.add(node_id)
            pending += (target for target in edges[node_id] if target in edges)
    return reached


def execution_order(graph: Graph, among: set[str]) -> list[str]:
    """The nodes of ``among``, each after what feeds it; without those in a cycle or after one."""
    waiting = {
        node.id: {link.node_id for _, link in node.links()} & among for node in graph if node.id in among
    }
    consumers: dict[str, list[str]] = {node_id: [] for node_id in waiting}
    for node_id, feeds in waiting.items():
        for feed in feeds:
            consumers[feed].append(node_id)
    order = [node_id for node_id, feeds in waiting.items() if not feeds]
    for node_id in order:
        for consumer in consumers[node_id]:
            waiting[consumer].discard(node_id)
            if not waiting[consumer]:
                order.append(consumer)
    return order


def cycles(graph: Graph, among: set[str]) -> list[list[str]]:
    """One closed path, in the direction of the data, for each set of nodes that feed each other."""
    remaining = among - set(execution_order(graph, among))
    feeds = {
        node.id: [link.node_id for _, link in node.links() if link.node_id in remaining]
        for node in graph
        if node.id in remaining
    }
    paths = (_cycle_within(component, feeds) for component in _components(feeds))
    return [path for path in paths if path]


def _components(feeds: dict[str, list[str]]) -> list[set[str]]:
    """Strongly connected components (Kosaraju's two passes, without recursion), in the order of the file."""
    consumers: dict[str, list[str]] = {node_id: [] for node_id in feeds}
    for node_id, sources in feeds.items():
        for source in sources:
            consumers[source].append(node_id)
    assigned: set[str] = set()
    components: list[set[str]] = []
    for root in reversed(_postorder(feeds)):
        component: set[str] = set()
        pending = [root]
        while pending:
            node_id = pending.pop()
            if node_id not in assigned:
                assigned.add(node_id)
                component.add(node_id)
                pending += consumers[node_id]
        if component:
            components.append(component)
    position = {node_id: index for index, node_id in enumerate(feeds)}
    return sorted(components, key=lambda component: min(position[node_id] for node_id in component))


def _postorder(edges: dict[str, list[str]]) -> list[str]:
    order: list[str] = []
    seen: set[str] = set()
    for root in edges:
        if root in seen:
            continue
        seen.add(root)
        stack = [(root, iter(edges[root]))]
        while stack:
            node_id, targets = stack[-1]
            target = next((target for target in targets if target not in seen), None)
            if target is None:
                order.append(node_id)
                stack.pop()
            else:
                seen.add(target)
                stack.append((target, iter(edges[target])))
    return order


def _cycle_within(component: set[str], feeds: dict[str, list[str]]) -> list[str]:
    """Walk upstream inside the component until a node comes up again; empty for a node on its own."""
    current = next(node_id for node_id in feeds if node_id in component)
    position: dict[str, int] = {}
    path: list[str] = []
    while current not in position:
        position[current] = len(path)
        path.append(current)
        source = next((source for source in feeds[current] if source in component), None)
        if source is None:
            return []
        current = source
    return path[position[current] :][::-1]

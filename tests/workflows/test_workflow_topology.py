from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workflows.graph import Graph, parse_graph
from workflows.topology import cycles, downstream, execution_order, upstream


def graph_of(edges: set[tuple[int, int]], count: int) -> Graph:
    """Node b has an input from node a for each (a, b)."""
    return parse_graph(
        {
            str(node): {
                "class_type": "N",
                "inputs": {f"from_{a}": [str(a), 0] for a, b in sorted(edges) if b == node},
            }
            for node in range(count)
        }
    )


edge_sets = st.integers(1, 8).flatmap(
    lambda count: st.tuples(
        st.sets(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=20), st.just(count)
    )
)


def reach(edges: set[tuple[int, int]], start: int) -> set[int]:
    """Everything that can be reached over at least one edge."""
    found: set[int] = set()
    grown = {b for a, b in edges if a == start}
    while grown - found:
        found |= grown
        grown = {b for a, b in edges if a in found}
    return found


@given(edge_sets)
def test_every_knot_gives_one_cycle_and_nothing_else_does(case: tuple[set[tuple[int, int]], int]) -> None:
    edges, count = case
    graph = graph_of(edges, count)
    knots = {
        frozenset(b for b in reach(edges, a) if a in reach(edges, b))
        for a in range(count)
        if a in reach(edges, a)
    }
    paths = cycles(graph, set(graph.nodes))
    assert len(paths) == len(knots)
    for path in paths:
        numbers = [int(node) for node in path]
        assert any(set(numbers) <= knot for knot in knots)
        assert all(pair in edges for pair in zip(numbers, numbers[1:] + numbers[:1], strict=True))


@given(edge_sets)
def test_order_puts_feeders_first_and_leaves_out_what_hangs_on_a_cycle(
    case: tuple[set[tuple[int, int]], int],
) -> None:
    edges, count = case
    graph = graph_of(edges, count)
    order = execution_order(graph, set(graph.nodes))
    place = {node: index for index, node in enumerate(order)}
    assert all(place[str(a)] < place[str(b)] for a, b in edges if str(a) in place and str(b) in place)
    knotted = {a for a in range(count) if a in reach(edges, a)}
    stuck = knotted | {b for a in knotted for b in reach(edges, a)}
    assert set(order) == {str(node) for node in range(count)} - {str(node) for node in stuck}


@given(edge_sets)
def test_reach_in_both_directions(case: tuple[set[tuple[int, int]], int]) -> None:
    edges, count = case
    graph = graph_of(edges, count)
    assert downstream(graph, ["0"]) == {"0"} | {str(node) for node in reach(edges, 0)}
    reversed_edges = {(b, a) for a, b in edges}
    assert upstream(graph, ["0"]) == {"0"} | {str(node) for node in reach(reversed_edges, 0)}


def test_a_very_long_chain_needs_no_recursion() -> None:
    count = 3000
    chain = parse_graph(
        {str(n): {"class_type": "N", "inputs": {"a": [str((n - 1) % count), 0]}} for n in range(count)}
    )
    (path,) = cycles(chain, set(chain.nodes))
    assert len(path) == count

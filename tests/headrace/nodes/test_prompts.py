"""Prompts are read as ComfyUI reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.nodes.prompts import Marks, Piece, chunks_of, pieces_of


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (cat) b", [("a ", 1.0), ("cat", 1.1), (" b", 1.0)]),
        ("((cat))", [("cat", 1.1 * 1.1)]),
        ("(cat:1.3)", [("cat", 1.3)]),
        ("(a (b:2):0.5)", [("a ", 0.5), ("b", 2.0)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(:2)", [(":2", 1.1)]),
        ("(a:inf)", [("a:inf", 1.1)]),
        (r"\(a\) (b)", [("(a) ", 1.0), ("b", 1.1)]),
        ("a (b", [("a ", 1.0), ("(b", 1.0)]),
        ("a) b", [("a) b", 1.0)]),
        ("", []),
    ],
)
def test_weights(prompt: str, pieces: list[tuple[str, float]]) -> None:
    found = pieces_of(prompt)
    assert [piece.text for piece in found] == [text for text, _ in pieces]
    assert [piece.weight for piece in found] == pytest.approx([weight for _, weight in pieces])


def test_embeddings_begin_a_piece_of_their_own() -> None:
    assert pieces_of("a embedding:one, b (embedding:two:1.2)") == [
        Piece("a", 1.0),
        Piece("one, b ", 1.0, is_embedding=True),
        Piece("two", 1.2, is_embedding=True),
    ]


@given(st.text(alphabet="ab ():.1\\\n", max_size=60))
def test_nothing_is_lost_without_numbers_and_nothing_breaks(prompt: str) -> None:
    for piece in pieces_of(prompt):
        assert piece.text
        assert "\0" not in piece.text


def test_any_depth_is_read() -> None:
    (piece,) = pieces_of("(" * 3000 + "x" + ")" * 3000)
    assert piece.text == "x"


@given(st.lists(st.integers(1, 100), max_size=12))
def test_chunks_have_all_tokens_in_order_and_are_full(sizes: list[int]) -> None:
    groups, number = [], 0
    for size in sizes:
        groups.append([(number + n, 1.0) for n in range(size)])
        number += size
    chunks = chunks_of(groups, Marks(-1, -2, -3, 77))
    assert all(len(chunk) == 77 and chunk[0][0] == -1 for chunk in chunks)
    inside = [token for chunk in chunks for token, _ in chunk if token >= 0]
    assert inside == list(range(number))
    places = [{token: n for n, chunk in enumerate(chunks) for token, _ in chunk}] if chunks else []
    for group in groups:
        if len(group) < 8:
            assert len({places[0][token] for token, _ in group}) == 1

"""JSON of the control, events and data channels."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import InvalidInput, TooLarge
from stream.trickle.documents import MAX_LINE, batch_lines, decode_control, encode, encode_item

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=20), st.integers(80, 400))
def test_batches_hold_every_item_in_order_and_no_line_is_too_long(items: list[object], limit: int) -> None:
    fitting = []
    for item in items:
        try:
            fitting.append((item, encode_item(item, limit)))
        except TooLarge:
            assert len(json.dumps(item, separators=(",", ":"))) + 3 > limit
    lines = batch_lines([data for _, data in fitting], limit)
    assert all(len(line) <= limit and line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    batches = [json.loads(line) for line in lines]
    assert all(isinstance(batch, list) and batch for batch in batches)
    assert [item for batch in batches for item in batch] == [item for item, _ in fitting]


def test_an_item_may_fill_a_line_and_no_more() -> None:
    longest = "x" * (MAX_LINE - 5)
    (line,) = batch_lines([encode_item(longest)])
    assert len(line) == MAX_LINE == 65_535
    with pytest.raises(TooLarge, match="limit"):
        encode_item(longest + "x")


def test_lines_are_filled_before_another_begins() -> None:
    lines = batch_lines([b"12345678"] * 10, max_line=21)
    assert lines == [b"[12345678,12345678]\n"] * 5


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1, 2}, b"bytes", {(1, 2): 3}])
def test_what_is_no_json_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput, match="JSON"):
        encode(value, 1000)


def test_what_contains_itself_is_refused() -> None:
    value: list[object] = []
    value.append(value)
    with pytest.raises(InvalidInput):
        encode(value, 1000)


@given(st.dictionaries(st.text(), JSON, max_size=5).filter(lambda d: d != {"keep": "alive"}))
def test_control_messages_are_read_as_they_were_written(message: dict[str, object]) -> None:
    assert decode_control(json.dumps(message).encode()) == message


def test_keepalives_are_nothing() -> None:
    assert decode_control(b'{"keep":"alive"}') is None
    assert decode_control(b'{"keep":"alive","seed":1}') == {"keep": "alive", "seed": 1}


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[1]", b'"x"', b"1", b"null", b'{"a":NaN}', b"\xff\xfe{}", b'{"a":1}{}']
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="control message"):
        decode_control(data)


def test_depth_without_end_is_refused() -> None:
    with pytest.raises(InvalidInput, match="control message"):
        decode_control(b'{"a":' * 100_000)


@given(st.binary(max_size=60))
def test_no_bytes_upset_the_reader(data: bytes) -> None:
    try:
        message = decode_control(data)
    except InvalidInput:
        return
    assert message is None or isinstance(message, dict)

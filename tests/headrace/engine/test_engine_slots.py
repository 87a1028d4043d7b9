from __future__ import annotations

import gc
import os
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine import slots
from headrace.engine.link import LinkError, MalformedMessage, Message, SharedBlock
from headrace.engine.slots import SlotPool, SlotsTaken, SlotTable
from stream.frames import AudioFrame, Picture, plane_shapes
from stream.samples import checked_samples

pytestmark = pytest.mark.descriptors

sides = st.integers(1, 70)
formats = st.sampled_from(["rgb24", "yuv420p"])
JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers())


def picture(format_: Any, width: int, height: int, padding: int = 0, seed: int = 0) -> Picture:
    noise = np.random.default_rng(seed)
    planes = [
        noise.integers(0, 256, (rows, row + padding), np.uint8)[:, :row]
        for rows, row in plane_shapes(format_, width, height)
    ]
    return Picture(format_, width, height, planes, "bt709", True)


def same(one: Picture, other: Picture) -> bool:
    assert (one.format, one.width, one.height) == (other.format, other.width, other.height)
    return all(np.array_equal(a, b) for a, b in zip(one.planes, other.planes, strict=True))


@given(format_=formats, width=sides, height=sides, padding=st.integers(0, 40))
def test_a_picture_comes_out_as_it_went_in(format_: Any, width: int, height: int, padding: int) -> None:
    before = picture(format_, width, height, padding)
    memory = np.zeros(slots.picture_bytes(format_, width, height), np.uint8)
    after = slots.get_picture(memory, slots.put_picture(memory, before))
    assert same(before, after)
    assert (after.matrix, after.full_range) == ("bt709", True)
    own = slots.copy_picture(after)
    memory[:] = 0
    assert same(before, own)


def test_rows_with_gaps_are_read_by_their_strides() -> None:
    before = picture("yuv420p", 6, 4)
    memory = np.zeros(4 * 16 + 2 * 2 * 8, np.uint8)
    memory[:64].reshape(4, 16)[:, :6] = before.planes[0]
    memory[64:80].reshape(2, 8)[:, :3] = before.planes[1]
    memory[80:].reshape(2, 8)[:, :3] = before.planes[2]
    header = slots.picture_header("yuv420p", 6, 4, "bt601", False) | {"strides": [16, 8, 8]}
    assert same(before, slots.get_picture(memory, header))


@given(
    changes=st.dictionaries(
        st.sampled_from(["format", "width", "height", "matrix", "strides", "full_range"]), JSON, min_size=1
    )
)
def test_a_wrong_header_is_a_typed_error_and_never_reads_beyond_its_memory(changes: dict[str, Any]) -> None:
    memory = np.zeros(6 * 4 * 3, np.uint8)
    header = slots.picture_header("rgb24", 6, 4, "bt601", False) | changes
    try:
        found = slots.get_picture(memory, header)
    except MalformedMessage:
        return
    start = memory.__array_interface__["data"][0]
    for plane in found.planes:
        first = plane.__array_interface__["data"][0]
        last = first + (plane.shape[0] - 1) * plane.strides[0] + plane.shape[1]
        assert start <= first
        assert last <= start + memory.size


@pytest.mark.parametrize("header", [None, [], "x", {}, {"format": ["rgb24"], "matrix": "bt601"}])
def test_what_is_no_header_is_a_typed_error(header: Any) -> None:
    memory = np.zeros(100, np.uint8)
    with pytest.raises(MalformedMessage):
        slots.get_picture(memory, header)
    with pytest.raises(MalformedMessage):
        slots.get_audio(memory, header, 0, Fraction(1))


SOUNDS = {
    "fltp": np.float32,
    "s16p": np.int16,
    "flt": np.float32,
    "s16": np.int16,
    "s32": np.int32,
    "dblp": np.float64,
    "u8": np.uint8,
}


@given(format_=st.sampled_from(sorted(SOUNDS)), count=st.integers(0, 300))
def test_samples_come_out_as_they_went_in(format_: str, count: int) -> None:
    shape = (2, count) if format_.endswith("p") else (1, 2 * count)
    values = np.random.default_rng(count).integers(0, 100, shape).astype(SOUNDS[format_])
    before = AudioFrame(values, 7, Fraction(1, 48_000), rate=48_000, format=format_, layout="stereo")
    laid = checked_samples(before.samples, format_, before.layout, before.rate)
    memory = np.zeros(laid.nbytes + 5, np.uint8)
    memory[: laid.nbytes] = laid.reshape(-1).view(np.uint8)
    after = slots.get_audio(memory, slots.audio_header(before, laid), 7, Fraction(1, 48_000))
    memory[:] = 0
    assert np.array_equal(after.samples, values)
    assert after.samples.dtype == values.dtype
    assert (after.rate, after.layout, after.format) == (48_000, "stereo", format_)


@given(st.integers(-(2**63) + 1, 2**63 - 1), st.integers(1, 2**62), st.integers(1, 2**62))
def test_times_cross_exactly(pts: int, num: int, den: int) -> None:
    assert slots.get_time(slots.time_header(pts, Fraction(num, den))) == (pts, Fraction(num, den))


@pytest.mark.parametrize(
    "header", [{}, {"pts": 1.5, "num": 1, "den": 1}, {"pts": 1, "num": 1, "den": 0}, None]
)
def test_what_is_no_time_is_a_typed_error(header: Any) -> None:
    with pytest.raises(MalformedMessage):
        slots.get_time(header)


# -- pools and tables ------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 3_000_000) | st.none(), max_size=25))
def test_a_pool_never_gives_out_what_is_in_use_and_stays_within_its_bound(sizes: list[int | None]) -> None:
    pool = SlotPool(3, "test")
    busy: list[slots.Slot] = []
    try:
        for size in sizes:
            if size is None:
                if busy:
                    pool.free(busy.pop(0).id)
                continue
            if len(busy) == 3:
                with pytest.raises(SlotsTaken):
                    pool.take(size)
                continue
            slot = pool.take(size)
            assert slot.block.size >= size
            assert slot.id not in {other.id for other in busy}
            assert 0 <= slot.id < 3
            busy.append(slot)
    finally:
        pool.close()


def announced(slot: slots.Slot) -> Message:
    part, fds = slot.announce()
    message = Message({"slot": part}, [os.dup(fd) for fd in fds])
    slot.sent()
    return message


def test_a_descriptor_is_sent_once_and_again_after_a_change_of_size() -> None:
    pool, table = SlotPool(2, "test"), SlotTable(2)
    first = pool.take(5000)
    first.array()[0] = 1
    message = announced(first)
    assert message.waiting_fds == 1
    memory = table.array(message.body["slot"], message)
    assert memory[0] == 1
    pool.free(first.id)

    again = pool.take(4000)
    assert again is first
    message = announced(again)
    assert message.waiting_fds == 0
    again.array()[0] = 2
    assert table.array(message.body["slot"], message)[0] == 2
    pool.free(again.id)

    larger = pool.take(9_000_000)
    assert larger.id == first.id
    larger.array()[0] = 3
    message = announced(larger)
    assert message.waiting_fds == 1
    assert table.array(message.body["slot"], message)[0] == 3
    assert memory[0] == 2, "the view of the old memory must stay readable"
    del memory
    pool.free(larger.id)
    small = pool.take(10)
    assert small.block.size < 9_000_000, "much too large a block must not be kept for small frames"
    pool.close()
    table.close()


def test_a_slot_that_was_never_sent_is_a_typed_error() -> None:
    table = SlotTable(2)
    for part in ({"id": 0, "size": 10}, {"id": 2, "size": 10}, {"id": -1}, {"id": True}, {}, None):
        with pytest.raises(MalformedMessage):
            table.array(part, Message({}))
    with pytest.raises(MalformedMessage, match="descriptor"):
        table.array({"id": 0, "size": 10, "new": 1}, Message({}))


def test_after_its_end_a_pool_gives_nothing_and_a_table_finds_nothing() -> None:
    pool, table = SlotPool(2, "test"), SlotTable(2)
    message = announced(pool.take(10))
    table.array(message.body["slot"], message)
    pool.close()
    table.close()
    with pytest.raises(LinkError):
        pool.take(10)
    with pytest.raises(MalformedMessage):
        table.array(message.body["slot"], message)


def test_a_frame_over_the_limit_is_refused_by_name() -> None:
    pool = SlotPool(1, "test")
    with pytest.raises(LinkError, match="the limit is"):
        pool.take(slots.MAX_BYTES + 1)


def mapped() -> int:
    with open("/proc/self/maps") as maps:
        return sum("memfd:test" in line for line in maps)


def test_nothing_stays_mapped() -> None:
    before = mapped()
    pool, table = SlotPool(4, "test"), SlotTable(4)
    views = []
    for size in (10, 100_000, 5_000_000, 10, 20_000_000):
        slot = pool.take(size)
        message = announced(slot)
        views.append(table.array(message.body["slot"], message))
        pool.free(slot.id)
    assert mapped() > before
    pool.close()
    table.close()
    views.clear()
    gc.collect()
    assert mapped() == before


def test_a_block_that_cannot_be_had_leaves_the_pool_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SlotPool(1, "test")

    def fail(size: int, name: str) -> SharedBlock:
        raise LinkError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(SharedBlock, "create", fail)
        with pytest.raises(LinkError, match="no memory"):
            pool.take(10)
    assert pool.take(10).id == 0
    pool.close()

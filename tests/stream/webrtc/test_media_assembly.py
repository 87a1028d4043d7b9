"""Packets in any order to complete pictures: order, loss, repetition, and how long anything is waited for."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from stream.webrtc.assembly import CAPACITY, Assembler, Packet, Unit
from stream.webrtc.payload import packetise_h264, packetise_vp8

MS = 1_000_000
PATIENCE = 100 * MS
CODE = b"\0\0\0\1"


def picture(index: int, size: int) -> bytes:
    kind = 0x65 if index == 0 else 0x41
    return CODE + bytes((kind,)) + index.to_bytes(2, "big") + b"\x55" * size


def stream(sizes: list[int], first: int = 0, start: int = 1000) -> list[Packet]:
    """Pictures of those sizes as packets, 10 ms apart, received as they were sent."""
    packets: list[Packet] = []
    for index, size in enumerate(sizes):
        payloads = packetise_h264(picture(index, size))
        for position, payload in enumerate(payloads):
            sequence = (first + len(packets)) & 0xFFFF
            timestamp = (start + index * 3000) & 0xFFFF_FFFF
            packets.append(
                Packet(sequence, timestamp, position == len(payloads) - 1, payload, index * 10 * MS)
            )
    return packets


def fed(assembler: Assembler, packets: list[Packet]) -> list[Unit]:
    return [unit for packet in packets for unit in assembler.add(packet)]


sizes = st.lists(st.integers(5, 4000), min_size=2, max_size=15)


@given(sizes, st.integers(0, 65535), st.integers(0, 2**32 - 1))
def test_a_picture_is_complete_with_its_last_packet(sizes: list[int], first: int, start: int) -> None:
    assembler = Assembler("h264", patience=PATIENCE)
    for packet in stream(sizes, first, start):
        units = assembler.add(packet)
        assert len(units) == packet.marker
        assert all(unit.timestamp == packet.timestamp for unit in units)
    assert assembler.counts.units == len(sizes)
    assert assembler.waiting_since is None


@given(sizes, st.integers(0, 65535), st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(sizes: list[int], first: int, rng: random.Random) -> None:
    packets = stream(sizes, first)
    shuffled = packets[:1]
    rest = packets[1:] + rng.sample(packets, len(packets) // 2)
    rest.sort(key=lambda packet: packets.index(packet) + rng.uniform(0, 12))
    shuffled += rest
    assembler = Assembler("h264", patience=PATIENCE)
    units = fed(assembler, shuffled)
    assert [unit.data for unit in units] == [picture(index, size) for index, size in enumerate(sizes)]
    assert not any(unit.lost for unit in units)
    assert assembler.counts.lost == 0
    assert assembler.counts.duplicates == len(packets) // 2


@given(sizes, st.integers(0, 65535), st.data())
def test_what_is_lost_costs_its_picture_alone_and_is_told(
    sizes: list[int], first: int, data: st.DataObject
) -> None:
    packets = stream(sizes, first)
    gone = data.draw(st.sets(st.integers(1, len(packets) - 1), min_size=1, max_size=8))
    assembler = Assembler("h264", patience=PATIENCE)
    units = fed(assembler, [packet for index, packet in enumerate(packets) if index not in gone])
    units += assembler.expire(packets[-1].received + PATIENCE)
    whole = {
        packet.timestamp
        for packet in packets
        if not any(packets[index].timestamp == packet.timestamp for index in gone)
    }
    # Nothing tells a picture whose first packet is gone from a whole one, where slices are single packets.
    begun = {packets[index].timestamp for index in gone}
    assert {unit.timestamp for unit in units} - begun <= whole
    assert whole <= {unit.timestamp for unit in units}
    by_time = sorted(units, key=lambda unit: unit.timestamp)
    for packet_index in gone:
        later = [unit for unit in by_time if unit.timestamp > packets[packet_index].timestamp]
        if later:
            earlier = [unit for unit in by_time if unit.timestamp <= packets[packet_index].timestamp]
            assert later[0].lost or any(unit.lost for unit in earlier)
    assert [unit.timestamp for unit in units] == sorted(unit.timestamp for unit in units)


def test_a_lost_packet_is_waited_for_as_long_as_the_patience_and_no_longer() -> None:
    packets = stream([100, 3000, 100, 100])
    assembler = Assembler("h264", patience=PATIENCE)
    units = fed(assembler, [packet for index, packet in enumerate(packets) if index != 2])
    assert [unit.timestamp for unit in units] == [packets[0].timestamp]
    since = assembler.waiting_since
    assert since == packets[3].received
    assert assembler.expire(since + PATIENCE - 1) == []
    held_back = assembler.expire(since + PATIENCE)
    assert [unit.lost for unit in held_back] == [True, False]
    assert assembler.counts.lost == 1
    assert assembler.waiting_since is None


def test_a_packet_that_is_sent_again_makes_the_picture_whole() -> None:
    packets = stream([100, 3000, 100])
    assembler = Assembler("h264", patience=PATIENCE)
    missing = packets[2]
    fed(assembler, [packet for packet in packets if packet is not missing])
    assert assembler.wanted(0) == [missing.sequence]
    units = assembler.add(missing)
    assert [unit.lost for unit in units] == [False, False]
    assert (assembler.counts.recovered, assembler.counts.lost) == (1, 0)


def test_a_missing_packet_is_asked_for_again_after_a_round_trip_and_not_for_ever() -> None:
    packets = stream([100, 100, 100])
    assembler = Assembler("h264", patience=10**12)
    fed(assembler, [packets[0], packets[2]])
    asked = [now for now in range(2000) if assembler.wanted(now * MS, 80 * MS)]
    assert asked[:3] == [0, 100, 200]
    assert len(asked) == 10


def test_numbers_are_asked_for_in_ascending_order_across_the_wrap() -> None:
    packets = stream([100] * 6, first=65533)
    assembler = Assembler("h264", patience=PATIENCE)
    fed(assembler, [packets[0], packets[1], packets[5]])
    assert assembler.wanted(0) == [0, 1, 65535]


def test_a_sender_without_marker_bits_is_read_a_picture_late() -> None:
    packets = [Packet(p.sequence, p.timestamp, False, p.payload, 0) for p in stream([100, 3000, 100])]
    assembler = Assembler("h264", patience=PATIENCE)
    assert [unit.data for unit in fed(assembler, packets)] == [picture(0, 100), picture(1, 3000)]


def test_padding_takes_up_a_number_and_nothing_else() -> None:
    packets = stream([100, 100])
    padding = Packet(1, packets[0].timestamp, False, b"", 0)
    last = Packet(2, packets[1].timestamp, True, packets[1].payload, 0)
    assembler = Assembler("h264", patience=PATIENCE)
    assert len(fed(assembler, [packets[0], padding, last])) == 2
    assert assembler.counts.malformed == 0


def test_a_malformed_payload_costs_its_picture() -> None:
    packets = stream([100, 100, 100])
    bad = Packet(1, packets[1].timestamp, True, b"\x78\x00\xff", 0)
    assembler = Assembler("h264", patience=PATIENCE)
    units = fed(assembler, [packets[0], bad, packets[2]])
    assert [unit.lost for unit in units] == [False, True]
    assert assembler.counts.malformed == 1


def test_a_jump_of_the_numbers_begins_anew() -> None:
    packets = stream([100, 100]) + stream([100, 100], first=CAPACITY + 5000, start=900_000)
    assembler = Assembler("h264", patience=PATIENCE)
    units = fed(assembler, packets)
    assert [unit.lost for unit in units] == [False, False, True, False]
    assert assembler.counts.jumps == 1


def test_a_long_gap_is_not_waited_for() -> None:
    packets = stream([100] * 400)
    assembler = Assembler("h264", patience=PATIENCE)
    fed(assembler, [packets[0], packets[390]])
    assert assembler.wanted(0) == []
    assert [unit.lost for unit in assembler.expire(packets[390].received)] == [True]


def test_a_stream_that_begins_in_the_middle_of_a_picture_begins_with_the_next() -> None:
    packets = stream([5000, 100])[2:]
    assembler = Assembler("h264", patience=PATIENCE)
    units = fed(assembler, packets)
    assert [unit.data for unit in units] == [picture(1, 100)]
    assert units[0].lost


def test_vp8_tells_where_a_frame_begins() -> None:
    def packet(sequence: int, timestamp: int, marker: bool, payload: bytes) -> Packet:
        return Packet(sequence, timestamp, marker, payload, 0)

    whole = packetise_vp8(b"\x00" + b"v" * 3000)
    packets = [packet(i, 0, i == len(whole) - 1, p) for i, p in enumerate(whole)]
    count = len(packets)
    packets += [packet(i + count, 3000, p.marker, p.payload) for i, p in enumerate(packets)]
    assembler = Assembler("vp8", patience=PATIENCE)
    units = fed(assembler, [p for i, p in enumerate(packets) if i != count])
    units += assembler.expire(10 * PATIENCE)
    assert [(unit.timestamp, unit.key) for unit in units] == [(0, True)]


def test_sound_passes_packet_by_packet() -> None:
    assembler = Assembler("opus", patience=PATIENCE)
    packets = [Packet(i, i * 960, False, bytes((252, i)), 0) for i in range(6)]
    units = fed(assembler, [packets[0], packets[1], packets[3], packets[2], packets[5]])
    assert [unit.timestamp for unit in units] == [0, 960, 1920, 2880]
    assert [unit.lost for unit in assembler.expire(PATIENCE)] == [True]


@given(
    st.lists(
        st.builds(
            Packet,
            st.integers(0, 65535),
            st.integers(0, 2**32 - 1),
            st.booleans(),
            st.binary(max_size=40),
            st.integers(0, 10**10),
        ),
        max_size=80,
    ),
    st.sampled_from(["h264", "vp8", "opus"]),
)
def test_whatever_comes_nothing_is_raised_and_little_is_held(packets: list[Packet], codec: str) -> None:
    assembler = Assembler(codec, patience=PATIENCE)  # type: ignore[arg-type]
    for packet in packets:
        assembler.add(packet)
        assembler.wanted(packet.received)
        assembler.expire(packet.received)
        assert len(assembler._held) < CAPACITY
    assembler.expire(10**12)
    assert assembler.waiting_since is None
    assert not assembler._held

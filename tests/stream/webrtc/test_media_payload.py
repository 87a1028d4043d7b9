"""RTP payloads: access units in pieces and back, and what other senders put on the wire."""

from __future__ import annotations

import pytest
from aiortc.codecs.h264 import H264Encoder, h264_depayload
from aiortc.codecs.vpx import Vp8Encoder
from hypothesis import given
from hypothesis import strategies as st

from stream.webrtc.payload import (
    PAYLOAD_MAX,
    Malformed,
    begins_h264,
    begins_vp8,
    depacketise_h264,
    depacketise_vp8,
    is_key_h264,
    is_key_vp8,
    nal_units,
    packetise_h264,
    packetise_vp8,
    with_parameter_sets,
)
from tests.stream.codec_media import encoded_video

CODE = b"\0\0\0\1"


def nal(kind: int, size: int, reference: int = 3) -> bytes:
    """A NAL unit that holds no start code and no trailing zero."""
    return bytes((reference << 5 | kind,)) + bytes(1 + (index * 7) % 255 for index in range(size - 1))


units = st.lists(
    st.builds(nal, st.integers(1, 8), st.integers(2, 5000), st.integers(0, 3)), min_size=1, max_size=12
)


@given(units, st.integers(40, 1400))
def test_a_picture_comes_out_of_its_payloads_as_it_went_in(pieces: list[bytes], limit: int) -> None:
    payloads = packetise_h264(b"".join(CODE + piece for piece in pieces), limit)
    assert all(0 < len(payload) <= limit for payload in payloads)
    assert depacketise_h264(payloads) == b"".join(CODE + piece for piece in pieces)
    assert begins_h264(payloads[0])


@given(units)
def test_a_stock_receiver_reads_our_payloads(pieces: list[bytes]) -> None:
    data = b"".join(CODE + piece for piece in pieces)
    assert b"".join(map(h264_depayload, packetise_h264(data))) == data


@given(units)
def test_we_read_what_a_stock_sender_makes(pieces: list[bytes]) -> None:
    data = b"".join(CODE + piece for piece in pieces)
    assert depacketise_h264(H264Encoder._packetize(iter(pieces))) == data


def test_real_pictures_pass_in_three_and_four_byte_start_codes() -> None:
    for coded in encoded_video(3, 640, 384):
        data = coded.data.replace(b"\0\0\0\1", b"\0\0\1")
        back = depacketise_h264(packetise_h264(data))
        assert list(nal_units(back)) == [u for u in nal_units(coded.data) if u[0] & 0x1F not in (9, 12)]
        assert is_key_h264(back) == coded.key


def test_parameter_sets_and_a_small_slice_share_one_packet() -> None:
    data = b"".join(CODE + nal(kind, 20) for kind in (7, 8, 5))
    (payload,) = packetise_h264(data)
    assert payload[0] & 0x1F == 24


def test_delimiters_and_filler_stay_at_home() -> None:
    data = CODE + nal(9, 2) + CODE + nal(12, 400) + CODE + nal(1, 50)
    assert packetise_h264(data) == [nal(1, 50)]


def test_pieces_of_a_large_unit_are_of_about_one_size() -> None:
    sizes = [len(payload) for payload in packetise_h264(CODE + nal(5, 3 * PAYLOAD_MAX + 5))]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "payloads",
    [
        [b"\x7c\x85abc"],
        [b"\x7c\x05abc"],
        [b"\x7c\x85abc", b"\x7c\x41def"],
        [b"\x7c\x85abc", b"\x65xyz"],
        [b"\x7c\x85abc", b"\x7c\x85abc"],
        [b"\x7c\x85"],
        [b"\x7c\x9cabc"],
        [b"\x78\x00\x05abc"],
        [b"\x78\x00\x00"],
        [b"\x78"],
        [b"\x79\x00\x00\x00\x01a"],
        [b"\x7d\x85\x00\x00abc"],
        [b"\x00abc"],
        [b"\xe5abc"],
    ],
)
def test_what_the_format_forbids_is_refused(payloads: list[bytes]) -> None:
    with pytest.raises(Malformed):
        depacketise_h264(payloads)


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=6))
def test_garbage_is_refused_or_read_and_never_anything_else(payloads: list[bytes]) -> None:
    for join in (depacketise_h264, depacketise_vp8):
        try:
            data = join(payloads)
        except Malformed:
            continue
        is_key_h264(data)
        is_key_vp8(data)
    for payload in payloads:
        begins_h264(payload)
        begins_vp8(payload)


@given(st.binary(min_size=1, max_size=9000), st.integers(20, 1400))
def test_a_vp8_frame_comes_out_as_it_went_in(data: bytes, limit: int) -> None:
    payloads = packetise_vp8(data, limit)
    assert all(len(payload) <= limit for payload in payloads)
    assert depacketise_vp8(payloads) == data
    assert [begins_vp8(payload) for payload in payloads] == [True] + [False] * (len(payloads) - 1)


def test_vp8_descriptors_with_picture_ids_are_read() -> None:
    for frame in encoded_video(3, 320, 192, codec="libvpx", options={"deadline": "realtime"}):
        payloads = Vp8Encoder._packetize(frame.data, 4711)
        assert begins_vp8(payloads[0])
        assert depacketise_vp8(payloads) == frame.data
        assert is_key_vp8(frame.data) == frame.key


@pytest.mark.parametrize(
    ("head", "size"),
    [(b"\x90\x80\x11", 3), (b"\x90\x80\x91\x11", 4), (b"\x90\xf0\x91\x11\x05\x20", 6), (b"\x90\x20\x20", 3)],
)
def test_every_shape_of_a_vp8_descriptor_is_as_long_as_it_says(head: bytes, size: int) -> None:
    assert len(head) == size
    assert depacketise_vp8([head + b"frame"]) == b"frame"
    with pytest.raises(Malformed):
        depacketise_vp8([head])


def test_a_key_picture_without_parameter_sets_gets_those_of_the_offer() -> None:
    sets = CODE + nal(7, 10) + CODE + nal(8, 4)
    assert with_parameter_sets(CODE + nal(5, 30), sets) == sets + CODE + nal(5, 30)
    assert with_parameter_sets(CODE + nal(1, 30), sets) == CODE + nal(1, 30)
    whole = sets + CODE + nal(5, 30)
    assert with_parameter_sets(whole, sets) == whole

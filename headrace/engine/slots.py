"""Pictures and samples in shared memory: how they are laid down, found again and checked.

The side that sends owns a `SlotPool`; the descriptor of a slot goes over the link once, with the first
message that uses it. The side that receives keeps what it was sent in a `SlotTable`. A header (JSON) says
which slot holds the bytes and how to read them; nothing in a header is believed unchecked.

Standard library and numpy only: the engine's host loads this module in foreign interpreters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from headrace.engine.link import LinkError, MalformedMessage, Message, SharedBlock
from stream.frames import AudioFrame, Matrix, Picture, PixelFormat, Plane, plane_shapes
from stream.results import MAX_RESULTS
from stream.samples import MAX_RATE, SAMPLE_TYPES

INPUT_SLOTS = 4
"""Frames of one kind that the worker may have under way in a session."""
OUTPUT_SLOTS = 2 * MAX_RESULTS
"""The results of two calls: one that the worker copies out and one that is being made."""
MAX_SIDE = 16_384
MAX_BYTES = 512 * 1024 * 1024
MAX_TIME = 2**63 - 1

_PAGE = 4096
_SMALL = 1024 * 1024
_FORMATS: tuple[str, ...] = get_args(PixelFormat)
_MATRICES: tuple[str, ...] = get_args(Matrix)

Header = Mapping[str, Any]


class SlotsTaken(LinkError):
    """Every slot holds bytes that the other side has not finished with."""


@dataclass(slots=True)
class Slot:
    """A shared block of the sending side. ``busy`` until the other side has answered for it."""

    id: int
    block: SharedBlock
    busy: bool = False
    announced: bool = False

    def array(self) -> Plane:
        """The whole memory as writable uint8."""
        return np.frombuffer(self.block.buffer, np.uint8)

    def announce(self) -> tuple[dict[str, int], tuple[int, ...]]:
        """The slot as a header part, and the descriptor to send with it where it was not sent yet.

        After sending, call `sent`.
        """
        part = {"id": self.id, "size": self.block.size}
        if self.announced:
            return part, ()
        return part | {"new": 1}, (self.block.fd,)

    def sent(self) -> None:
        self.announced = True
        self.block.forget_fd()


class SlotPool:
    """At most ``limit`` slots, made as they are needed and made anew where the size no longer fits."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._slots: dict[int, Slot] = {}
        self._closed = False

    def take(self, size: int) -> Slot:
        """A free slot of at least ``size`` bytes, marked busy.

        Raises `SlotsTaken` when there is none, `LinkError` when the size is over `MAX_BYTES`, memory has run
        out or the pool is closed.
        """
        if self._closed:
            raise LinkError("the session's shared memory is gone")
        if size > MAX_BYTES:
            raise LinkError(f"{size} bytes for one frame; the limit is {MAX_BYTES}")
        free = [slot for slot in self._slots.values() if not slot.busy]
        slot = next((slot for slot in free if _fits(slot.block.size, size)), None)
        if slot is None:
            if free:
                number = free[0].id
                self._slots.pop(number).block.close()
            elif len(self._slots) < self._limit:
                number = len(self._slots)
            else:
                raise SlotsTaken(f"all {self._limit} frames of shared memory are in use on the other side")
            pages = max(1, -(-size // _PAGE))
            slot = self._slots[number] = Slot(number, SharedBlock.create(pages * _PAGE, self._name))
        slot.busy = True
        return slot

    def free(self, number: object) -> None:
        """The other side has finished with the slot; an unknown number is ignored."""
        if isinstance(number, int) and number in self._slots:
            self._slots[number].busy = False

    def close(self) -> None:
        self._closed = True
        slots, self._slots = self._slots, {}
        for slot in slots.values():
            slot.block.close()


class SlotTable:
    """The receiving side of a `SlotPool` of at most ``limit`` slots."""

    def __init__(self, limit: int, *, writable: bool = False) -> None:
        self._limit = limit
        self._writable = writable
        self._blocks: dict[int, SharedBlock] = {}
        self._closed = False

    def array(self, part: object, message: Message) -> Plane:
        """The memory that a header part names, as uint8; takes the descriptor of a new slot from ``message``.

        Raises `MalformedMessage` for a slot that was never sent or is not what it should be.
        """
        if self._closed:
            raise MalformedMessage("the session's shared memory is gone")
        number = _integer(part, "id", 0, self._limit - 1)
        assert isinstance(part, Mapping)
        if part.get("new"):
            size = _integer(part, "size", 1, MAX_BYTES + _PAGE)
            block = SharedBlock.attach(message.take_fd(), size, writable=self._writable)
            old = self._blocks.pop(number, None)
            if old is not None:
                old.close()
            self._blocks[number] = block
        elif number not in self._blocks:
            raise MalformedMessage(f"slot {number} was never sent")
        return np.frombuffer(self._blocks[number].buffer, np.uint8)

    def close(self) -> None:
        self._closed = True
        blocks, self._blocks = self._blocks, {}
        for block in blocks.values():
            block.close()


def _fits(capacity: int, size: int) -> bool:
    return size <= capacity <= max(4 * size, _SMALL)


def picture_bytes(format: PixelFormat, width: int, height: int) -> int:  # noqa: A002
    """Bytes of a picture whose rows follow each other without gaps."""
    return sum(rows * row for rows, row in plane_shapes(format, width, height))


def picture_header(
    format: PixelFormat,  # noqa: A002
    width: int,
    height: int,
    matrix: Matrix,
    full_range: bool,
) -> dict[str, Any]:
    """How to read a picture that was laid down without gaps."""
    return {
        "format": format,
        "width": width,
        "height": height,
        "matrix": matrix,
        "full_range": full_range,
        "strides": [row for _, row in plane_shapes(format, width, height)],
    }


def put_picture(memory: Plane, picture: Picture) -> dict[str, Any]:
    """Copy ``picture`` into ``memory`` and return its header."""
    offset = 0
    for plane in picture.planes:
        rows, row = plane.shape
        np.copyto(memory[offset : offset + rows * row].reshape(rows, row), plane)
        offset += rows * row
    return picture_header(picture.format, picture.width, picture.height, picture.matrix, picture.full_range)


def put_as_rgb(memory: Plane, picture: Picture) -> dict[str, Any]:
    """Convert ``picture`` to RGB in ``memory`` and return its header."""
    rgb = picture.rgb()
    np.copyto(memory[: rgb.size].reshape(rgb.shape), rgb)
    return picture_header("rgb24", picture.width, picture.height, "bt601", False)


def get_picture(memory: Plane, header: object) -> Picture:
    """The picture that lies in ``memory``, not copied. Raises `MalformedMessage`."""
    if not isinstance(header, Mapping):
        raise MalformedMessage(f"a picture's header that is a {type(header).__name__}")
    format_, matrix = header.get("format"), header.get("matrix")
    if format_ not in _FORMATS or matrix not in _MATRICES:
        raise MalformedMessage(f"a picture of format {format_!r}, matrix {matrix!r}")
    width, height = _integer(header, "width", 1, MAX_SIDE), _integer(header, "height", 1, MAX_SIDE)
    shapes = plane_shapes(format_, width, height)
    strides = header.get("strides")
    if not isinstance(strides, list) or len(strides) != len(shapes):
        raise MalformedMessage(f"a {format_} picture with strides {strides!r}")
    planes: list[Plane] = []
    offset = 0
    for (rows, row), stride in zip(shapes, strides, strict=True):
        if type(stride) is not int or stride < row or offset + rows * stride > memory.size:
            raise MalformedMessage(
                f"a plane of {rows} rows of {row} bytes, stride {stride!r}, leaves its memory"
            )
        planes.append(memory[offset : offset + rows * stride].reshape(rows, stride)[:, :row])
        offset += rows * stride
    return Picture(format_, width, height, planes, matrix, bool(header.get("full_range")))


def copy_picture(picture: Picture) -> Picture:
    """The same picture in memory of its own."""
    planes = [np.array(plane) for plane in picture.planes]
    return Picture(picture.format, picture.width, picture.height, planes, picture.matrix, picture.full_range)


def audio_header(frame: AudioFrame, samples: npt.NDArray[Any]) -> dict[str, Any]:
    """How to read ``samples``, the checked ones of ``frame``, once they lie in a slot without gaps."""
    return {
        "format": frame.format,
        "layout": frame.layout,
        "rate": frame.rate,
        "dtype": samples.dtype.str,
        "shape": list(samples.shape),
    }


def get_audio(memory: Plane, header: object, timestamp: int, time_base: Fraction) -> AudioFrame:
    """The frame whose samples lie in ``memory``, copied. Raises `MalformedMessage`."""
    if not isinstance(header, Mapping):
        raise MalformedMessage(f"an audio header that is a {type(header).__name__}")
    format_, layout, shape = header.get("format"), header.get("layout"), header.get("shape")
    kind = SAMPLE_TYPES.get(format_) if isinstance(format_, str) else None
    if (
        not isinstance(format_, str)
        or kind is None
        or not isinstance(layout, str)
        or header.get("dtype") != kind.str
    ):
        raise MalformedMessage(
            f"audio of format {format_!r}, type {header.get('dtype')!r}, layout {layout!r}"
        )
    if not isinstance(shape, list) or len(shape) != 2 or any(type(n) is not int or n < 0 for n in shape):
        raise MalformedMessage(f"samples of shape {shape!r}")
    size = shape[0] * shape[1] * kind.itemsize
    if size > memory.size:
        raise MalformedMessage(f"samples of {size} bytes in a memory of {memory.size}")
    rate = _integer(header, "rate", 1, MAX_RATE)
    samples = np.array(memory[:size]).view(kind).reshape(shape)
    return AudioFrame(samples, timestamp, time_base, rate=rate, format=format_, layout=layout)


def same_samples(one: object, other: npt.NDArray[Any]) -> bool:
    """Whether two arrays hold the same bits (a NaN equals itself)."""
    if not isinstance(one, np.ndarray) or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return np.ascontiguousarray(one).tobytes() == other.tobytes()


def time_header(timestamp: object, time_base: object) -> dict[str, int]:
    """A frame's time as integers. Raises ValueError for what is not a time."""
    if isinstance(timestamp, bool) or not isinstance(timestamp, (int, np.integer)):
        raise ValueError(f"timestamp {timestamp!r} is not an integer")
    if not isinstance(time_base, Fraction) or time_base.numerator <= 0:
        raise ValueError(f"time_base {time_base!r} is not a positive Fraction")
    pts = int(timestamp)
    if abs(pts) > MAX_TIME:
        raise ValueError(f"timestamp {pts} does not fit into 64 bits")
    return {"pts": pts, "num": time_base.numerator, "den": time_base.denominator}


def get_time(header: object) -> tuple[int, Fraction]:
    """Timestamp and time base. Raises `MalformedMessage`."""
    pts = _integer(header, "pts", -MAX_TIME, MAX_TIME)
    return pts, Fraction(_integer(header, "num", 1, MAX_TIME), _integer(header, "den", 1, MAX_TIME))


def _integer(header: object, key: str, low: int, high: int) -> int:
    value = header.get(key) if isinstance(header, Mapping) else None
    if type(value) is not int or not low <= value <= high:
        raise MalformedMessage(f"{key} is {value!r}, not an integer from {low} to {high}")
    return value

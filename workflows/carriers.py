"""Pictures that carry the workflow they were made with: PNG and APNG, WebP, JPEG, as ComfyUI writes them.

PNG has it in text chunks named ``workflow`` (what the editor saves) and ``prompt`` (API format), APNG in
``comf`` chunks of the same form; WebP and JPEG have it as EXIF texts that begin ``workflow:`` or ``prompt:``.
Nothing is decoded but these texts.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

from stream.errors import InvalidWorkflow, TooLarge
from workflows.graph import LIMITS, Limits, load_json

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_NAMES = ("workflow", "prompt")
_EXIF_MARK = b"Exif\0\0"
_MAX_EXIF_ENTRIES = 1024
_MAX_KEYWORD = 80  # bytes of a PNG keyword and its terminator

PICTURE_SUFFIXES = (".png", ".apng", ".webp", ".jpg", ".jpeg")


def is_picture(content: bytes) -> bool:
    """Whether ``content`` begins as a picture that may carry a workflow."""
    return content.startswith((_PNG, _JPEG)) or (content[:4] == b"RIFF" and content[8:12] == b"WEBP")


def carried_workflow(content: bytes, name: str = "picture", limits: Limits = LIMITS) -> Any:
    """The workflow data that a picture carries, in the form of `workflows.reading.read`.

    Of a picture with both formats: the body of ComfyUI's ``POST /prompt``, which has both. Raises
    `InvalidWorkflow` when it carries none or what it carries is not JSON, `TooLarge` over a limit.
    """
    found: dict[str, Any] = {}
    for key, text in _texts(content, name, limits):
        if key in _NAMES and key not in found:
            found[key] = load_json(text, f"{name}: {key}", limits)
    if not found:
        raise InvalidWorkflow(
            f"{name} carries no workflow; pictures that ComfyUI saved do, unless it was told not to or "
            "another program has saved them again",
            field="workflow",
        )
    if len(found) == 1:
        return next(iter(found.values()))
    return {"prompt": found["prompt"], "extra_data": {"extra_pnginfo": {"workflow": found["workflow"]}}}


def _texts(content: bytes, name: str, limits: Limits) -> Iterator[tuple[str, bytes]]:
    if content.startswith(_PNG):
        yield from _png_texts(content, name, limits)
    elif content.startswith(_JPEG):
        for part in _jpeg_exif(content):
            yield from _exif_texts(part)
    else:
        for part in _webp_exif(content):
            yield from _exif_texts(part)


def _png_texts(content: bytes, name: str, limits: Limits) -> Iterator[tuple[str, bytes]]:
    position = len(_PNG)
    while position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        body = memoryview(content)[position + 8 : position + 8 + length]
        position += length + 12
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"comf"):
            keyword, ended, _ = bytes(body[:_MAX_KEYWORD]).partition(b"\0")
            key = keyword.decode("latin-1").lower()
            if ended and key in _NAMES:
                rest = bytes(body[len(keyword) + 1 :])
                yield key, _png_text(kind, rest, f"{name}: {key}", limits)
        elif kind == b"eXIf":
            yield from _exif_texts(bytes(body))


def _png_text(kind: bytes, rest: bytes, name: str, limits: Limits) -> bytes:
    compressed = kind == b"zTXt"
    if kind == b"zTXt":
        rest = rest[1:]  # the compression method, of which there is one
    elif kind == b"iTXt":
        compressed = rest[:1] == b"\1"
        # Flag, method, then language and translated keyword, each ended by a zero.
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    return _inflate(rest, name, limits) if compressed else rest


def _inflate(data: bytes, name: str, limits: Limits) -> bytes:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, limits.text_bytes + 1)
    except zlib.error as error:
        raise InvalidWorkflow(
            f"{name} is compressed but cannot be read: {error}", field="workflow"
        ) from error
    if len(text) > limits.text_bytes:
        raise TooLarge(f"{name}: over {limits.text_bytes} bytes uncompressed", field="workflow")
    return text


def _webp_exif(content: bytes) -> Iterator[bytes]:
    position = 12
    while position + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, position)
        if kind == b"EXIF":
            yield content[position + 8 : position + 8 + length]
        position += 8 + length + length % 2


def _jpeg_exif(content: bytes) -> Iterator[bytes]:
    position = 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker, length = struct.unpack_from(">xBH", content, position)
        if marker == 0xDA:  # the picture itself; nothing of ours comes after it
            return
        body = content[position + 4 : position + 2 + length]
        if marker == 0xE1 and body.startswith(_EXIF_MARK):
            yield body
        position += 2 + max(length, 2)


def _exif_texts(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The named texts among the tags of the first directory (TIFF 6.0, section 2)."""
    data = data.removeprefix(_EXIF_MARK)
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    if start + 2 > len(data):
        return
    (entries,) = struct.unpack_from(f"{order}H", data, start)
    for index in range(min(entries, _MAX_EXIF_ENTRIES)):
        at = start + 2 + 12 * index
        if at + 12 > len(data):
            return
        _, kind, count, offset = struct.unpack_from(f"{order}HHII", data, at)
        if kind not in (1, 2, 7) or count <= 4:  # bytes, text, undefined; shorter ones stand in the entry
            continue
        key, colon, text = data[offset : offset + count].partition(b":")
        if colon and key.lower() in (b"workflow", b"prompt"):
            yield key.decode("ascii").lower(), text.rstrip(b"\0")

from __future__ import annotations

import json
import struct
import zlib
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stream.errors import InvalidWorkflow, TooLarge
from workflows.carriers import is_picture
from workflows.graph import Limits
from workflows.reading import load

PROMPT = {"1": {"class_type": "LoadImage", "inputs": {"image": "grün.png"}}}
WORKFLOW = {"nodes": [{"id": 1, "type": "LoadImage"}], "links": [], "version": 0.4}
BOTH = {"prompt": PROMPT, "extra_data": {"extra_pnginfo": {"workflow": WORKFLOW}}}


def png(*, compress: bool = False, international: bool = False, **texts: Any) -> bytes:
    info = PngInfo()
    for key, value in texts.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=not international)
        (info.add_itxt if international else info.add_text)(key, text, zip=compress)  # type: ignore[operator]
    return _saved("PNG", pnginfo=info)


def with_exif(suffix: str, **texts: Any) -> bytes:
    """As ComfyUI writes it: the prompt as the camera's model, the rest from its maker downwards."""
    exif = Image.Exif()
    for tag, (key, value) in zip((0x0110, 0x010F, 0x010E), texts.items(), strict=False):
        exif[tag] = f"{key}:{json.dumps(value)}"
    return _saved(suffix, exif=exif)


def _saved(kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, kind, **options)
    return buffer.getvalue()


def animated() -> bytes:
    """A PNG with ``comf`` chunks behind the picture."""
    whole = _saved("PNG")
    body = b"prompt\0" + json.dumps(PROMPT).encode("latin-1")
    chunk = struct.pack(">I4s", len(body), b"comf") + body + struct.pack(">I", zlib.crc32(b"comf" + body))
    return whole[:-12] + chunk + whole[-12:]


@pytest.mark.parametrize(
    ("content", "data"),
    [
        (png(prompt=PROMPT, workflow=WORKFLOW), BOTH),
        (png(workflow=WORKFLOW), WORKFLOW),
        (png(prompt=PROMPT, compress=True), PROMPT),
        (png(prompt=PROMPT, international=True), PROMPT),
        (png(prompt=PROMPT, workflow=WORKFLOW, international=True, compress=True), BOTH),
        (animated(), PROMPT),
        (with_exif("WEBP", prompt=PROMPT, workflow=WORKFLOW), BOTH),
        (with_exif("WEBP", Workflow=WORKFLOW), WORKFLOW),
        (with_exif("JPEG", prompt=PROMPT), PROMPT),
        (json.dumps(WORKFLOW).encode(), WORKFLOW),
        (json.dumps(PROMPT), PROMPT),
    ],
)
def test_the_workflow_is_found_in_each_kind_of_file(content: str | bytes, data: Any) -> None:
    assert load(content, "a file") == data


@pytest.mark.parametrize("content", [png(), _saved("WEBP"), _saved("JPEG"), png(parameters="steps: 20")])
def test_a_picture_without_a_workflow_says_so(content: bytes) -> None:
    assert is_picture(content)
    with pytest.raises(InvalidWorkflow, match=r"holiday carries no workflow"):
        load(content, "holiday")


def test_what_is_not_json_names_file_and_part() -> None:
    with pytest.raises(InvalidWorkflow, match=r"holiday: workflow is not JSON.*line 1, column 2"):
        load(png(workflow="{no"), "holiday")


def test_what_grows_when_unpacked_is_stopped() -> None:
    bomb = png(workflow=" " * 1_000_000, compress=True)
    assert len(bomb) < 10_000
    with pytest.raises(TooLarge, match=r"over 5000 bytes uncompressed"):
        load(bomb, limits=Limits(text_bytes=5000))
    with pytest.raises(TooLarge, match=r"at most 50"):
        load(png(workflow=" " * 100), limits=Limits(text_bytes=50))


pictures = st.sampled_from(
    [
        png(prompt=PROMPT, workflow=WORKFLOW),
        png(prompt=PROMPT, compress=True),
        png(prompt=PROMPT, international=True, compress=True),
        with_exif("WEBP", prompt=PROMPT, workflow=WORKFLOW),
        with_exif("JPEG", prompt=PROMPT),
    ]
)


@given(
    pictures,
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8),
    st.integers(0, 3000),
)
def test_a_damaged_picture_is_read_or_refused(
    content: bytes, damage: list[tuple[int, int]], end: int
) -> None:
    changed = bytearray(content)
    for position, value in damage:
        changed[position % len(changed)] = value
    try:
        load(bytes(changed[: max(12, end)]))
    except (InvalidWorkflow, TooLarge) as error:
        assert error.message

"""What somebody brings as a file, as the data and the bytes that are kept of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from workflows import reading
from workflows.carriers import is_picture

MAX_PICTURE = 64 << 20
"""Bytes of a picture that carries a workflow."""


def to_keep(content: bytes, problems_of: Callable[[Any], int], name: str = "the file") -> tuple[Any, bytes]:
    """The workflow data in a file, and what to keep: JSON byte for byte as it came, or the JSON that a
    picture carries. Of a picture with both formats the editor's, which the editor opens as it was drawn,
    unless it has more problems here than the other (``problems_of`` counts them).

    Raises `InvalidWorkflow`, `TooLarge`.
    """
    data = reading.load(content, name)
    if not is_picture(content):
        return data, content
    api, editor = reading.both_formats(data)
    if api is not None:
        data = api if editor is None or problems_of(editor) > problems_of(api) else editor
    return data, text_of(data)


def text_of(data: Any) -> bytes:
    """JSON data as a person can read it."""
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()

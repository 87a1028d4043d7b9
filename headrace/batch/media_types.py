"""Types of the media that answers have, by the suffix of the file's name."""

from __future__ import annotations

from pathlib import PurePosixPath

CONTENT_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".opus": "audio/ogg",
    ".flac": "audio/flac",
    ".aac": "audio/aac",
    ".pcm": "audio/pcm",
    ".json": "application/json",
}


def content_type_of(name: str) -> str:
    """``image/png`` for ``0.png``; for what is not known, bytes that nobody shows."""
    return CONTENT_TYPES.get(PurePosixPath(name).suffix, "application/octet-stream")

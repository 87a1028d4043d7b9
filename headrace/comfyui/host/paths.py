"""Which files the literals of a workflow may name: those of the installation's own folders, nothing else.

Pure: the file system is not asked, so that an answer tells nobody what exists. Folders that the operator has
linked into an allowed one are his own doing.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable, Sequence

_ANNOTATION = re.compile(r"\s*\[(input|output|temp)\]\s*$")
_NAMED = re.compile(
    r"(^|_)(path|paths|file|files|filename|filepath|folder|folders|dir|dirs|directory|location|url|uri)(_|\d|$)",
    re.IGNORECASE,
)
_UPLOADS = (
    "image_upload",
    "video_upload",
    "audio_upload",
    "file_upload",
    "vhs_path_extensions",
    "image_folder",
)
_ABSOLUTE = re.compile(r"^(~|/[^/\s]+/|[A-Za-z]:[\\/]|\\\\)")
_SCHEME = re.compile(r"^\s*([A-Za-z][A-Za-z0-9+.-]*://|file:)", re.IGNORECASE)
_WRITES = re.compile(
    r"(^|_)(prefix|suffix|format|ext|extension|type|mode|count|limit|cap|skip|index)(_|\d|$)"
)


def chooses_file(name: str, options: Iterable[str] = ()) -> bool:
    """Whether an input is one that names a file, by what it is called or by what its class declares."""
    return bool(_NAMED.search(name)) or any(option in _UPLOADS for option in options)


def may_be_computed(name: str) -> bool:
    """Whether it does no harm that another node computes the value: it is only where something is written."""
    return bool(_WRITES.search(name))


def trouble_with(value: str, roots: Sequence[str], *, network: bool, named: bool) -> str | None:
    """Why ``value`` may not be used, in words; None when there is nothing against it.

    ``roots`` are the folders that absolute paths may lead into. Where the input is not ``named`` as one that
    chooses files, only what is plainly a path is looked at, so that prompts can say what they like.
    """
    if "\0" in value:
        return "has a NUL character"
    text = _ANNOTATION.sub("", value)
    if _SCHEME.match(text) and (named or len(text.split()) == 1):
        return (
            None if network and not text.strip().lower().startswith("file:") else "names a URL; those are off"
        )
    if not named and (len(text.splitlines()) > 1 or not _plainly_path(text)):
        return None
    portable = text.strip().replace("\\", "/")
    if portable.startswith("~"):
        return "begins with a tilde, as somebody's home does"
    if re.match(r"^[A-Za-z]:/", portable) or portable.startswith("//"):
        return "is an absolute path of another system"
    if portable.startswith("/"):
        plain = os.path.normpath(portable)
        if any(plain == root or plain.startswith(root.rstrip("/") + "/") for root in roots):
            return None
        return "is a path outside of the folders that workflows may use"
    if ".." in portable.split("/"):
        return "leads out of its folder"
    return None


def _plainly_path(text: str) -> bool:
    stripped = text.strip()
    parts = stripped.replace("\\", "/").split("/")
    climbs = len(parts) > 1 and ".." in parts
    return " " not in stripped and (climbs or bool(_ABSOLUTE.match(stripped)) or stripped.startswith("/"))

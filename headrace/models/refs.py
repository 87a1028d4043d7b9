"""Names of models, as people and requests give them, and keys of what is in memory.

Standard library only. Parsing looks at the text alone: where a name leads is for `headrace.models.store`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from stream.errors import InvalidInput

RefKind = Literal["repo", "file", "demo"]

WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".pth", ".pt", ".ckpt")
MAX_LENGTH = 512
MAX_PART = 200
"""Bytes of one part of a path; file systems have 255, and the hub's cache adds to it."""
MAX_PARTS = 8

_REPO_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_DEMO = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """What a model is called: ``owner/repository[@revision]`` or a folder, a file of weights, ``demo:NAME``.

    ``kind``: ``demo``; ``file`` where the name ends as a file of weights does (in the models folder, or
    inside a repository: ``owner/repository/file.safetensors``); ``repo`` for everything else: a folder in the
    models folder or a repository of the hub. ``str(ref)`` parses to the same again.
    """

    kind: RefKind
    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Raises `InvalidInput` (field ``model_id``) for what is no such name, with the reason."""
        if not text or len(text) > MAX_LENGTH:
            raise _bad(text, f"it has {len(text)} characters, not 1 to {MAX_LENGTH}")
        if text.startswith("demo:"):
            name = text.removeprefix("demo:")
            if not _DEMO.fullmatch(name):
                raise _bad(text, "after demo: comes a name of small letters, digits, dots and hyphens")
            return cls("demo", name)
        name, at, revision = text.partition("@")
        if at:
            _check_revision(text, revision)
        _check_path(text, name)
        kind: RefKind = "file" if name.lower().endswith(WEIGHT_SUFFIXES) else "repo"
        return cls(kind, name, revision if at else None)

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.name.split("/"))

    @property
    def repository(self) -> str | None:
        """The hub's id of the repository that this may name; None where it cannot name one."""
        wanted = self.parts if self.kind == "repo" else self.parts[:2] if len(self.parts) > 2 else ()
        if self.kind == "demo" or not 1 <= len(wanted) <= 2:
            return None
        # The hub forbids both marks; its cache uses the first as a separator.
        sound = all(_REPO_PART.fullmatch(part) and "--" not in part and ".." not in part for part in wanted)
        return "/".join(wanted) if sound else None

    @property
    def file_in_repository(self) -> str | None:
        """The path inside the repository, for the name of a file."""
        return "/".join(self.parts[2:]) if self.kind == "file" and len(self.parts) > 2 else None

    def __str__(self) -> str:
        if self.kind == "demo":
            return f"demo:{self.name}"
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def _check_revision(text: str, revision: str) -> None:
    sound = _REVISION.fullmatch(revision) and ".." not in revision and not revision.endswith(".lock")
    if not sound or len(revision) > MAX_PART:
        raise _bad(text, "after @ comes a branch, a tag or a commit")


def _check_path(text: str, name: str) -> None:
    parts = name.split("/")
    if len(parts) > MAX_PARTS:
        raise _bad(text, f"it has {len(parts)} parts, not at most {MAX_PARTS}")
    for part in parts:
        if not part:
            raise _bad(text, "it begins or ends with a slash, or has two in a row")
        if part[0] in ".~-" or part != part.strip():
            raise _bad(text, f"{part!r} begins with a dot, a tilde or a hyphen, or has spaces around it")
        if not part.isprintable() or any(mark in part for mark in '\\:*?"<>|\0'):
            raise _bad(text, f"{part!r} has a character that file names and repositories do not have")
        try:
            size = len(part.encode())
        except UnicodeEncodeError:
            raise _bad(text, "it is not valid Unicode") from None
        if size > MAX_PART:
            raise _bad(text, f"a part of it has {size} bytes, not at most {MAX_PART}")


def _bad(text: str, reason: str) -> InvalidInput:
    shown = text if len(text) <= 80 else text[:77] + "..."
    return InvalidInput(
        f"{shown!r} names no model: {reason} (owner/repository[@revision], a folder or file of the models "
        "folder, or demo:NAME)",
        field="model_id",
    )


@dataclass(frozen=True, slots=True)
class ModelKey:
    """What one entry of the cache holds. Equal keys share one load.

    ``revision``: a commit of the hub, or a digest of sizes and times of local files. ``dtype`` and ``device``
    in torch's words (``float16``, ``cuda:0``). ``kind``: what was made of the files (``diffusers``, ``llm``).
    """

    ref: str
    revision: str
    dtype: str
    device: str
    kind: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelKey:
        """Raises KeyError for what is not such a dictionary."""
        return cls(*(str(data[name]) for name in ("ref", "revision", "dtype", "device", "kind")))

    def __str__(self) -> str:
        return f"{self.ref} ({self.revision[:12]}, {self.dtype}, {self.device}, {self.kind})"

"""The operator's own workflows: JSON files in one folder, each as it came, under names that stay in it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream.errors import Conflict, InvalidInput, NotFound, SinkError, TooLarge
from workflows.graph import LIMITS, load_json
from workflows.library import is_path

SUFFIX = ".json"
MAX_NAME = 100
"""Characters of a name, which has at most twice as many bytes."""
_NAME = re.compile(r"\w(?:[\w .()+&,'@-]*[\w)+&'@-])?")


class PreconditionFailed(Conflict):
    """The workflow is no longer the one that the caller knows (``If-Match``, ``If-None-Match``)."""

    code = "precondition_failed"
    status = 412


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How many workflows are kept, and bytes of one and of all."""

    count: int = 500
    each: int = LIMITS.text_bytes
    total: int = 256 << 20


@dataclass(frozen=True, slots=True)
class Kept:
    """A kept workflow. ``etag`` changes with its content; ``modified`` in epoch seconds."""

    name: str
    etag: str
    bytes: int
    modified: float


def default_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Where workflows are kept unless a setting says otherwise: HEADRACE_WORKFLOWS, else XDG_DATA_HOME's."""
    env = os.environ if environ is None else environ
    if named := env.get("HEADRACE_WORKFLOWS"):
        return Path(named).expanduser()
    home = Path(env.get("HOME") or Path.home())
    return Path(env.get("XDG_DATA_HOME") or home / ".local" / "share") / "headrace" / "workflows"


def checked_name(name: object) -> str:
    """A name under which a workflow can be kept, in Unicode's NFC; `InvalidInput` for anything else."""
    text = unicodedata.normalize("NFC", name) if isinstance(name, str) else ""
    sound = bool(_NAME.fullmatch(text)) and not is_path(text)
    if not sound or len(text) > MAX_NAME or len(text.encode()) > 2 * MAX_NAME:
        raise InvalidInput(
            f"a workflow's name has at most {MAX_NAME} letters, digits, spaces and _ . ( ) + & , ' @ -, "
            f"begins with a letter or digit and does not end as a file's does; not {repr(name)[:80]}",
            field="name",
        )
    return text


class WorkflowStore:
    """The workflows that are kept in ``folder``, which is made with the first. For any thread; blocks on
    the disk."""

    def __init__(self, folder: Path, limits: StoreLimits | None = None) -> None:
        self.folder = folder
        self.limits = limits or StoreLimits()
        self.version = 0
        """Grows with every change by this object."""
        self._tags: dict[Path, tuple[tuple[int, int, int], str]] = {}

    # -- reading ---------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The names of every kept workflow, in alphabetical order."""
        return sorted(path.name.removesuffix(SUFFIX) for path in self._files())

    def list(self) -> list[Kept]:
        """Every kept workflow, by name; files with other names and links are none."""
        found = [self._about(path) for path in self._files()]
        return sorted((kept for kept in found if kept is not None), key=lambda kept: kept.name)

    def __contains__(self, name: object) -> bool:
        try:
            return _is_file(self._path(checked_name(name)))
        except InvalidInput:
            return False

    def read(self, name: str) -> tuple[bytes, Kept]:
        """The content of a kept workflow, byte for byte. Raises `NotFound`, `TooLarge`."""
        path = self._found(name)
        try:
            with path.open("rb") as file:
                content = file.read(self.limits.each + 1)
                about = os.fstat(file.fileno())
        except OSError:
            raise _missing(name) from None
        if len(content) > self.limits.each:
            raise TooLarge(f"workflow {name!r} has over {self.limits.each} bytes", field="name")
        return content, Kept(name, tag_of(content), len(content), about.st_mtime)

    def load(self, name: str) -> Any:
        """The JSON data of a kept workflow. Raises `NotFound`, `TooLarge`, `InvalidWorkflow`."""
        return load_json(self.read(name)[0], name)

    # -- writing ---------------------------------------------------------------------------------------

    def put(
        self, name: str, content: bytes, *, match: str | None = None, create: bool = False
    ) -> tuple[Kept, bool]:
        """Keep ``content`` under ``name``, whole or not at all; whether it is new there.

        ``match`` is the etag that must be there now, or ``*`` for any; ``create`` asks that nothing is
        (`PreconditionFailed`). Raises `InvalidInput` for a bad name, `TooLarge` over a limit, `SinkError`.
        """
        name = checked_name(name)
        path, limits = self._path(name), self.limits
        if len(content) > limits.each:
            raise TooLarge(
                f"the workflow has {len(content)} bytes; at most {limits.each} are kept", field="workflow"
            )
        with self._writing():
            before = self._about(path)
            _check_match(name, before, match, create=create)
            others = [kept for kept in self.list() if kept.name != name]
            if len(others) >= limits.count:
                raise TooLarge(
                    f"{len(others)} workflows are kept, and no more may be; remove one", field="name"
                )
            total = sum(kept.bytes for kept in others) + len(content)
            if total > limits.total:
                raise TooLarge(
                    f"all workflows would have {total} bytes; {limits.total} are the limit", field="workflow"
                )
            self._replace(path, content)
            self.version += 1
            after = self._about(path)
        if after is None:
            raise SinkError(f"workflow {name!r} was removed as it was written", field="name")
        return after, before is None

    def remove(self, name: str, *, match: str | None = None) -> None:
        """Forget a workflow; ``match`` as in `put`. Raises `NotFound`, `PreconditionFailed`, `SinkError`."""
        path = self._found(name)
        with self._writing():
            _check_match(name, self._about(path), match)
            self.version += 1
            try:
                path.unlink()
            except FileNotFoundError:
                raise _missing(name) from None
            except OSError as error:
                raise SinkError(f"{path} cannot be removed: {error.strerror}", field="name") from error

    # -- files -----------------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"

    def _found(self, name: str) -> Path:
        try:
            path = self._path(checked_name(name))
        except InvalidInput:
            raise _missing(name) from None
        if not _is_file(path):
            raise _missing(name)
        return path

    def _files(self) -> Iterator[Path]:
        try:
            entries = sorted(self.folder.iterdir())
        except OSError:
            return
        for path in entries:
            name = path.name.removesuffix(SUFFIX)
            if path.name.endswith(SUFFIX) and _is_name(name) and _is_file(path):
                yield path

    def _about(self, path: Path) -> Kept | None:
        try:
            facts = path.stat()
            mark = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
            known = self._tags.get(path)
            if known is None or known[0] != mark:
                known = self._tags[path] = mark, tag_of(path.read_bytes())
        except OSError:
            self._tags.pop(path, None)
            return None
        return Kept(path.name.removesuffix(SUFFIX), known[1], facts.st_size, facts.st_mtime)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time, of all processes."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise SinkError(
                f"workflows cannot be kept in {self.folder}: {error.strerror or error}", field="workflows"
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _replace(self, path: Path, content: bytes) -> None:
        part = self.folder / f".{secrets.token_hex(8)}.part"
        try:
            with part.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise SinkError(f"{path} cannot be written: {error.strerror or error}", field="name") from error


def _check_match(name: str, now: Kept | None, match: str | None, *, create: bool = False) -> None:
    if create and now is not None:
        raise PreconditionFailed(f"there is a workflow {name!r} already", field="If-None-Match")
    if match is None or (now is not None and match in ("*", now.etag)):
        return
    what = "is not there any more" if now is None else f"has changed since (it is {now.etag} now)"
    raise PreconditionFailed(f"workflow {name!r} {what}; nothing was written", field="If-Match")


def tag_of(content: bytes) -> str:
    """The etag of a workflow's file."""
    return hashlib.sha256(content).hexdigest()[:16]


def _is_name(name: str) -> bool:
    try:
        return checked_name(name) == name
    except InvalidInput:
        return False


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _missing(name: str) -> NotFound:
    return NotFound(f"no workflow {name[:80]!r} is kept", field="name")

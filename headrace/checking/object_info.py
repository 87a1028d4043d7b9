"""What a ComfyUI says of its nodes (``/object_info``): from a file, or from a running one, kept on the disk.

What was kept is used when that ComfyUI does not answer, so that a workflow can be checked while it is off.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from headrace.models.roots import Roots
from stream.errors import InvalidInput, NotFound, SourceError, TooLarge
from workflows.definitions import Definitions
from workflows.registry import definitions_from_object_info

log = logging.getLogger(__name__)

MAX_BYTES = 64 * 1024 * 1024
TIMEOUT = 20.0
_OPTION = "--object-info"
_ROUTE = "/object_info"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """``data`` by class; ``origin`` is where it is from; ``age`` in seconds where it is a kept copy."""

    data: Mapping[str, Any]
    origin: str
    age: float | None = None


def load_object_info(source: str, cache: Path | None = None) -> ObjectInfo:
    """From a JSON file, or from the ComfyUI at an http or https URL.

    ``cache`` is the folder of kept answers (default: below Headrace's cache). Raises `NotFound`,
    `InvalidInput`, `TooLarge`, and `SourceError` where a ComfyUI does not answer and never did.
    """
    if urlsplit(source).scheme in ("http", "https"):
        return _from_url(source, cache or Roots.from_environment().cache / "object_info")
    path = Path(source).expanduser()
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror or error}", field=_OPTION) from error
    return ObjectInfo(_parse(text, str(path)), str(path))


def elsewhere(source: str) -> Definitions:
    """The classes of ``source`` for a worker, which goes on without them where a ComfyUI does not answer.
    Raises as `load_object_info` does for anything else."""
    try:
        info = load_object_info(source)
    except SourceError as error:
        log.warning("%s; workflows are checked without its nodes", error.message)
        return {}
    if info.age is not None:
        log.warning("%s does not answer; using what it said %s ago", info.origin, told_age(info.age))
    return definitions_from_object_info(info.data)


def told_age(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.0f} h" if hours >= 1 else f"{seconds / 60:.0f} min"


def _from_url(source: str, cache: Path) -> ObjectInfo:
    if not urlsplit(source).hostname:
        raise InvalidInput(f"{source!r} is not an http or https URL", field=_OPTION)
    bare = source.partition("?")[0].rstrip("/")
    url = bare if bare.endswith(_ROUTE) else bare + _ROUTE
    kept = cache / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"
    try:
        text = _fetch(url)
    except SourceError:
        if not kept.is_file():
            raise
        age = max(0.0, time.time() - kept.stat().st_mtime)
        return ObjectInfo(_parse(kept.read_bytes(), str(kept)), url, age)
    data = _parse(text, url)
    _keep(kept, text)
    return ObjectInfo(data, url)


def _fetch(url: str) -> bytes:
    # No proxy: a ComfyUI is on this machine or in its network.
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(Request(url, headers={"Accept": "application/json"}), timeout=TIMEOUT) as answer:
            text: bytes = answer.read(MAX_BYTES + 1)
    except HTTPError as error:
        with error:
            raise SourceError(f"{url} answered {error.code}; is that a ComfyUI?") from None
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise SourceError(f"no ComfyUI answers at {url}: {reason}") from None
    return text


def _parse(text: bytes, name: str) -> Mapping[str, Any]:
    if len(text) > MAX_BYTES:
        raise TooLarge(f"{name}: over {MAX_BYTES} bytes", field=_OPTION)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} is not JSON: {error}", field=_OPTION) from error
    if not isinstance(data, dict) or not any(
        isinstance(entry, dict) and isinstance(entry.get("input"), dict) for entry in data.values()
    ):
        raise InvalidInput(f"{name} is not the object_info of a ComfyUI", field=_OPTION)
    return data


def _keep(path: Path, text: bytes) -> None:
    """Whole or not at all; a folder that cannot be written costs the copy, not the check."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(text)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError:
        return

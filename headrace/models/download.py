"""One file over HTTP, going on where an earlier attempt broke off, checked when it is whole."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from stream.errors import AtCapacity, SourceError

CHUNK = 256 * 1024
TIMEOUT = 30.0
"""Seconds without a byte."""
ATTEMPTS = 5
"""In a row without a byte of progress."""
_PAUSE = 1.0
_LASTING = (400, 401, 403, 404, 410)
"""Answers that another attempt does not change."""


class PullFailed(SourceError):
    """The hub cannot be reached, or broke off; what came is kept, and pulling again goes on from there."""

    code = "pull_failed"


def download(
    url: str,
    part: Path,
    size: int,
    digest: str | None,
    *,
    token: str | None = None,
    tell: Callable[[int], None] | None = None,
) -> None:
    """Have ``part`` hold the ``size`` bytes of ``url``; ``tell`` gets the bytes that are there.

    ``digest``: SHA-256, or git's SHA-1 of a blob, in hexadecimal; None where nobody told one. The token goes
    to the host of ``url``, not to one that it leads to. Raises `PullFailed`, `AtCapacity` when another
    process fetches the same file, and what ``tell`` raises.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AtCapacity(f"{part.name} is being fetched by another process") from None
        fruitless = 0
        while (have := file.seek(0, 2)) < size:
            try:
                _attempt(url, file, have, size, token, tell)
                problem = "the answer was too short"
            except urllib.error.HTTPError as error:
                with error:
                    if error.code in _LASTING:
                        raise PullFailed(f"{url} answered {error.code} {error.reason}") from None
                    problem = f"{error.code} {error.reason}"
            except (OSError, http.client.HTTPException) as error:
                problem = str(error) or type(error).__name__
            file.flush()
            fruitless = 0 if file.seek(0, 2) > have else fruitless + 1
            if fruitless >= ATTEMPTS:
                raise PullFailed(f"{url} broke off at {have} of {size} bytes: {problem}")
            if fruitless:
                time.sleep(_PAUSE * fruitless)
    damaged = digest is not None and digest_of(part, digest) != digest
    if damaged or part.stat().st_size != size:
        part.unlink()
        raise PullFailed(f"{url} came damaged and was thrown away")


def _attempt(
    url: str, file: IO[bytes], have: int, size: int, token: str | None, tell: Callable[[int], None] | None
) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "headrace", "Accept-Encoding": "identity"})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if have and not _begins_at(response, have):
            file.truncate(0)
            have = 0
        while have < size and (data := response.read(min(CHUNK, size - have))):
            file.write(data)
            have += len(data)
            if tell is not None:
                tell(have)


def _begins_at(response: http.client.HTTPResponse, have: int) -> bool:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return response.status == 206 and found is not None and int(found[1]) == have


def digest_of(path: Path, like: str) -> str:
    """SHA-256 of a file, or git's SHA-1 of it as a blob, whichever ``like`` is as long as."""
    if len(like) == 64:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()

"""Files of answers that were asked for as URLs: for a while, up to a size, under names nobody guesses."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from headrace.batch.media_types import content_type_of
from stream.errors import AtCapacity, NotFound

PREFIX = "/media/"


@dataclass(frozen=True, slots=True)
class _Kept:
    size: int
    until: float


class MediaStore:
    """Keeps files in a folder of its own, ``seconds`` long and ``limit`` bytes together; the oldest go."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit, self.seconds = limit, seconds
        self._folder: Path | None = None
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes that are kept."""
        return self._held

    def put(self, name: str, data: bytes, now: float | None = None) -> str:
        """Keep ``data``, whose type the suffix of ``name`` tells; the path of its URL.

        May be called in a thread. Raises `AtCapacity` for what is larger than the limit.
        """
        now = time.monotonic() if now is None else now
        if len(data) > self.limit:
            text = f"the answer has {len(data)} bytes; {self.limit} are kept: ask for it in the answer"
            raise AtCapacity(text, field="response_format")
        file = secrets.token_urlsafe(24) + Path(name).suffix
        with self._lock:
            self._expire(now)
            while self._kept and self._held + len(data) > self.limit:
                self._drop(next(iter(self._kept)))
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="headrace-media-"))
            path = self._folder / file
            self._kept[file] = _Kept(len(data), now + self.seconds)
            self._held += len(data)
        # Without the lock, which the loop waits for: a large file takes a while.
        written = False
        try:
            path.write_bytes(data)
            written = True
        finally:
            with self._lock:
                if file not in self._kept:  # it had to go meanwhile
                    path.unlink(missing_ok=True)
                elif not written:
                    self._drop(file)
        return PREFIX + file

    def find(self, file: str, now: float | None = None) -> Path:
        """Where a file is kept. Raises `NotFound` for what never was or is no longer."""
        with self._lock:
            self._expire(time.monotonic() if now is None else now)
            if self._folder is None or file not in self._kept:
                raise NotFound("there is no such file, or no longer")
            return self._folder / file

    def has(self, path: str) -> bool:
        """Whether the file whose path `put` gave is still there."""
        try:
            self.find(path.removeprefix(PREFIX))
        except NotFound:
            return False
        return True

    def _expire(self, now: float) -> None:
        while self._kept and (oldest := next(iter(self._kept.items())))[1].until <= now:
            self._drop(oldest[0])

    def close(self) -> None:
        """Delete everything."""
        with self._lock:
            self._kept.clear()
            self._held = 0
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def _drop(self, file: str) -> None:
        self._held -= self._kept.pop(file).size
        if self._folder is not None:
            (self._folder / file).unlink(missing_ok=True)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """``GET /media/{file}``: whoever has the name may have the file."""
        path = self.find(request.match_info["file"])
        headers = {
            "Content-Type": content_type_of(path.name),
            "Cache-Control": "private, no-store",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'; sandbox",
        }
        return web.FileResponse(path, headers=headers)

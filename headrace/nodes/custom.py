"""The worker's side of custom nodes in its own engine: which classes there are, told by the engine."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.comfyui.known import KnownClasses, read_object_info
from headrace.engine.blobs import Blobs
from headrace.engine.guardian import Engine
from headrace.engine.home import SESSION
from headrace.engine.link import LinkError, Message
from headrace.models.roots import Roots
from headrace.nodes.packs import packs_in
from headrace.server.definitions import WorkerDefinitions
from stream.errors import EngineError
from workflows.definitions import Definitions
from workflows.registry import definitions_from_object_info

log = logging.getLogger(__name__)

ORIGIN = "custom nodes"


class CustomNodes:
    """Puts the classes of the packs in ``folder`` into ``definitions`` when an engine tells of them.

    Until then those count that the same files had before, so that a worker can check workflows at once.
    ``packs``: what came of each pack, with the reason where it was not loaded.
    """

    def __init__(self, folder: Path, definitions: WorkerDefinitions, cache: Path | None = None) -> None:
        self.packs: list[dict[str, Any]] = []
        self._folder = folder
        self._definitions = definitions
        self._known = KnownClasses((cache or Roots.from_environment().cache) / "custom-nodes")
        self._told_once = asyncio.Event()
        self._reading: set[asyncio.Task[None]] = set()
        if (kept := self._known.load(state_of(folder))) is not None:
            definitions.put(ORIGIN, definitions_from_object_info(kept))

    def watch(self, engine: Engine) -> None:
        """Listen to an engine that was made with `headrace.nodes.packs.home_for`."""
        engine.route(SESSION, self._told)

    async def wait_told(self, timeout: float) -> None:
        """Return when an engine has told of the packs. Raises `EngineError` after that time."""
        try:
            async with asyncio.timeout(timeout):
                await self._told_once.wait()
        except TimeoutError:
            raise EngineError(f"the engine has told of no custom nodes within {timeout:g} s") from None

    def _told(self, message: Message) -> None:
        if message.body.get("what") != "facts":
            return
        try:
            blobs = Blobs(message.take_fd(), message.body.get("blobs"))
        except LinkError as error:
            log.warning("what the engine tells of custom nodes cannot be read: %s", error.message)
            return
        parts = blobs.copies()
        blobs.close()
        task = asyncio.create_task(self._learn(parts), name="what an engine tells of custom nodes")
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def _learn(self, parts: Mapping[str, bytes]) -> None:
        """Its JSON and the folder are read in a thread; streams go on meanwhile."""
        read = await asyncio.to_thread(self._read, parts)
        if read is None:
            log.warning("what the engine tells of custom nodes makes no sense")
            return
        facts, definitions = read
        self.packs = [pack for pack in facts.get("packs") or () if isinstance(pack, dict)]
        for pack in self.packs:
            if not pack.get("loaded"):
                log.warning("custom nodes %s are not loaded: %s", pack.get("name"), pack.get("reason"))
        self._definitions.put(ORIGIN, definitions)
        self._told_once.set()

    def _read(self, parts: Mapping[str, bytes]) -> tuple[dict[str, Any], Definitions] | None:
        facts, info = (read_object_info(parts.get(name, b"")) for name in ("facts", "object_info"))
        if facts is None or info is None:
            return None
        try:
            self._known.save(state_of(self._folder), parts["object_info"])
        except OSError as error:
            log.warning("the classes of custom nodes are not kept: %s", error)
        return facts, definitions_from_object_info(info)


def state_of(folder: Path) -> str:
    """Changes when a Python file of a pack does."""
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for pack in packs_in(folder):
        for file in [pack] if pack.is_file() else sorted(pack.rglob("*.py")):
            facts = file.stat()
            digest.update(f"{file} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]

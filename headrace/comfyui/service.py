"""ComfyUI in a worker: its engines, what they say of themselves, and which workflows run there."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from headrace.comfyui import scratch
from headrace.comfyui.host.options import MODULE, ComfyOptions
from headrace.comfyui.installation import Installation
from headrace.comfyui.known import KnownClasses, definitions_of, read_object_info
from headrace.comfyui.memory import ComfyMemory, room_for_another
from headrace.engine.blobs import Blobs
from headrace.engine.guardian import Engine
from headrace.engine.home import SESSION
from headrace.engine.link import LinkError, Message
from headrace.engine.settings import EngineSettings
from headrace.models.ledger_service import LedgerService
from stream.errors import EngineError
from workflows.definitions import Definitions

log = logging.getLogger(__name__)

START_TIMEOUT = 600.0
"""Seconds for ComfyUI and all its packs to be imported; large installations take minutes."""
SPARE_READY = 300.0
"""Seconds that a change of workflow waits for the second engine."""
IDLE = 60.0
"""Seconds after which an engine that no session is in ends, when there is another."""

Second = Literal["auto", "on", "off"]
DefinitionsCallback = Callable[[Definitions], None]


@dataclass(frozen=True, slots=True)
class ComfySettings:
    """``options`` without a scratch folder, which the service makes. ``cache``: where definitions are kept.

    ``second``: whether another workflow is prepared in a second engine: ``auto`` when memory allows.
    """

    installation: Installation
    options: ComfyOptions
    cache: Path
    device: str = "auto"
    threads: int = 1
    call_timeout: float = 5.0
    stop_timeout: float = 5.0
    second: Second = "auto"
    env: Mapping[str, str] = field(default_factory=dict)


class ComfyService:
    """Belongs to the loop. ``on_definitions`` is called when the classes of the installation are known."""

    def __init__(
        self,
        settings: ComfySettings,
        on_definitions: DefinitionsCallback,
        ledger: LedgerService | None = None,
    ) -> None:
        self.settings = settings
        self.facts: dict[str, Any] | None = None
        """What the engine has said of the installation: version, packs; None until then."""
        self.definitions: Definitions = {}
        self.uses: Counter[str] = Counter()
        """Sessions by the name of their engine."""
        self._introduced_once = asyncio.Event()
        self._on_definitions = on_definitions
        self._scratch = Path(tempfile.mkdtemp(prefix="headrace-comfyui-"))
        self._known = KnownClasses(settings.cache)
        self._state = state_of(settings)
        self.engines = [self._make("comfyui"), self._make("comfyui-2")]
        self._memory = {engine.settings.name: ComfyMemory(engine, ledger) for engine in self.engines}
        self._ending: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        if (kept := self._known.load(self._state)) is not None:
            self._learn(definitions_of(kept, self._known.facts(self._state) or {}))

    def _make(self, name: str) -> Engine:
        settings = self.settings
        options = replace(
            settings.options,
            directory=str(settings.installation.directory),
            scratch=str(self._scratch / name),
            arguments=_arguments(settings.options.arguments, settings.device),
        )
        engine = Engine(
            EngineSettings(
                name=name,
                python=(settings.installation.python,),
                device=settings.device,
                threads=settings.threads,
                home={"module": MODULE, "options": options.as_dict()},
                env={"PYTHONDONTWRITEBYTECODE": "1", **settings.env},
                start_timeout=START_TIMEOUT,
                call_timeout=settings.call_timeout,
                stop_timeout=settings.stop_timeout,
            )
        )
        engine.route(SESSION, lambda message: self._told(engine, message))
        return engine

    # -- life --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        await self.engines[0].start()
        self._begin(self._keep_small(), "scratch folder of ComfyUI")

    async def _keep_small(self) -> None:
        while True:
            await asyncio.sleep(scratch.EVERY)
            try:
                removed = await asyncio.to_thread(scratch.sweep, self._scratch)
            except OSError as error:
                log.warning("what ComfyUI's nodes have written cannot be looked at: %s", error)
                continue
            if removed:
                log.info("removed the %d oldest files that ComfyUI's nodes have written", removed)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        for handle in self._ending.values():
            handle.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(
            *tasks, *(engine.stop() for engine in self.engines), return_exceptions=True
        )
        shutil.rmtree(self._scratch, ignore_errors=True)
        for result in results[len(tasks) :]:
            if isinstance(result, BaseException):
                raise result

    # -- which engine ------------------------------------------------------------------------------------

    @property
    def first(self) -> Engine:
        """The engine for a new session: one that runs, the busier one, so that the other may end."""
        return max(
            self._running(), key=lambda engine: self.uses[engine.settings.name], default=self.engines[0]
        )

    def _running(self) -> list[Engine]:
        """Those that are there, or on their way, to stay."""
        return [engine for engine in self.engines if engine.state != "stopped" and not engine.stopping]

    def beside(self, engine: Engine) -> Engine | None:
        """Where another workflow can be prepared while ``engine`` works, if memory allows it."""
        other = next(one for one in self.engines if one is not engine)
        if other.state == "ready" and not other.stopping:
            return other
        if self.settings.second == "off":
            return None
        if self.settings.second == "auto" and not room_for_another(
            self._memory[engine.settings.name].held, self._memory[engine.settings.name].free
        ):
            return None
        return other

    async def made_ready(self, engine: Engine) -> None:
        """Start ``engine`` if need be and wait for it. Raises `EngineError`."""
        if engine not in self._running():
            await engine.start()
        await engine.wait_ready(SPARE_READY)

    def entered(self, engine: Engine) -> None:
        """A session begins to use ``engine``."""
        name = engine.settings.name
        self.uses[name] += 1
        if (handle := self._ending.pop(name, None)) is not None:
            handle.cancel()

    def left(self, engine: Engine) -> None:
        """A session no longer uses it; after the last one it ends in a while, if it is one of two."""
        name = engine.settings.name
        self.uses[name] = max(0, self.uses[name] - 1)
        if not self.uses[name] and name not in self._ending:
            loop = asyncio.get_running_loop()
            self._ending[name] = loop.call_later(IDLE, self._end_idle, engine)

    def _end_idle(self, engine: Engine) -> None:
        self._ending.pop(engine.settings.name, None)
        self._begin(self._end_unless_used(engine), f"end {engine.settings.name}")

    async def _end_unless_used(self, engine: Engine) -> None:
        # Here, where nothing lies between the question and the stop: both may be due at once.
        others = [one for one in self._running() if one is not engine]
        if not self.uses[engine.settings.name] and others:
            await engine.stop()

    # -- what the engines say ----------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """The installation and its engines as ``GET /comfyui`` tells them."""
        installation = self.settings.installation
        packs = self.facts["packs"] if self.facts is not None else []
        return {
            "directory": str(installation.directory),
            "python": installation.python,
            "version": installation.version,
            "classes": len(self.definitions),
            "engines": [
                {
                    "name": engine.settings.name,
                    "state": engine.state,
                    "message": engine.describe(),
                    "sessions": self.uses[engine.settings.name],
                    "restarts": engine.restarts,
                    "memory": self._memory[engine.settings.name].as_dict(),
                }
                for engine in self.engines
            ],
            "packs": [pack for pack in packs if pack.get("kind") == "custom"],
            "failed": self.failed_packs(),
        }

    def failed_packs(self) -> list[dict[str, Any]]:
        """Packs and built-in files that could not be imported, each with the reason."""
        return [pack for pack in (self.facts or {}).get("packs", []) if not pack.get("loaded")]

    def _told(self, engine: Engine, message: Message) -> None:
        what = message.body.get("what")
        if what == "memory":
            self._memory[engine.settings.name].told(message.body)
        elif what == "admit":
            self._memory[engine.settings.name].asked(message.body)
        elif what == "facts":
            try:
                blobs = Blobs(message.take_fd(), message.body.get("blobs"))
            except LinkError as error:
                log.warning("what ComfyUI says of itself cannot be read: %s", error.message)
                return
            parts = blobs.copies()
            blobs.close()
            self._begin(self._introduced(parts), "what ComfyUI says of itself")

    async def _introduced(self, parts: Mapping[str, bytes]) -> None:
        """Megabytes of JSON are read in a thread; streams go on meanwhile."""
        read = await asyncio.to_thread(self._read, parts)
        if read is None:
            log.warning("what ComfyUI says of itself makes no sense")
            return
        self.facts, definitions = read
        for pack in (one for one in self.failed_packs() if not one.get("skipped")):
            log.warning("ComfyUI's pack %s is not loaded: %s", pack.get("name"), pack.get("reason"))
        self._learn(definitions)
        self._introduced_once.set()

    def _read(self, parts: Mapping[str, bytes]) -> tuple[dict[str, Any], Definitions] | None:
        facts = read_object_info(parts.get("facts", b""))
        info = read_object_info(parts.get("object_info", b""))
        if facts is None or not isinstance(facts.get("packs"), list) or info is None:
            return None
        self._known.save(self._state, parts["object_info"], parts["facts"])
        return facts, definitions_of(info, facts)

    async def wait_introduced(self, timeout: float) -> None:
        """Return when an engine has said what the installation has. Raises `EngineError` after that time."""
        try:
            async with asyncio.timeout(timeout):
                await self._introduced_once.wait()
        except TimeoutError:
            raise EngineError(f"ComfyUI has said nothing of itself within {timeout:g} s") from None

    def _learn(self, definitions: Definitions) -> None:
        self.definitions = definitions
        self._on_definitions(definitions)

    def require(self) -> None:
        """Raise `EngineError` while nobody can know which classes there are."""
        if not self.definitions:
            raise EngineError(f"the classes of ComfyUI are not known yet: {self.first.describe()}")


def state_of(settings: ComfySettings) -> str:
    """Under which what an installation says of itself is kept."""
    return settings.installation.state(json.dumps(settings.options.as_dict()))


def last_facts(settings: ComfySettings) -> dict[str, Any] | None:
    """What an engine has said of this state of the installation when there was one."""
    return KnownClasses(settings.cache).facts(state_of(settings))


_ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/dri/renderD128", "/dev/davinci_manager")
_DEVICE_OPTIONS = ("--cpu", "--cuda-device", "--directml", "--default-device", "--oneapi-device-selector")


def _arguments(given: tuple[str, ...], device: str) -> tuple[str, ...]:
    """ComfyUI's own arguments with the device of the engine, which it chooses before torch is there."""
    named = any(argument.partition("=")[0] in _DEVICE_OPTIONS for argument in given)
    if named or sys.platform != "linux":
        return given
    if device == "cpu" or (device == "auto" and not any(Path(path).exists() for path in _ACCELERATORS)):
        return (*given, "--cpu")
    kind, _, number = device.partition(":")
    return (*given, "--cuda-device", number) if kind == "cuda" and number else given

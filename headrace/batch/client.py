"""The worker's side of the batch engine."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import headrace.models.errors  # noqa: F401 (its errors come back from the engine by their codes)
from headrace.batch.contract import Progress, Result, TimedOut
from headrace.batch.errors import Interrupted
from headrace.engine.blobs import Blobs, pack
from headrace.engine.guardian import Engine
from headrace.engine.link import Message
from headrace.engine.settings import EngineSettings
from headrace.models.ledger_service import SESSION as LEDGER
from headrace.models.ledger_service import LedgerService
from stream.errors import EngineError, HeadraceError, NotInstalled

log = logging.getLogger(__name__)

OnProgress = Callable[[Progress], None]
OnPiece = Callable[[dict[str, Any]], None]
Blob = bytes | bytearray | memoryview

_INLINE_COPY = 1024 * 1024
"""Bytes of blobs that are copied on the loop; larger ones are copied in a thread."""
_CHECK_EVERY = 2.0
_RETRY_AFTER = 5
_names = itertools.count(1)


def default_engine() -> EngineSettings:
    """An engine that leaves one core to live work and yields the others to it."""
    threads = max(1, len(os.sched_getaffinity(0)) - 1)
    return EngineSettings(name="batch", threads=threads, nice=10, call_timeout=30.0, start_timeout=180.0)


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """The batch engine and what it is told before its first request.

    ``folders``: where models lie, by the names of `headrace.models.roots.Roots` (``models``, ``hub``,
    ``cache``); those of the environment for what is not named. ``budget``: bytes that models may take (None:
    no limit). ``pipelines``: more pipelines, name to ``module:Class``.
    ``stuck_after``: seconds without a sign of life after which a request that was given up has the engine
    restarted, because its thread will not come back.
    """

    engine: EngineSettings = field(default_factory=default_engine)
    folders: Mapping[str, str] = field(default_factory=dict)
    budget: int | None = None
    pipelines: Mapping[str, str] = field(default_factory=dict)
    stuck_after: float = 120.0


class _Request:
    """One request that the engine has, from its sending to its answer."""

    def __init__(self, name: str, on_progress: OnProgress | None, on_piece: OnPiece | None) -> None:
        self.name = name
        self.answer: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()
        self.given_up: float | None = None
        self._on_progress, self._on_piece = on_progress, on_piece
        self.blobs: Blobs | None = None

    def words(self, message: Message) -> None:
        if self.given_up is not None:
            return
        told = message.body.get("progress")
        if self._on_progress is not None and isinstance(told, list) and len(told) == 4:
            phase, step, of, note = told
            self._on_progress(Progress("loading" if phase == "loading" else "running", step, of, str(note)))
        for piece in message.body.get("pieces") or ():
            if self._on_piece is not None:
                self._on_piece(piece)

    def answered(self, answer: Message | HeadraceError) -> None:
        if self.answer.done():
            return
        if isinstance(answer, HeadraceError):
            self.answer.set_exception(answer)
            # Nobody may be waiting any more.
            self.answer.exception()
            return
        try:
            fd = answer.take_fd() if answer.waiting_fds else None
            self.blobs = Blobs(fd, answer.body.get("blobs", []))
        except HeadraceError as error:
            self.answer.set_exception(error)
            self.answer.exception()
            return
        if self.given_up is not None:
            self.blobs.close()
        self.answer.set_result(answer)


class BatchEngine:
    """Requests to the engine that runs batch pipelines. Belongs to the loop of the main thread.

    ``engine``: one that others use too, and start and stop; None makes one of its own from the settings.
    """

    def __init__(
        self,
        settings: BatchSettings | None = None,
        ledger: LedgerService | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.settings = settings or BatchSettings()
        self.engine = engine or Engine(self.settings.engine)
        self._shares = engine is not None
        self._ledger = ledger
        if ledger is not None:
            name = self.engine.settings.name
            ledger.attach(name, self._ask)
            self.engine.route(LEDGER, lambda message: ledger.received(name, message))
        self.engine.subscribe(self._engine_changed)
        self._requests: dict[str, _Request] = {}
        self._told = 0
        """The generation of the engine that has been told of the models."""
        self._minder: asyncio.Task[None] | None = None
        self._kept: dict[str, str] = {}
        """Models that were made warm, and for which pipeline: the next engine loads them again."""
        self._warming: asyncio.Task[None] | None = None

    # -- life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the engine's process, if it is its own, and return at once. From the main thread only."""
        if not self._shares:
            await self.engine.start()
        if self._minder is None:
            self._minder = asyncio.create_task(self._mind(), name="batch engine")

    async def stop(self) -> None:
        """End it, if it is its own, within its ``stop_timeout`` and a moment; requests under way get
        `EngineError`."""
        tasks = [task for task in (self._minder, self._warming) if task is not None]
        self._minder = self._warming = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self._shares:
            await self.engine.stop()

    async def __aenter__(self) -> BatchEngine:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def wait_ready(self, timeout: float) -> None:
        """Raises `EngineError` after ``timeout`` seconds, `NotInstalled` when a package is missing."""
        await self.engine.wait_ready(timeout)

    @property
    def ready(self) -> bool:
        return self.engine.state == "ready"

    @property
    def under_way(self) -> int:
        """Requests that the engine still has, also those that were given up."""
        return len(self._requests)

    # -- requests --------------------------------------------------------------------------------------

    async def run(
        self,
        pipeline: str,
        model: str,
        inputs: Mapping[str, Any],
        blobs: Mapping[str, Blob] | None = None,
        *,
        on_progress: OnProgress | None = None,
        on_piece: OnPiece | None = None,
        timeout: float = 600.0,
    ) -> Result:
        """The answer of ``pipeline`` (the endpoint's name without its slash) with ``model``.

        ``on_progress`` and ``on_piece`` are called on the loop and must not wait. A cancelled task cancels
        the request in the engine. An engine that is still starting is waited for. Raises `TimedOut` (504)
        after ``timeout`` seconds, `EngineError` (503) when the engine is not there, `Interrupted` (503, send
        it again) when it dies meanwhile, and what the pipeline raised.
        """
        body: dict[str, Any] = {"pipeline": pipeline, "model": model, "inputs": dict(inputs)}
        body["streams"] = on_piece is not None
        work = self._request(body, blobs or {}, on_progress, on_piece)
        return await self._bounded(work, timeout, "the request")

    async def warm(
        self, pipeline: str, model: str, *, on_progress: OnProgress | None = None, timeout: float = 1800.0
    ) -> None:
        """Load a model and pin it in the cache, also in the engines after this one. Raises as `run` does."""
        body = {"pipeline": pipeline, "model": model, "inputs": {}, "what": "warm"}
        await self._bounded(self._request(body, {}, on_progress, None), timeout, "loading")
        self._kept[model] = pipeline

    async def unload(self, model: str) -> int:
        """Unload a model, pinned or not; the bytes that this freed.

        Raises `NotFound` when it is not loaded, `Conflict` while it is in use.
        """
        self._kept.pop(model, None)
        return int((await self._ask({"what": "unload", "model": model})).get("freed", 0))

    async def models(self) -> list[dict[str, Any]]:
        """The entries of the model cache: key, state, progress, bytes, leases, pinned, last_used, weights."""
        found: list[dict[str, Any]] = (await self._ask({"what": "models"})).get("models", [])
        return found

    async def _ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        await self._tell_models()
        answer = await self.engine.call({"op": "batch_ask", **body})
        found = answer.get("body")
        return found if isinstance(found, dict) else {}

    async def _bounded(self, work: Coroutine[Any, Any, Result], timeout: float, what: str) -> Result:
        try:
            async with asyncio.timeout(timeout) as limit:
                return await work
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimedOut(f"{what} took longer than {timeout:g} s") from None

    async def _request(
        self,
        body: Mapping[str, Any],
        blobs: Mapping[str, Blob],
        on_progress: OnProgress | None,
        on_piece: OnPiece | None,
    ) -> Result:
        await self._reach()
        await self._tell_models()
        request = _Request(f"b{next(_names)}", on_progress, on_piece)
        body = {**body, "progress": on_progress is not None}
        generation = self.engine.generation
        await self._send(request, body, blobs)
        try:
            answer = await asyncio.shield(request.answer)
        except asyncio.CancelledError:
            self._give_up(request)
            raise
        except EngineError as error:
            if self.engine.generation != generation or self.engine.state != "ready":
                raise Interrupted(
                    f"the engine ended during the request, which may be sent again: {error.message}",
                    retry_after=_RETRY_AFTER,
                ) from error
            raise
        return await _result(request, answer)

    async def _reach(self) -> None:
        """Return when the engine is ready; one that is restarting is worth a wait, a failed one is not."""
        if self.engine.state in ("starting", "restarting"):
            await self.engine.wait_ready(self.engine.settings.start_timeout)
        elif isinstance(self.engine.failure, NotInstalled):
            raise self.engine.failure

    def _engine_changed(self, engine: Engine) -> None:
        if engine.state == "ready":
            if self._kept and self._warming is None:
                self._warming = asyncio.create_task(self._warm_again(), name="warm models")
        elif self._ledger is not None:
            self._ledger.lost(engine.settings.name)

    async def _warm_again(self) -> None:
        """Load what was warm in the engine before. What fails is given up, so that a model which ends engines
        does not end one after the other."""
        try:
            for model, pipeline in tuple(self._kept.items()):
                try:
                    await self.warm(pipeline, model)
                except HeadraceError as error:
                    log.warning("model %s is no longer warm: %s", model, error.message)
                    self._kept.pop(model, None)
                    if self._ledger is not None:
                        self._ledger.failed(model, error)
        finally:
            self._warming = None

    async def _tell_models(self) -> None:
        if self._told == self.engine.generation:
            return
        self._told = self.engine.generation
        models: dict[str, Any] = {"folders": dict(self.settings.folders), "budget": self.settings.budget}
        models["ledger"] = self._ledger is not None
        pipelines = dict(self.settings.pipelines)
        try:
            await self.engine.call({"op": "batch_set", "models": models, "pipelines": pipelines})
        except BaseException:
            # Told again before the next request: it would look for its model in other folders.
            self._told = 0
            raise

    async def _send(self, request: _Request, body: Mapping[str, Any], blobs: Mapping[str, Blob]) -> None:
        if sum(memoryview(blob).nbytes for blob in blobs.values()) > _INLINE_COPY:
            packing = asyncio.ensure_future(asyncio.to_thread(pack, blobs))
            try:
                fd, index = await asyncio.shield(packing)
            except asyncio.CancelledError:
                packing.add_done_callback(_close_packed)
                raise
        else:
            fd, index = pack(blobs)
        self._requests[request.name] = request
        self.engine.route(request.name, request.words)
        try:
            self.engine.request(
                {"op": "batch", "session": request.name, "blobs": index, **body},
                request.answered,
                [] if fd is None else [fd],
            )
        except BaseException:
            self._forget(request)
            raise
        finally:
            if fd is not None:
                os.close(fd)
        request.answer.add_done_callback(lambda _: self._forget(request))

    def _forget(self, request: _Request) -> None:
        self._requests.pop(request.name, None)
        self.engine.route(request.name, None)

    def _give_up(self, request: _Request) -> None:
        """Nobody waits any more: the engine is told, and its answer, when it comes, thrown away."""
        request.given_up = time.monotonic()
        if request.answer.done():
            if request.blobs is not None:
                request.blobs.close()
            return
        body = {"op": "batch_cancel", "session": request.name}
        with contextlib.suppress(EngineError):  # it is gone, and the request with it
            self.engine.request(body, _ignore)

    # -- minding ---------------------------------------------------------------------------------------

    async def _mind(self) -> None:
        """While requests are under way ask the engine's loop whether it turns, and end an engine in which a
        request that was given up goes on without a sign of life."""
        while True:
            await asyncio.sleep(_CHECK_EVERY)
            if not self._requests or self.engine.state != "ready":
                continue
            try:
                # One that does not answer is found and ended by its guardian.
                found = (await self.engine.call({"op": "batch_ask", "what": "check"})).get("body", {})
            except HeadraceError as error:
                log.debug("the batch engine did not answer: %s", error.message)
                continue
            silent = found.get("silent", {})
            now, patience = time.monotonic(), self.settings.stuck_after
            for request in tuple(self._requests.values()):
                if request.given_up is None or now - request.given_up < patience:
                    continue
                if silent.get(request.name, 0.0) > patience:
                    self.engine.condemn(f"works on a request that was given up {patience:g} s ago")
                    break


async def _result(request: _Request, answer: Message | None) -> Result:
    assert answer is not None
    assert request.blobs is not None
    blobs = request.blobs
    body = answer.body.get("body")
    if not isinstance(body, dict):
        blobs.close()
        raise EngineError("the engine answered a request without a body")
    try:
        if blobs.size > _INLINE_COPY:
            return Result(body, await asyncio.to_thread(blobs.copies))
        return Result(body, blobs.copies())
    finally:
        blobs.close()


def _close_packed(packing: asyncio.Future[tuple[int | None, Any]]) -> None:
    if not packing.cancelled() and packing.exception() is None and (fd := packing.result()[0]) is not None:
        os.close(fd)


def _ignore(answer: Message | HeadraceError) -> None:
    """For calls whose answer says nothing."""

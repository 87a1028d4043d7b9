"""The worker's part in sharing weights: it starts one holder for each device that an engine has, watches it,
starts it again, and ends it. What holders do is in `headrace.models.holder`."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from headrace.engine.child import why
from headrace.engine.guardian import Engine
from headrace.engine.policy import Backoff
from headrace.models.sharing import address_of

log = logging.getLogger(__name__)

Mode = Literal["auto", "on", "off"]
KINDS: Mapping[Mode, tuple[str, ...]] = {"auto": ("cuda",), "on": ("cuda", "cpu"), "off": ()}
"""Kinds of devices that get a holder; on a CPU mapped files share already."""
STOP = 0.5
"""Seconds for a holder to end after SIGTERM, and again after SIGKILL."""
_SOUND = 2.0
"""Seconds after which a holder that ended is not one that cannot start."""
_BACKLOG = 16
_ROOT = Path(__file__).resolve().parents[2]


class HolderService:
    """Belongs to the loop of the main thread. ``mode``: ``auto`` (CUDA alone), ``on`` or ``off``."""

    def __init__(self, mode: Mode = "auto") -> None:
        prefix = f"@headrace-weights-{os.getpid()}-{secrets.token_hex(8)}"
        self.addresses: dict[str, str] = dict.fromkeys(KINDS[mode], prefix)
        """For `EngineSettings.holders` of every engine that is to share."""
        self._holders: dict[str, _Holder] = {}
        self._closed = False

    def watch(self, engine: Engine) -> None:
        """Have a holder run for the device of ``engine`` from the moment that it is ready."""
        engine.subscribe(self._changed)

    def ensure(self, device: str) -> None:
        """Start the holder of ``device`` (``cuda:0``) unless it is there, or the mode wants none."""
        prefix = self.addresses.get(device.partition(":")[0])
        if prefix is not None and device not in self._holders and not self._closed:
            self._holders[device] = _Holder(device, address_of(prefix, device))

    def report(self) -> dict[str, Any]:
        """Holders by device: ``state`` (``running``, ``restarting``, ``failed``), ``pid``, ``restarts``,
        ``last_exit``."""
        return {device: holder.report() for device, holder in sorted(self._holders.items())}

    async def close(self) -> None:
        """End all holders, within twice `STOP` and a moment."""
        self._closed = True
        await asyncio.gather(*(holder.stop() for holder in self._holders.values()))
        self._holders.clear()

    def _changed(self, engine: Engine) -> None:
        if engine.state == "ready" and engine.facts is not None and engine.settings.holders:
            self.ensure(engine.facts.device)


class _Holder:
    """The holder of one device, started again whenever it ends."""

    def __init__(self, device: str, address: str) -> None:
        self._device = device
        self._address = address
        self._state = "restarting"
        self._pid: int | None = None
        self._restarts = 0
        self._last_exit = ""
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self._supervise(), name=f"holder {device}")

    def report(self) -> dict[str, Any]:
        facts = {"state": self._state, "pid": self._pid, "restarts": self._restarts}
        return {**facts, "last_exit": self._last_exit}

    async def stop(self) -> None:
        self._stopping.set()
        await asyncio.wait({self._task})
        if (error := self._task.exception()) is not None:
            raise error

    async def _supervise(self) -> None:
        backoff = Backoff(first=0.1, ceiling=15.0, stable_after=30.0, attempts=5)
        while not self._stopping.is_set():
            begun = time.monotonic()
            try:
                await self._run()
            except OSError as error:
                self._last_exit = f"cannot be started: {error}"
            self._pid = None
            if self._stopping.is_set():
                break
            lived = time.monotonic() - begun
            delay = backoff.ended(lived if lived >= _SOUND else None)
            self._state = "failed" if backoff.failed else "restarting"
            log.error(
                "the holder of weights on %s %s; engines load their own until it is back",
                self._device,
                self._last_exit,
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()
            self._restarts += not self._stopping.is_set()

    async def _run(self) -> None:
        """One process, to its end or ours. Raises `OSError` when there is none to be had."""
        process = await self._spawn()
        self._pid, self._state = process.pid, "running"
        stop = asyncio.create_task(self._stopping.wait())
        reading = asyncio.create_task(self._read(process))
        ended = asyncio.create_task(process.wait())
        try:
            await asyncio.wait({stop, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            if not ended.done():
                await _end(process, ended)
            # What it had started could have its output open.
            await asyncio.wait({reading}, timeout=STOP)
            reading.cancel()
            await asyncio.gather(stop, reading, return_exceptions=True)
            _clear_counters(process.pid)
        self._last_exit = why(process.returncode if process.returncode is not None else -signal.SIGKILL)

    async def _spawn(self) -> asyncio.subprocess.Process:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            # A name without a file: it is free again when its holder has ended, however that was.
            listener.bind("\0" + self._address.removeprefix("@"))
            listener.listen(_BACKLOG)
            fd = listener.fileno()
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "headrace.models.holder",
                f"--fd={fd}",
                f"--parent={os.getpid()}",
                f"--device={self._device}",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(fd,),
                cwd=_ROOT,
                start_new_session=True,
            )

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while data := await process.stdout.read(16 * 1024):
            for line in data.decode(errors="replace").splitlines():
                log.info("[holder %s %d] %s", self._device, process.pid, line)


async def _end(process: asyncio.subprocess.Process, ended: asyncio.Task[int]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        await asyncio.wait({ended}, timeout=STOP)
        if ended.done():
            return
    log.error("the holder of weights (process %d) does not die; leaving it", process.pid)
    ended.cancel()


def _clear_counters(pid: int) -> None:
    """Remove the files in which torch counts the users of CUDA memory, which a killed process leaves."""
    for path in glob.glob(f"/dev/shm/torch_{pid}_*"):
        with contextlib.suppress(OSError):
            os.unlink(path)

"""The ICE connection under one aiortc transport, which can be exchanged while media goes on.

An `IceConnection` takes the place of aioice's `Connection`. It holds one `Generation` (an aioice connection),
and a second one during a restart (RFC 8445, section 9), which aiortc 1.16 does not know.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable

from aioice import Candidate
from aioice.ice import ConnectionClosed, ConnectionEvent

from stream.webrtc.adapter.generation import Generation
from stream.webrtc.ice import IceSettings

log = logging.getLogger(__name__)

MAX_PACKETS = 4096
RESTART_TIMEOUT = 20.0
LINGER = 0.5
"""Seconds for which the old path is still read after a restart."""
MAX_LEFT_OUT = 8


class IceConnection:
    """What aiortc's transports take for an aioice `Connection`: the generation in use, and one to come."""

    def __init__(
        self,
        settings: IceSettings,
        *,
        username: str | None,
        password: str | None,
        only_receives: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings = settings
        self._only_receives = only_receives
        self._current = Generation(self, local_username=username, local_password=password)
        self._next: Generation | None = None
        self._restarting = asyncio.Lock()
        self._preparing: asyncio.Task[None] | None = None
        self._restart: asyncio.Task[None] | None = None
        self._close_task: asyncio.Task[None] | None = None
        self._packets: deque[bytes] = deque()
        self._receiver: asyncio.Future[None] | None = None
        self._watcher: asyncio.Future[ConnectionEvent] | None = None
        self._ended = False
        self.dropped = 0
        """Packets that came faster than they were read."""
        self.restarts = 0
        self.authenticated = 0
        """Packets that passed SRTP."""
        self.left_out: deque[str] = deque(maxlen=MAX_LEFT_OUT)
        """Candidates of the other side that cannot be used, and why."""

    # -- for aiortc, with aioice's names ---------------------------------------------------------------

    @property
    def _latest(self) -> Generation:
        return self._next or self._current

    @property
    def ice_controlling(self) -> bool:
        return self._current.ice_controlling

    @ice_controlling.setter
    def ice_controlling(self, value: bool) -> None:
        self._current.ice_controlling = value

    @property
    def remote_is_lite(self) -> bool:
        return self._latest.remote_is_lite

    @remote_is_lite.setter
    def remote_is_lite(self, value: bool) -> None:
        self._current.remote_is_lite = value

    @property
    def remote_username(self) -> str | None:
        return self._latest.remote_username

    @remote_username.setter
    def remote_username(self, value: str | None) -> None:
        self._current.remote_username = value

    @property
    def remote_password(self) -> str | None:
        return self._latest.remote_password

    @remote_password.setter
    def remote_password(self, value: str | None) -> None:
        self._current.remote_password = value

    @property
    def local_username(self) -> str:
        return self._latest.local_username

    @property
    def local_password(self) -> str:
        return self._latest.local_password

    @property
    def local_candidates(self) -> list[Candidate]:
        return self._latest.local_candidates

    @property
    def remote_candidates(self) -> list[Candidate]:
        return self._latest.remote_candidates

    async def gather_candidates(self) -> None:
        await self._current.gather_candidates()

    async def add_remote_candidate(self, remote_candidate: Candidate | None) -> None:
        await self._latest.add_remote_candidate(remote_candidate)

    async def connect(self) -> None:
        """Until a path is nominated; raises `ConnectionError` when there will be none."""
        first = self._current
        try:
            await first.connect()
        except ConnectionError:
            if self._restart is not None:
                await asyncio.wait({self._restart})
            if self._current is first or self._ended:
                raise

    async def recv(self) -> bytes:
        """The next datagram; raises `ConnectionError` at the end."""
        while not self._packets:
            if self._ended:
                raise ConnectionError("the ICE connection has ended")
            self._receiver = asyncio.get_running_loop().create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None
        return self._packets.popleft()

    async def send(self, data: bytes) -> None:
        """Raises `ConnectionError` when no path stands."""
        await self._current.sendto(data, 1)

    async def get_event(self) -> ConnectionEvent:
        if self._ended:
            # aiortc asks until it hears of the end, without a pause.
            return ConnectionClosed()
        self._watcher = asyncio.get_running_loop().create_future()
        return await self._watcher

    async def close(self) -> None:
        """Close every socket, in a bounded time whatever becomes of the caller; safe to call twice."""
        self._end()
        if self._close_task is None:
            self._close_task = asyncio.create_task(self._close_all())
        await asyncio.shield(self._close_task)

    async def _close_all(self) -> None:
        tasks = {task for task in (self._preparing, self._restart) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        async with self._restarting:
            # Whoever waited for it has seen that this is the end.
            generations = [g for g in (self._next, self._current) if g is not None]
        await asyncio.gather(*(generation.close() for generation in generations))

    # -- for the generations ---------------------------------------------------------------------------

    def only_receives(self) -> bool:
        return self._only_receives()

    def arrived(self, data: bytes) -> None:
        if len(self._packets) >= MAX_PACKETS:
            self.dropped += 1
            return
        self._packets.append(data)
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)

    def lost(self, generation: Generation) -> None:
        """A path is gone; with a restart under way it is up to that."""
        if generation is self._current and self._next is None:
            self._end()

    def _end(self) -> None:
        self._ended = True
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)
        if self._watcher is not None and not self._watcher.done():
            self._watcher.set_result(ConnectionClosed())

    # -- restart ---------------------------------------------------------------------------------------

    async def restart(self, username: str, password: str, candidates: Iterable[Candidate]) -> None:
        """Begin a restart with the other side's new credentials; returns when ours can be answered.

        It is finished in the background; when it fails, the old path stays in use. Raises
        `ConnectionError` when this connection has ended.
        """
        async with self._restarting:
            self._check_alive()
            await self._give_up_restart()
            new = Generation(self, ice_controlling=self._current.ice_controlling)
            new.remote_is_lite = self._current.remote_is_lite
            new.remote_username, new.remote_password = username, password
            try:
                self._check_alive()
                self._preparing = asyncio.create_task(_prepare(new, candidates))
                await self._preparing
                self._check_alive()
            except BaseException as error:
                await new.close()
                if isinstance(error, asyncio.CancelledError) and not _cancelled():
                    raise ConnectionError("the ICE connection has ended") from None
                raise
            self._next = new
            self._restart = asyncio.create_task(self._change_to(new))

    def _check_alive(self) -> None:
        if self._ended:
            raise ConnectionError("the ICE connection has ended")

    async def _give_up_restart(self) -> None:
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.wait({self._restart})
            self._restart = None

    async def _change_to(self, new: Generation) -> None:
        unused: Generation = new
        try:
            async with asyncio.timeout(RESTART_TIMEOUT):
                await new.connect()
            unused, self._current, self._next = self._current, new, None
            self.restarts += 1
            await asyncio.sleep(LINGER)
        except (ConnectionError, TimeoutError):
            log.info("an ICE restart found no path; the old one stays in use")
        finally:
            if self._next is new:
                self._next = None
            try:
                await unused.close()
            finally:
                if self._current.ended:
                    self._end()


async def _prepare(new: Generation, candidates: Iterable[Candidate]) -> None:
    await new.gather_candidates()
    for candidate in candidates:
        await new.add_remote_candidate(candidate)


def _cancelled() -> bool:
    """Whether the running task is asked to end, and not only one that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

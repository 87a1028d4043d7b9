"""The ICE connection under one aiortc transport, which can be exchanged while media goes on.

An `IceConnection` takes the place of aioice's `Connection`. It holds one `Generation` (an aioice connection),
and a second one during a restart (RFC 8445, section 9), which aiortc 1.16 does not know.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable

from aioice import Candidate, Connection
from aioice.candidate import candidate_priority
from aioice.ice import CONSENT_FAILURES, CONSENT_INTERVAL, ConnectionClosed, ConnectionEvent, StunProtocol
from aioice.mdns import is_mdns_hostname
from aioice.stun import Message, TransactionError

from stream.webrtc.adapter.gathering import gather
from stream.webrtc.ice import IceSettings

log = logging.getLogger(__name__)

MAX_REMOTE = 64
"""Candidates of the other side that are paired; more would only delay the useful ones."""
MAX_PACKETS = 4096
RESTART_TIMEOUT = 20.0
LINGER = 0.5
"""Seconds for which the old path is still read after a restart."""
RESOLVE_TIMEOUT = 5.0


class Generation(Connection):
    """One run of ICE, from its credentials to its end."""

    def __init__(
        self,
        owner: IceConnection,
        *,
        ice_controlling: bool = False,
        local_username: str | None = None,
        local_password: str | None = None,
    ) -> None:
        super().__init__(
            ice_controlling, local_username=local_username, local_password=local_password, components=1
        )
        self._owner = owner
        self._lookups: set[asyncio.Task[None]] = set()
        self._received = 0

    @property
    def ended(self) -> bool:
        return self._closed

    async def gather_candidates(self) -> None:
        """Host candidates, then those that servers give within the settings' time."""
        if not self._local_candidates_start:
            self._local_candidates_start = True
            self._local_candidates = await gather(self, self._protocols, self._owner.settings)
            self._local_candidates_end = True

    async def add_remote_candidate(self, remote_candidate: Candidate | None) -> None:
        """Pair a candidate. What cannot be used is left out; names ending in .local are resolved meanwhile.

        The end of candidates is not passed on: a peer whose candidates we cannot use may still reach us
        (RFC 8863), and how long that may take is limited elsewhere.
        """
        if remote_candidate is None or self._closing:
            return
        if remote_candidate.transport.lower() != "udp" or remote_candidate.component != 1:
            return
        if len(self._remote_candidates) + len(self._lookups) >= MAX_REMOTE:
            log.info("a candidate beyond the %d that are taken is left out", MAX_REMOTE)
        elif is_mdns_hostname(remote_candidate.host):
            task = asyncio.create_task(self._look_up(remote_candidate))
            self._lookups.add(task)
            task.add_done_callback(self._lookups.discard)
        else:
            await super().add_remote_candidate(remote_candidate)

    async def connect(self) -> None:
        await super().connect()
        # aioice begins to ask for consent even when it was closed a moment after a path was found.
        if self._closing:
            if self._query_consent_task is not None:
                self._query_consent_task.cancel()
            raise ConnectionError("the ICE connection was closed")

    async def _look_up(self, candidate: Candidate) -> None:
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT):
                await super().add_remote_candidate(candidate)
        except (OSError, TimeoutError) as error:
            log.info("%s cannot be looked up here: %s", candidate.host, error)

    async def close(self) -> None:
        for task in self._lookups:
            task.cancel()
        if self._lookups:
            await asyncio.wait(self._lookups)
        await super().close()

    def check_incoming(self, message: Message, addr: tuple[str, int], protocol: StunProtocol) -> None:
        # FFmpeg's WHIP muxer sends none, which RFC 8445 (7.1.1) demands; aioice trusts that it is there.
        message.attributes.setdefault("PRIORITY", candidate_priority(1, "prflx"))
        super().check_incoming(message, addr, protocol)

    async def query_consent(self) -> None:
        """Ask again and again whether the other side still wants packets (RFC 7675); close when it is silent.

        FFmpeg's WHIP muxer answers no check once it is connected. From a peer that only publishes, whose
        consent we need for a little RTCP alone, media that arrives is taken for an answer.
        """
        assert self.remote_password is not None
        key, failures = self.remote_password.encode(), 0
        while failures < CONSENT_FAILURES:
            received = self._received
            await asyncio.sleep(CONSENT_INTERVAL * (0.8 + 0.4 * random.random()))
            for pair in list(self._nominated.values()):
                request = self.build_request(pair, nominate=False)
                try:
                    await pair.protocol.request(request, pair.remote_addr, key, retransmissions=0)
                    failures = 0
                except TransactionError:
                    failures += 1
            if self._received > received and self._owner.only_receives():
                failures = 0
        log.info("%s: the other side no longer answers", self)
        self._query_consent_task = None
        await self.close()

    def data_received(self, data: bytes, component: int) -> None:
        self._received += 1
        self._owner.arrived(data)

    def protocol_lost(self, protocol: StunProtocol) -> None:
        if any(pair.protocol is protocol for pair in self._nominated.values()):
            self._owner.lost(self)

    def _emit_event(self, event: ConnectionEvent) -> None:
        self._owner.lost(self)


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
        self.only_receives = only_receives
        self._current = Generation(self, local_username=username, local_password=password)
        self._next: Generation | None = None
        self._restart: asyncio.Task[None] | None = None
        self._packets: deque[bytes] = deque()
        self._receiver: asyncio.Future[None] | None = None
        self._watcher: asyncio.Future[ConnectionEvent] | None = None
        self._ended = False
        self.dropped = 0
        """Packets that came faster than they were read."""
        self.restarts = 0

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

    async def get_event(self) -> ConnectionEvent | None:
        if self._ended:
            return None
        self._watcher = asyncio.get_running_loop().create_future()
        return await self._watcher

    async def close(self) -> None:
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.wait({self._restart})
        if self._next is not None:
            await self._next.close()
        await self._current.close()
        self._end()

    # -- for the generations ---------------------------------------------------------------------------

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
        self._check_alive()
        await self._give_up_restart()
        new = Generation(self, ice_controlling=self._current.ice_controlling)
        new.remote_is_lite = self._current.remote_is_lite
        new.remote_username, new.remote_password = username, password
        try:
            await new.gather_candidates()
            for candidate in candidates:
                await new.add_remote_candidate(candidate)
            self._check_alive()
        except BaseException:
            await new.close()
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
            await unused.close()
            if self._current.ended:
                self._end()

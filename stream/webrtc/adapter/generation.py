"""One run of ICE between a pair of credentials: aioice's `Connection`, changed where a server needs it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable
from typing import Any, Protocol

from aioice import Candidate, Connection
from aioice.candidate import candidate_priority
from aioice.ice import CONSENT_FAILURES, CONSENT_INTERVAL, ConnectionEvent, StunProtocol
from aioice.mdns import is_mdns_hostname
from aioice.stun import Message, TransactionError
from aioice.turn import TurnTransport

from stream.webrtc.adapter.gathering import gather
from stream.webrtc.ice import IceSettings, why_unusable

log = logging.getLogger(__name__)

MAX_REMOTE = 64
"""Candidates of the other side that are paired; more would only delay the useful ones."""
RESOLVE_TIMEOUT = 5.0
GOODBYE = 0.4
"""Seconds in which a TURN server may answer that it has freed what we had."""


class Owner(Protocol):
    """Whose generation it is."""

    settings: IceSettings
    authenticated: int
    left_out: Any

    def only_receives(self) -> bool: ...
    def arrived(self, data: bytes) -> None: ...
    def lost(self, generation: Generation) -> None: ...


class Generation(Connection):
    """One run of ICE, from its credentials to its end."""

    def __init__(
        self,
        owner: Owner,
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
        self._close_task: asyncio.Task[None] | None = None

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
        named = is_mdns_hostname(remote_candidate.host)
        reason = None if named else why_unusable(remote_candidate.host, remote_candidate.port)
        if reason is not None:
            self._leave_out(remote_candidate, reason)
            return
        if len(self._remote_candidates) + len(self._lookups) >= MAX_REMOTE:
            log.info("a candidate beyond the %d that are taken is left out", MAX_REMOTE)
        elif named:
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
        if not self._closing and all(known.host != candidate.host for known in self._remote_candidates):
            self._leave_out(candidate, "its name is not known here")

    def _leave_out(self, candidate: Candidate, reason: str) -> None:
        left_out = f"{candidate.type} {candidate.host[:80]}:{candidate.port} ({reason})"
        log.info("a candidate is left out: %s", left_out)
        self._owner.left_out.append(left_out)

    async def close(self) -> None:
        """Close the sockets, in a bounded time whatever becomes of the caller; safe to call twice."""
        if self._close_task is None:
            self._close_task = asyncio.create_task(self._close_all())
        await asyncio.shield(self._close_task)

    async def _close_all(self) -> None:
        for task in self._lookups:
            task.cancel()
        if self._lookups:
            await asyncio.wait(self._lookups)
        relays = [p.transport for p in self._protocols if isinstance(p.transport, TurnTransport)]
        for relay in relays:
            relay.close()
        # aioice goes on for a minute to say good-bye to a TURN server that does not answer.
        enough = asyncio.get_running_loop().call_later(GOODBYE, _give_up, relays)
        try:
            await super().close()
        finally:
            enough.cancel()

    def check_incoming(self, message: Message, addr: tuple[str, int], protocol: StunProtocol) -> None:
        # FFmpeg's WHIP muxer sends none, which RFC 8445 (7.1.1) demands; aioice trusts that it is there.
        message.attributes.setdefault("PRIORITY", candidate_priority(1, "prflx"))
        super().check_incoming(message, addr, protocol)

    async def query_consent(self) -> None:
        """Ask again and again whether the other side still wants packets (RFC 7675); close when it is silent.

        FFmpeg's WHIP muxer answers no check once it is connected. From a peer that only publishes, whose
        consent we need for a little RTCP alone, media that arrives is taken for an answer: what has passed
        SRTP, for anybody can send other packets.
        """
        assert self.remote_password is not None
        key, failures = self.remote_password.encode(), 0
        while failures < CONSENT_FAILURES:
            received = self._owner.authenticated
            await asyncio.sleep(CONSENT_INTERVAL * (0.8 + 0.4 * random.random()))
            for pair in list(self._nominated.values()):
                request = self.build_request(pair, nominate=False)
                try:
                    await pair.protocol.request(request, pair.remote_addr, key, retransmissions=0)
                    failures = 0
                except TransactionError:
                    failures += 1
            if self._owner.authenticated > received and self._owner.only_receives():
                failures = 0
        log.info("%s: the other side no longer answers", self)
        self._query_consent_task = None
        await self.close()

    def data_received(self, data: bytes, component: int) -> None:
        self._owner.arrived(data)

    def protocol_lost(self, protocol: StunProtocol) -> None:
        if any(pair.protocol is protocol for pair in self._nominated.values()):
            self._owner.lost(self)

    def _emit_event(self, event: ConnectionEvent) -> None:
        self._owner.lost(self)


def _give_up(relays: Iterable[Any]) -> None:
    """Let go of allocations without an answer; their servers free them when they expire (RFC 8656, 6)."""
    for relay in relays:
        for task in (relay._TurnTransport__close_task, *relay._TurnTransport__send_tasks):
            task.cancel()
        relay._TurnTransport__inner_protocol.transport.abort()

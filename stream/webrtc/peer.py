"""One WebRTC peer from its offer to its end: what it publishes, what it watches, its data channels."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from aiortc import InvalidAccessError, InvalidStateError
from aiortc.exceptions import InternalError, OperationError

from stream.errors import Conflict, HeadraceError, InvalidInput
from stream.ingest import Ingest
from stream.session import Session
from stream.webrtc.adapter.ice import candidate_lines, parse_candidate
from stream.webrtc.adapter.media import MediaConnection
from stream.webrtc.bitrate import RECEIVING, ReceiveLimit, ReceiveSettings
from stream.webrtc.channels import DataChannel
from stream.webrtc.ice import IceSettings
from stream.webrtc.negotiation import Negotiated, complete_answer, negotiate, read_credentials
from stream.webrtc.publisher import Publisher
from stream.webrtc.viewer import Viewer

log = logging.getLogger(__name__)

State = Literal["new", "connecting", "connected", "disconnected", "failed", "closed"]
Channels = Callable[[str, DataChannel], None]

GATHER_MARGIN = 5.0
"""Seconds beyond the gathering of candidates in which an offer is answered."""
SILENT = 6.0
"""Seconds without RTP and RTCP, of which reports come every second, after which a peer is disconnected."""
DTLS_FAILED = (
    "a path was found, but DTLS failed: the certificate is not that of the offer's fingerprint, or of a "
    "curve that OpenSSL refuses. FFmpeg's GnuTLS builds make a P-224 one: give its WHIP muxer cert_file and "
    "key_file with a P-256 key"
)


class Peer:
    """One `RTCPeerConnection`, from an offer to its end. Belongs to the loop.

    ``on_closed`` is called once, when nothing of it is left.
    """

    def __init__(
        self,
        ice: IceSettings,
        *,
        on_closed: Callable[[Peer], None],
        receiving: ReceiveSettings = RECEIVING,
    ) -> None:
        self.id = secrets.token_urlsafe(18)
        self.ice_ufrag = self.ice_pwd = ""
        self.remote_ufrag = ""
        self.failure: str | None = None
        self.reason: str | None = None
        """Why it was closed, in words."""
        self._ice = ice
        self._on_closed = on_closed
        self._receiving = receiving
        self._connection: MediaConnection | None = None
        self._publisher: Publisher | None = None
        self._viewer: Viewer | None = None
        self._waiting: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._channels: Channels | None = None
        self._closed = False
        self._done = asyncio.Event()
        self._since = time.monotonic()
        self._connected_after: float | None = None

    # -- signalling ------------------------------------------------------------------------------------

    async def answer(
        self,
        offer: str,
        *,
        receive: Ingest | None = None,
        send: Session | None = None,
        channels: Channels | None = None,
    ) -> str:
        """The answer to an offer (SDP), with our candidates.

        What the other side sends goes to ``receive``, what ``send`` puts out goes to it; ``channels`` gets
        the label of each data channel that it opens, and the channel. Raises `InvalidInput` or
        `Unprocessable` for the offer, `NotInstalled` at an aiortc that is not known, `Conflict` when called
        again or after `close`.
        """
        if self._connection is not None or self._closed:
            raise Conflict("a peer answers one offer")
        running = [sink.rendition for sink in send.sinks if sink.rendition] if send is not None else []
        negotiated = negotiate(
            offer,
            receive=receive is not None,
            send=send is not None,
            channels=channels is not None,
            running=running,
        )
        self.remote_ufrag, _ = read_credentials(negotiated.offer)
        self._channels = channels
        self._connection = connection = MediaConnection(self._ice)
        connection.on("connectionstatechange", self._changed)
        connection.on("datachannel", self._opened)
        try:
            async with asyncio.timeout(self._ice.gather_timeout + GATHER_MARGIN):
                text = await self._apply(connection, negotiated, receive, send)
        except TimeoutError:
            await self.close("no answer in time")
            raise InvalidInput("the offer could not be answered in time", field="sdp") from None
        except BaseException:
            await self.close("its offer could not be answered")
            raise
        answer = complete_answer(text, negotiated)
        self.ice_ufrag, self.ice_pwd = read_credentials(answer)
        return answer

    async def _apply(
        self,
        connection: MediaConnection,
        negotiated: Negotiated,
        receive: Ingest | None,
        send: Session | None,
    ) -> str:
        try:
            text = await connection.apply(
                negotiated,
                self._receiving.start,
                lambda: self._connect_media(connection, negotiated, receive, send),
            )
        except (
            ValueError,
            AssertionError,
            InvalidAccessError,
            InvalidStateError,
            InternalError,
            OperationError,
        ) as error:
            if self._closed:
                raise Conflict("the peer was closed before it was answered") from error
            raise InvalidInput(f"the offer cannot be answered: {error}", field="sdp") from error
        return text

    def _connect_media(
        self,
        connection: MediaConnection,
        negotiated: Negotiated,
        receive: Ingest | None,
        send: Session | None,
    ) -> None:
        """Put our ends to aiortc's senders and receivers; they begin when all of them are started."""
        ins = {kind: negotiated.receiving(kind) for kind in ("video", "audio")}
        outs = {kind: negotiated.sending(kind) for kind in ("video", "audio")}
        receivers = {kind: connection.receiver(s.mid) for kind, s in ins.items() if s is not None}
        senders = {kind: connection.sender(s.mid) for kind, s in outs.items() if s is not None}
        for kind, receiver in receivers.items():
            self._waiting.add(f"{kind} in")
            receiver.on_started = lambda kind=kind: self._started(f"{kind} in")
            receiver.limit = ReceiveLimit(self._receiving)
        for kind, sender in senders.items():
            self._waiting.add(f"{kind} out")
            sender.on_started = lambda kind=kind: self._started(f"{kind} out")
        if receive is not None and receivers:
            video = ins["video"].video if ins["video"] is not None else None
            self._publisher = Publisher(
                receive,
                self.id[:8],
                video=receivers.get("video"),
                audio=receivers.get("audio"),
                parameter_sets=video.parameter_sets if video is not None else "",
                on_replaced=lambda: self._close_later("another publisher took over, or the session ended"),
            )
        if send is not None and senders:
            video = outs["video"].video if outs["video"] is not None else None
            self._viewer = Viewer(
                send,
                video=senders.get("video"),
                audio=senders.get("audio"),
                rendition=video.rendition if video is not None else None,
                on_ended=self._close_later,
            )

    def add_candidate(self, line: str, mid: str | None) -> None:
        """A candidate of the other side (RFC 8839, 5.1); raises `InvalidInput`. All media share one path,
        so ``mid`` says nothing."""
        if line.strip() in ("", "a=candidate:", "candidate:"):
            return
        candidate = parse_candidate(line)
        if self._connection is not None and not self._closed:
            self._spawn(self._connection.ice.add_remote_candidate(candidate))

    def end_of_candidates(self) -> None:
        """There will be no more candidates."""
        if self._connection is not None and not self._closed:
            self._spawn(self._connection.ice.add_remote_candidate(None))

    async def restart_ice(
        self, ufrag: str, password: str, candidates: Sequence[str]
    ) -> tuple[str, str, list[str]]:
        """Begin an ICE restart (RFC 8445, 9) with the other side's new credentials and candidates.

        Returns our new ones. Raises `InvalidInput` for a candidate, `Conflict` when the connection has ended.
        """
        parsed = [parse_candidate(line) for line in candidates]
        if self._connection is None or self._closed:
            raise Conflict("the connection has ended")
        connection = self._connection.ice
        try:
            async with asyncio.timeout(self._ice.gather_timeout + GATHER_MARGIN):
                await connection.restart(ufrag, password, parsed)
        except (ConnectionError, TimeoutError) as error:
            raise Conflict(f"the connection cannot be restarted: {error or 'no answer in time'}") from error
        self.remote_ufrag = ufrag
        self.ice_ufrag, self.ice_pwd = connection.local_username, connection.local_password
        return self.ice_ufrag, self.ice_pwd, candidate_lines(connection)

    # -- its state -------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        if self._closed:
            return "closed"
        if self._connection is None:
            return "new"
        state: State = self._connection.connectionState  # type: ignore[assignment]
        if state == "connected" and time.monotonic() - self._connection.dtls.heard_at > SILENT:
            has_media = self._publisher is not None or self._viewer is not None
            return "disconnected" if has_media else state
        return state

    def describe_paths(self) -> str | None:
        """Which candidates are tried, and what helps when none of them connects."""
        if self._connection is None or not self._connection.getTransceivers():
            return None
        return self._connection.describe_failure()

    def report(self) -> dict[str, Any]:
        """Formats, rates, losses and feedback, of what comes in and what goes out."""
        report: dict[str, Any] = {"reason": self.reason, "failure": self.failure}
        if self._connected_after is not None:
            report["connected_after_ms"] = round(self._connected_after * 1000)
        if self._publisher is not None:
            report["in"] = self._publisher.report()
        if self._viewer is not None:
            report["out"] = self._viewer.report()
        if self._connection is not None and self._connection.getTransceivers():
            report["malformed"] = self._connection.dtls.malformed
        return report

    def timings(self) -> list[list[float]]:
        """The pictures sent since this was last called: the RTP timestamp with which the source came, that
        with which it was sent, and the ms from its last packet to that moment.

        The first is of this peer's own stream where it publishes; pictures without a source are left out.
        """
        found: list[list[float]] = []
        if self._viewer is None:
            return found
        while self._viewer.timings:
            source, sent, spent = self._viewer.timings.popleft()
            if source is None:
                continue
            came = self._publisher.timeline.rtp(source) if self._publisher is not None else None
            found.append([source & 0xFFFF_FFFF if came is None else came, sent, round(spent, 2)])
        return found

    async def close(self, reason: str) -> None:
        """Leave the session and close the connection, within a few seconds; safe to call twice."""
        if self._closed:
            await self._done.wait()
            return
        self._closed, self.reason = True, self.reason or reason
        try:
            if self._viewer is not None:
                self._viewer.close()
            if self._publisher is not None:
                self._publisher.close(reason)
            current = asyncio.current_task()
            others = [task for task in self._tasks if task is not current]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            if self._connection is not None:
                await self._connection.close()
        except (ConnectionError, OSError) as error:
            log.info("peer %s did not close cleanly: %s", self.id[:8], error)
        finally:
            self._done.set()
            self._on_closed(self)

    # -- what aiortc tells -----------------------------------------------------------------------------

    def _changed(self) -> None:
        assert self._connection is not None
        state = self._connection.connectionState
        log.debug("peer %s is %s", self.id[:8], state)
        if state == "connected" and self._connected_after is None:
            self._connected_after = time.monotonic() - self._since
        elif state == "failed" and self.failure is None:
            self.failure = self._why_failed(self._connection)
            log.info("peer %s failed: %s", self.id[:8], self.failure)
        elif state == "closed" and not self._closed:
            self._close_later("the other side closed the connection")

    def _why_failed(self, connection: MediaConnection) -> str:
        if connection.dtls.state == "failed":
            return DTLS_FAILED
        if self._connected_after is not None:
            return "the connection was lost: the other side no longer answers"
        return connection.describe_failure()

    def _opened(self, channel: Any) -> None:
        if self._channels is None:
            channel.close()
            return
        self._channels(channel.label, channel)

    def _started(self, what: str) -> None:
        """One of the tracks runs; with the last of them, media begins."""
        self._waiting.discard(what)
        if self._waiting or self._closed:
            return
        try:
            if self._publisher is not None:
                self._publisher.begin()
            if self._viewer is not None:
                self._viewer.begin()
        except HeadraceError as error:
            log.info("peer %s comes too late: %s", self.id[:8], error.message)
            self._close_later(error.message)

    # -- tasks -----------------------------------------------------------------------------------------

    def _close_later(self, reason: str) -> None:
        if not self._closed:
            self.reason = self.reason or reason
            self._spawn(self.close(reason))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a step of peer %s failed", self.id[:8], exc_info=error)

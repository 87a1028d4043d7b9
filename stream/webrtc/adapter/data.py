"""aiortc's SCTP (RFC 9260) with bounds on what a client may have it hold.

aiortc 1.16 announces a window but takes what goes beyond it, and keeps any number of channels, of pieces of
unfinished messages and of numbers that came out of turn. Here the association ends where a limit is passed
that no client comes near which keeps to what was announced; pictures and sound go on.
"""

from __future__ import annotations

import logging
import struct

from aiortc.rtcsctptransport import (
    DataChunk,
    ForwardTsnChunk,
    RTCSctpCapabilities,
    RTCSctpTransport,
)

from stream.errors import NotInstalled
from stream.webrtc.channels import MAX_MESSAGE

log = logging.getLogger(__name__)

MAX_CHANNELS = 64
"""Channels, and streams, of one connection."""
MAX_BEYOND = 1 << 16
"""Bytes by which the announced window may be passed: what was under way when it closed."""
MAX_PIECES = 2048
"""Pieces of messages that are kept of one stream; the window holds some 900 of full size."""
MAX_GAPS = 4096
"""Numbers (TSN) after a missing one that are remembered."""
_USED = ("_advertised_rwnd", "_inbound_streams", "_sack_misordered", "_data_channels")


class BoundedSctp(RTCSctpTransport):
    """Ends the association at a limit; ``malformed`` counts messages that cannot be read."""

    malformed: int

    @classmethod
    def adopt(cls, transport: RTCSctpTransport) -> BoundedSctp:
        """Make aiortc's own object one of this class. Raises `NotInstalled` where it is of another shape."""
        missing = [name for name in _USED if not hasattr(transport, name)]
        if type(transport) is not RTCSctpTransport or missing:
            raise NotInstalled(f"aiortc's SCTP lacks {missing}: this version is not one that is known (1.16)")
        transport.__class__ = cls
        assert isinstance(transport, cls)
        transport.malformed = 0
        return transport

    @classmethod
    def getCapabilities(cls) -> RTCSctpCapabilities:  # noqa: N802  aiortc's name
        return RTCSctpCapabilities(maxMessageSize=MAX_MESSAGE)

    async def _receive_data_chunk(self, chunk: DataChunk) -> None:
        # What came in one datagram with that which ended the association.
        if self.state == "closed":
            return
        await super()._receive_data_chunk(chunk)
        await self._check_bounds(chunk.stream_id)

    async def _receive_forward_tsn_chunk(self, chunk: ForwardTsnChunk) -> None:
        if self.state == "closed":
            return
        await super()._receive_forward_tsn_chunk(chunk)
        await self._check_bounds(None)

    async def _data_channel_receive(self, stream_id: int, pp_id: int, data: bytes) -> None:
        try:
            await super()._data_channel_receive(stream_id, pp_id, data)
        except (AssertionError, UnicodeDecodeError, struct.error):
            # Raised further, it would end the task that reads the whole connection.
            self.malformed += 1
            log.info("a message on a data channel cannot be read", exc_info=True)

    async def _check_bounds(self, stream_id: int | None) -> None:
        stream = self._inbound_streams.get(stream_id) if stream_id is not None else None
        for passed, what in (
            (self._advertised_rwnd < -MAX_BEYOND, "more than the window holds came"),
            (stream is not None and len(stream.reassembly) > MAX_PIECES, "too many pieces are unfinished"),
            (len(self._sack_misordered) > MAX_GAPS, "too much came out of turn"),
            (len(self._inbound_streams) > MAX_CHANNELS, "too many streams were used"),
            (len(self._data_channels) > MAX_CHANNELS, "too many channels were opened"),
        ):
            if passed and self.state != "closed":
                log.warning("the data channels of a connection are ended: %s", what)
                await self.stop()
                self._inbound_streams.clear()
                self._sack_misordered.clear()

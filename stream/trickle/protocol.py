"""Words of the trickle protocol that server and clients share (go-livepeer, package ``trickle``)."""

from __future__ import annotations

import re
from typing import ClassVar, Final

from stream.errors import SinkError, SourceError

SEQ_HEADER: Final = "Lp-Trickle-Seq"
LATEST_HEADER: Final = "Lp-Trickle-Latest"
CLOSED_HEADER: Final = "Lp-Trickle-Closed"
RESET_HEADER: Final = "Lp-Trickle-Reset"
CREATE_TYPE_HEADER: Final = "Expect-Content"

NEXT: Final = -1
"""Instead of a number: the segment that will be written next."""

CURRENT: Final = -2
"""Instead of a number, in a GET: the segment that is being written (or was written last)."""

RING_SIZE: Final = 5
"""Segments that a channel keeps; segment n lives in slot n modulo this."""

SEGMENT_MISSING: Final = 470
"""Status of a GET for a segment that an existing channel does not have."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,40}", re.ASCII)


class ChannelClosed(SinkError):
    """The channel is gone: the ordinary end of a stream, not a fault."""

    code: ClassVar[str] = "channel_closed"


class ChannelIdle(SourceError):
    """No segment has come for longer than the reader was told to wait."""

    code: ClassVar[str] = "source_idle"


class SegmentLost(SinkError):
    """One segment could not be delivered; the channel lives and the next segment can be written."""

    code: ClassVar[str] = "segment_lost"


def parse_integer(text: str) -> int | None:
    """A decimal 64-bit number with an optional sign, as in a path or a header; None if it is not one."""
    if not _INTEGER.fullmatch(text):
        return None
    value = int(text)
    return value if -(2**63) <= value < 2**63 else None

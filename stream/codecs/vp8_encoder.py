"""Pictures into VP8 (RFC 6386)."""

from __future__ import annotations

from stream.codecs.video_encoder import VideoEncoder, VideoEncoderSettings
from stream.errors import CodecError
from stream.units import Rendition


class Vp8Encoder(VideoEncoder):
    """Not there yet."""

    def __init__(
        self, settings: VideoEncoderSettings, width: int, height: int, *, rendition: Rendition | None = None
    ) -> None:
        raise CodecError("VP8 cannot be encoded yet", field="codec")

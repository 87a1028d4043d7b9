"""Which encoder a rendition gets, and with which settings."""

from __future__ import annotations

from dataclasses import replace

from stream.codecs.video_encoder import VideoEncoder, VideoEncoderSettings
from stream.frames import Picture
from stream.renditions import BitrateRange, PictureEncoder
from stream.units import Rendition

LIVE_BUFFER = 0.3
"""Seconds of bitrate that a burst may take where packets go out at once."""


class EncoderOpener:
    """Opens encoders by ``settings``; those who watch live get key pictures when they ask for them and every
    ``live_key_interval`` seconds."""

    def __init__(self, settings: VideoEncoderSettings, *, live_key_interval: float) -> None:
        self._settings = settings
        self._live_key_interval = live_key_interval

    def __call__(
        self, rendition: Rendition, picture: Picture, bitrate: int, bitrates: BitrateRange
    ) -> PictureEncoder:
        """An encoder for pictures of that size and colour. Raises `CodecError` where there is none."""
        live = rendition.purpose != "file"
        settings = replace(
            self._settings,
            bitrate=bitrate,
            highest_bitrate=bitrates.highest,
            profile=rendition.profile,
            # What they can take changes while it runs, and x264 follows that at a constant bitrate only.
            quality=0 if live else self._settings.quality,
            key_interval=self._live_key_interval if live else self._settings.key_interval,
            buffer=min(LIVE_BUFFER, self._settings.buffer) if live else self._settings.buffer,
        )
        if rendition.codec == "vp8":
            # libvpx is looked for when the first viewer without H.264 comes.
            from stream.codecs.vp8_encoder import Vp8Encoder

            return Vp8Encoder(settings, picture.width, picture.height, rendition=rendition)
        return VideoEncoder(
            settings,
            picture.width,
            picture.height,
            matrix=picture.matrix,
            full_range=picture.full_range,
            rendition=rendition,
        )

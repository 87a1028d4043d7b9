"""WebRTC in and WebRTC out around a session, with stock aiortc peers on both ends."""

from __future__ import annotations

import av
import pytest

from tests.stream.codec_media import encoded_audio, encoded_video
from tests.stream.webrtc.media_peers import CodedTrack, stage, until, within

FRAME = 3000
SOUND = 1800


def picture_track(codec: str = "libx264", count: int = 30) -> CodedTrack:
    options = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx" else None
    return CodedTrack("video", encoded_video(count, 320, 192, codec=codec, gop=15, options=options), FRAME)


def sound_track() -> CodedTrack:
    return CodedTrack("audio", encoded_audio(1.0, "libopus"), SOUND)


@pytest.mark.parametrize("codec", ["video/H264", "video/VP8"])
async def test_a_stock_peer_publishes_and_another_one_watches(codec: str) -> None:
    async with stage() as built:
        _, publisher = await built.publish(picture_track(), sound_track())
        _, viewer, tracks = await built.watch("video", "audio", codec=codec)
        picture = await within(tracks["video"].recv())
        assert (picture.width, picture.height) == (320, 192)
        sound = await within(tracks["audio"].recv())
        assert isinstance(sound, av.AudioFrame)
        for _ in range(10):
            later = await within(tracks["video"].recv())
        assert later.pts > picture.pts
        await until(lambda: publisher.report()["in"]["audio"]["units"] > 10, "sound")
        report = viewer.report()["out"]
        assert report["video"]["codec"] == codec[6:].lower()
        assert report["audio"]["units"] > 0
        assert built.session.pipeline.figures.counts.frames_in > 10

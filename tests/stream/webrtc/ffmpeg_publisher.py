"""Publishes a red picture with a tone by FFmpeg's WHIP muxer: URL, seconds, and options as NAME=VALUE.

A process of its own, because the muxer blocks while it waits for the server.
"""

from __future__ import annotations

import fractions
import sys
import time

import av
import numpy as np

RATE = 15


def publish(url: str, seconds: float, options: dict[str, str]) -> None:
    with av.open(url, "w", format="whip", options=options) as container:
        video = container.add_stream(
            "libx264", rate=RATE, options={"preset": "ultrafast", "tune": "zerolatency"}
        )
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        video.codec_context.gop_size = RATE
        video.codec_context.max_b_frames = 0
        sound = container.add_stream("libopus", rate=48_000, layout="stereo")
        picture = np.zeros((120, 160, 3), np.uint8)
        picture[:, :, 0] = 220
        begin, samples = time.monotonic(), 0
        for number in range(int(seconds * RATE)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, fractions.Fraction(1, RATE)
            container.mux(video.encode(frame))
            while samples < (number + 1) * 48_000 / RATE:
                tone = np.sin(2 * np.pi * 440 * (samples + np.arange(960)) / 48_000).astype(np.float32)
                noise = av.AudioFrame.from_ndarray(
                    np.stack([tone, tone]) * 0.3, format="fltp", layout="stereo"
                )
                noise.sample_rate, noise.pts = 48_000, samples
                noise.time_base = fractions.Fraction(1, 48_000)
                container.mux(sound.encode(noise))
                samples += 960
            if number == 0:
                sys.stdout.write("publishing\n")
                sys.stdout.flush()
            time.sleep(max(0.0, begin + number / RATE - time.monotonic()))


if __name__ == "__main__":
    publish(sys.argv[1], float(sys.argv[2]), dict(item.split("=", 1) for item in sys.argv[3:]))

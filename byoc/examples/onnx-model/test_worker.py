import asyncio
from fractions import Fraction

import numpy as np
from worker import RemoveBackground

from byoc import Picture, VideoFrame


def test_an_empty_wall_is_background():
    async def processed() -> np.ndarray:
        processor = RemoveBackground()
        await processor.load_model()
        wall = Picture.from_rgb(np.full((96, 128, 3), 90, np.uint8))
        frame = VideoFrame.from_picture(wall, 0, Fraction(1, 90000))
        return (await processor.process_video_async(frame)).picture.rgb()

    rgb = asyncio.run(processed())
    assert abs(rgb.reshape(-1, 3).mean(0) - [0, 177, 64]).max() < 20

import asyncio
from fractions import Fraction

import numpy as np
from worker import OverlayText

from byoc import Picture, VideoFrame


def test_text_appears_at_the_bottom():
    grey = Picture.from_rgb(np.full((120, 200, 3), 128, np.uint8))
    frame = VideoFrame.from_picture(grey, 0, Fraction(1, 90000))
    rgb = asyncio.run(OverlayText().process_video_async(frame)).picture.rgb()
    assert (rgb[:80] == 128).all()
    assert rgb[90:].max() > 200
    assert rgb[90:].min() < 50

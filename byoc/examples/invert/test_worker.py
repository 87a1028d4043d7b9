import asyncio
from fractions import Fraction

import numpy as np
import pytest
from worker import Invert

from byoc import InvalidInput, Picture, VideoFrame


def test_black_becomes_white():
    black = Picture.from_rgb(np.zeros((4, 6, 3), np.uint8))
    result = asyncio.run(Invert().process_video_async(VideoFrame.from_picture(black, 0, Fraction(1, 90000))))
    assert (result.picture.rgb() == 255).all()


def test_a_wrong_strength_is_refused():
    with pytest.raises(InvalidInput, match="strength"):
        asyncio.run(Invert().update_params({"strength": 2}))

"""A processor that is held: nothing raw is shown or heard."""

from fractions import Fraction

import numpy as np

from stream.frames import AudioFrame, Picture, VideoFrame
from stream.pausing import Pausable, innermost
from stream.processor import FrameProcessor

BASE = Fraction(1, 90_000)


class Bright(FrameProcessor):
    async def process_video_async(self, frame):
        return frame.replace_picture(Picture.from_rgb(np.full((8, 8, 3), 200, np.uint8)))

    async def update_params(self, params):
        self.taken = params


def frame(size=(64, 48)):
    return VideoFrame.from_picture(Picture.from_rgb(np.zeros((size[1], size[0], 3), np.uint8)), 0, BASE)


def sound(dtype=np.float32):
    return AudioFrame(np.full((2, 100), 1, dtype), 0, BASE, rate=48_000)


async def test_running_it_is_the_processor_itself():
    held = Pausable(Bright())
    assert (await held.process_video_async(frame())).picture.rgb().mean() == 200
    assert (held.info().video, held.info().audio) == (True, False)
    await held.update_params({"x": 1})
    assert innermost(held).taken == {"x": 1}
    said = []
    held.bind(said.append)
    held.frame_time = 2.5
    held.inner.emit("text", "hello")
    assert (said[0].data, said[0].time) == ("hello", 2.5)


async def test_paused_it_puts_no_picture_out_and_its_sound_is_silence():
    held = Pausable(Bright())
    held.pause()
    assert await held.process_video_async(frame()) is None
    assert held.info().audio, "sound must not go past it"
    (silent,) = await held.process_audio_async(sound())
    assert not silent.samples.any()
    (silent,) = await held.process_audio_async(sound(np.uint8))
    assert (silent.samples == 128).all()
    held.resume()
    assert (await held.process_video_async(frame())).picture.rgb().mean() == 200
    assert (await held.process_audio_async(sound()))[0].samples.all()


async def test_stopped_it_shows_a_notice_once_for_each_size():
    held = Pausable(Bright())
    held.stop()
    shown = await held.process_video_async(frame())
    assert (shown.width, shown.height) == (64, 48)
    assert await held.process_video_async(frame()) is None
    assert (await held.process_video_async(frame((32, 32)))).width == 32
    held.pause()
    assert await held.process_video_async(frame()) is None
    held.stop()
    assert await held.process_video_async(frame((32, 32))) is not None

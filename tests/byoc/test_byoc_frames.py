"""Frames under PyTrickle's names, where its own had defects."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from byoc.frames import AudioFrame, AudioOutput, FrameBuffer, InputFrame, VideoFrame, VideoOutput


def picture(tensor):
    return VideoFrame(tensor, 90, Fraction(1, 90_000), {"frame_init": 1.0})


def test_a_frame_gives_its_moment_and_its_marks_on():
    frame = InputFrame.from_av_video(torch.zeros(1, 4, 6, 3), 90, Fraction(1, 90_000))
    frame.side_data.passthrough = True
    other = frame.replace_tensor(torch.ones(1, 4, 6, 3))
    assert (other.timestamp, other.time_base, other.time) == (90, Fraction(1, 90_000), 0.001)
    assert other.side_data.passthrough
    assert other.side_data.skipped is True
    assert VideoFrame.from_tensor(torch.zeros(1, 2, 2, 3), 7).time_base == 1


@given(st.sampled_from([1, 3, 4]), st.booleans(), st.sampled_from([torch.float32, torch.uint8]))
def test_a_tensor_of_any_channels_becomes_a_frame_of_avs_with_its_times(channels, batched, dtype):
    level = 255 if dtype is torch.uint8 else 1.0
    tensor = torch.full((4, 6, channels), level, dtype=dtype)
    made = picture(torch.zeros(1, 4, 6, 3)).to_av_frame(tensor[None] if batched else tensor)
    assert (made.pts, made.time_base, made.format.name) == (90, Fraction(1, 90_000), "rgb24")
    assert made.to_ndarray().tolist() == np.full((4, 6, 3), 255).tolist()


def test_values_over_the_range_are_clamped_and_do_not_wrap():
    tensor = torch.tensor([[[1.0, 0.5, -0.02]]]).repeat(2, 2, 1)
    frame = picture(tensor)
    assert frame.picture.rgb()[0, 0].tolist() == [255, 128, 0]
    frame = picture(tensor * 1.01)
    assert frame.picture.rgb()[0, 0, 0] == 255


def test_wrong_shapes_are_refused_by_name():
    frame = picture(torch.zeros(1, 4, 6, 3))
    for shape in ((4, 6), (2, 4, 6, 3), (4, 6, 2)):
        with pytest.raises(ValueError, match=str(shape[-1])):
            frame.to_av_frame(torch.zeros(shape))


@pytest.mark.parametrize("kind", ["rgb24", "yuv420p", "gray"])
def test_a_frame_of_avs_takes_the_place_of_the_pixels(kind):
    source = av.VideoFrame.from_ndarray(np.full((4, 6, 3), 200, np.uint8), format="rgb24").reformat(
        format=kind
    )
    made = VideoFrame.from_av_frame_with_timing(source, picture(torch.zeros(1, 4, 6, 3)))
    assert made.timestamp == 90
    assert tuple(made.tensor.shape) == (1, 4, 6, 3)
    assert abs(float(made.tensor.mean()) * 255 - 200) < 4


@pytest.mark.parametrize(("kind", "channels"), [("s16", 1), ("s16", 2), ("s16p", 2), ("fltp", 2), ("flt", 2)])
def test_sound_from_a_tensor_survives_the_way_to_av_and_back(kind, channels):
    layout = "mono" if channels == 1 else "stereo"
    tensor = torch.linspace(-1, 1, 480).repeat(channels, 1) * torch.tensor([[1.0], [0.5]])[:channels]
    frame = AudioFrame.from_tensor(tensor, kind, layout, sample_rate=48_000, timestamp=5)
    assert (frame.nb_samples, frame.channels, frame.time_base) == (480, channels, Fraction(1, 48_000))
    made = frame.to_av_frame()
    assert (made.samples, made.layout.name, made.sample_rate, made.pts) == (480, layout, 48_000, 5)
    back = AudioFrame.from_av_audio(made)
    assert back.samples.tolist() == frame.samples.tolist()
    assert (back.format, back.layout, back.nb_samples) == (kind, layout, 480)
    again = AudioFrame(made)
    assert again.samples.shape == frame.samples.shape


def test_other_samples_keep_the_count_of_packed_stereo():
    frame = AudioFrame.from_tensor(torch.zeros(2, 960), "s16", "stereo")
    assert frame.samples.shape == (1, 1920)
    assert frame.replace_samples(frame.samples + 1).nb_samples == 960
    later = frame.from_audio_frame(timestamp=77)
    assert (later.timestamp, later.nb_samples) == (77, 960)


def test_sound_that_cannot_be_is_refused_and_never_silently_replaced():
    with pytest.raises(ValueError, match="stereo takes a tensor of 2 x n"):
        AudioFrame.from_tensor(torch.zeros(1, 10), "s16", "stereo")
    with pytest.raises(ValueError, match="'u8x'"):
        AudioFrame.from_tensor(torch.zeros(1, 10), "u8x")
    broken = AudioFrame(np.zeros((3, 10), np.float32), 0, Fraction(1, 48_000), rate=48_000, layout="stereo")
    with pytest.raises(ValueError, match=r"\(3, 10\)"):
        broken.to_av_frame()
    bare = av.AudioFrame.from_ndarray(np.zeros((1, 10), np.int16), format="s16", layout="mono")
    with pytest.raises(ValueError, match="no timestamp"):
        AudioFrame(bare)


def test_outputs_and_buffers():
    frame = picture(torch.zeros(1, 2, 2, 3))
    out = VideoOutput(frame, "id").replace_tensor(torch.ones(1, 2, 2, 3))
    assert (out.request_id, out.timestamp, float(out.tensor.max())) == ("id", 90, 1.0)
    assert AudioOutput([], "id").timestamp == 0
    buffer = FrameBuffer(2)
    for _ in range(3):
        buffer.add_frame(frame)
    assert buffer.get_stats() == {
        "current_frames": 2,
        "max_frames": 2,
        "total_received": 3,
        "total_discarded": 1,
    }
    assert buffer.get_frame() is frame
    assert len(buffer.get_all_frames()) == 1
    assert buffer.get_frame() is None

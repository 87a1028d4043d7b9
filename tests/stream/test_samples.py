from __future__ import annotations

from typing import Any

import av
import numpy as np
import pytest

from stream.samples import channels_of, checked_samples

LAYOUTS = [
    "mono",
    "stereo",
    "downmix",
    "2.1",
    "3.0",
    "3.0(back)",
    "3.1",
    "3.1.2",
    "4.0",
    "4.1",
    "quad",
    "quad(side)",
    "5.0",
    "5.0(side)",
    "5.1",
    "5.1(side)",
    "5.1.2",
    "5.1.4",
    "6.0",
    "6.0(front)",
    "6.1",
    "6.1(back)",
    "hexagonal",
    "7.0",
    "7.1",
    "7.1(wide)",
    "7.1.4",
    "octagonal",
    "cube",
    "9.1.4",
    "hexadecagonal",
    "22.2",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_have_the_channels_that_ffmpeg_says(layout: str) -> None:
    assert channels_of(layout) == av.AudioLayout(layout).nb_channels


@pytest.mark.parametrize(("layout", "channels"), [("7 channels", 7), ("2 channels (FL+LFE)", 2)])
def test_layouts_without_a_name_say_their_channels(layout: str, channels: int) -> None:
    assert channels_of(layout) == channels


@pytest.mark.parametrize("layout", ["", "nope", "0", "0.0", "5.", "-1.2", "channels", "٥.1"])
def test_what_is_no_layout_is_refused(layout: str) -> None:
    with pytest.raises(ValueError, match="unknown channel layout"):
        channels_of(layout)


def test_floats_of_another_width_are_taken() -> None:
    made = checked_samples(np.full((2, 5), 0.5, np.float64).T.copy().T, "fltp", "stereo", 48_000)
    assert (made.dtype, made.shape, made.flags.c_contiguous) == (np.float32, (2, 5), True)


STEREO = np.zeros((2, 6), np.float32)


@pytest.mark.parametrize(
    ("samples", "format_", "layout", "rate", "words"),
    [
        (STEREO[0], "fltp", "stereo", 48_000, r"are 2-D float32, not float32 \(6,\)"),
        (STEREO.T, "fltp", "stereo", 48_000, "are 2 x n, not 6 x 2"),
        (STEREO[:1], "fltp", "stereo", 48_000, "are 2 x n, not 1 x 6"),
        (STEREO, "flt", "stereo", 48_000, r"are 1 x \(n \* 2\), not 2 x 6"),
        (STEREO[:1, :5], "flt", "stereo", 48_000, r"are 1 x \(n \* 2\), not 1 x 5"),
        (STEREO.astype(np.int16), "fltp", "stereo", 48_000, "not int16"),
        (STEREO, "s16p", "stereo", 48_000, "not float32"),
        (STEREO.tolist(), "fltp", "stereo", 48_000, "not a list"),
        (STEREO, "mp3", "stereo", 48_000, "sample format 'mp3'"),
        (STEREO, "fltp", "nope", 48_000, "unknown channel layout 'nope'"),
        (STEREO, "fltp", "stereo", 0, "a sample rate of 0"),
        (STEREO, "fltp", "stereo", 48_000.0, "a sample rate of 48000.0"),
    ],
)
def test_what_is_no_sound_is_refused_with_what_it_was(
    samples: Any, format_: str, layout: str, rate: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        checked_samples(samples, format_, layout, rate)

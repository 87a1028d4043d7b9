"""Videos as MP4 files, and the diffusion upscaler with its tiles."""

from __future__ import annotations

import io
import itertools

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models_here import Heard, store_of
from pictures_here import Asking, Pixels, noise, pictures, upload

from headrace.batch.pipelines import upscale_diffusion
from headrace.batch.pipelines.image_to_video import ImageToVideo
from headrace.batch.pipelines.upscale import Upscale
from headrace.batch.pipelines.upscale_diffusion import OVERLAP, SCALE, TILE, in_tiles, ramp, spans
from headrace.batch.pipelines.video_files import mp4
from stream.errors import InvalidInput, TooLarge

SVD, UPSCALER = "demo:tiny-svd", "demo:tiny-upscaler"
WISH = {"height": 64, "width": 64, "num_frames": 3, "num_inference_steps": 2, "seed": 0, "fps": 9}


@pytest.fixture(scope="module")
def asking(request: pytest.FixtureRequest) -> Asking:
    return Asking(store_of(request.config))


def decoded(file: bytes) -> tuple[list[Pixels], float]:
    with av.open(io.BytesIO(file)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        rate = float(stream.average_rate)
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)], rate


@pytest.mark.parametrize("size", [(64, 96), (33, 47)])
def test_an_mp4_holds_its_pictures_in_their_colours_with_the_index_in_front(size: tuple[int, int]) -> None:
    colours = [(200, 30, 40), (30, 180, 60), (40, 60, 200), (128, 128, 128)]
    frames = [np.full((*size, 3), colour, np.uint8) for colour in colours]
    file = mp4(frames, 5)
    shown, rate = decoded(file)
    assert (len(shown), rate) == (4, 5.0)
    for frame, colour in zip(shown, colours, strict=True):
        assert frame.shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
        assert np.abs(frame.astype(int) - colour).max() <= 4
    assert 0 < file.index(b"moov") < file.index(b"mdat")


def test_a_video_has_the_frames_rate_and_size_that_were_asked_for(asking: Asking) -> None:
    heard = Heard()
    made = asking.ask(ImageToVideo(), SVD, {**WISH, "frames": True}, upload(50, 90), heard)
    shown, rate = decoded(made.blobs["0.mp4"])
    assert ([frame.shape for frame in shown], rate) == ([(64, 64, 3)] * 3, 9.0)
    assert len(made.body["frames"]) == 3
    assert made.body["images"] == [{"blob": "0.mp4", "seed": 0, "nsfw": False}]
    assert made.body["weights"] == "random"
    assert [told.step for told in heard.told if told.phase == "running"] == [1, 2]
    again = asking.ask(ImageToVideo(), SVD, WISH, upload(50, 90))
    assert "frames" not in again.body
    assert again.blobs == {"0.mp4": made.blobs["0.mp4"]}
    other = asking.ask(ImageToVideo(), SVD, {**WISH, "seed": 1}, upload(50, 90))
    assert other.blobs != again.blobs
    with pytest.raises(InvalidInput, match="height is 60"):
        asking.ask(ImageToVideo(), SVD, {**WISH, "height": 60}, upload())
    with pytest.raises(InvalidInput, match="does no image-to-video"):
        asking.ask(ImageToVideo(), "demo:tiny-sd", WISH, upload())


# -- larger pictures -----------------------------------------------------------------------------------


@given(st.integers(1, 3000))
def test_tiles_cover_everything_overlap_and_have_one_size(size: int) -> None:
    made = spans(size)
    assert made[0][0] == 0
    assert made[-1][1] == size
    assert all(end - begin == min(size, TILE) for begin, end in made)
    for (_, end), (begin, _) in itertools.pairwise(made):
        assert end - begin >= OVERLAP
    share = np.zeros(size * SCALE)
    for begin, end in made:
        weight = ramp(begin, end, size)
        assert (weight > 0).all()
        share[begin * SCALE : end * SCALE] += weight
    assert share.min() > 0


def test_tiles_that_agree_leave_no_seam() -> None:
    picture = noise(300, 500)

    def repeat(part: Pixels, number: int, count: int) -> Pixels:
        assert count == 6
        return part.repeat(SCALE, axis=0).repeat(SCALE, axis=1)

    larger = in_tiles(picture, repeat)
    assert np.array_equal(larger, picture.repeat(SCALE, axis=0).repeat(SCALE, axis=1))


def test_the_upscaler_makes_pictures_of_any_size_four_times_as_large_in_tiles_where_they_are_large(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = {"prompt": "x", "num_inference_steps": 2, "seed": 0}
    made = asking.ask(Upscale(), UPSCALER, wish, upload(21, 35))
    assert pictures(made)[0].shape == (84, 140, 3)
    assert (made.body["scale"], made.body["images"][0]["seed"], made.body["weights"]) == (4, 0, "random")
    assert made.blobs == asking.ask(Upscale(), UPSCALER, wish, upload(21, 35)).blobs
    assert made.blobs != asking.ask(Upscale(), UPSCALER, {**wish, "seed": 1}, upload(21, 35)).blobs
    monkeypatch.setattr(upscale_diffusion, "TILE", 32)
    monkeypatch.setattr(upscale_diffusion, "OVERLAP", 8)
    heard = Heard()
    tiled = asking.ask(Upscale(), UPSCALER, wish, upload(21, 50), heard)
    assert pictures(tiled)[0].shape == (84, 200, 3)
    assert [(told.step, told.of) for told in heard.told if told.phase == "running"][-1] == (4, 4)
    monkeypatch.setattr(upscale_diffusion, "MAX_PIXELS", 1000)
    with pytest.raises(TooLarge, match="up to 1000 pixels") as caught:
        asking.ask(Upscale(), UPSCALER, wish, upload(21, 50))
    assert caught.value.field == "image"

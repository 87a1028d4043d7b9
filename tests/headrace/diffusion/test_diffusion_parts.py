"""Schedule, mixtures and the similarity filter, by property."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.diffusion import blending, parameters
from headrace.diffusion.pictures import thumbnail, thumbnail_of
from headrace.diffusion.schedule import MAX_STEPS, check_indices, constants, grid, rescaled
from headrace.diffusion.similarity import SimilarityFilter, cosine, skip_chance
from stream.errors import InvalidInput
from stream.frames import Picture, VideoFrame, plane_shapes

STEPS = st.integers(1, MAX_STEPS)


@given(STEPS)
def test_the_grid_goes_down_from_the_noisiest_step(steps: int) -> None:
    times = grid(steps)
    assert len(times) == steps
    assert times[0] == 999
    assert all(after < before for before, after in itertools.pairwise(times))
    assert times[-1] >= 0


@pytest.mark.parametrize("steps", [1, 4, 10, 25, 50])
def test_the_grid_is_that_of_diffusers(steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.LCMScheduler()
    scheduler.set_timesteps(steps)
    assert grid(steps) == tuple(scheduler.timesteps.tolist())


@given(STEPS, st.lists(st.integers(-2, 110), max_size=6))
def test_indices_are_taken_or_refused_by_name(steps: int, indices: list[int]) -> None:
    fits = 1 <= len(indices) <= 4 and all(0 <= i < steps for i in indices) and indices == sorted(indices)
    if fits:
        assert check_indices(indices, steps) == tuple(indices)
    else:
        with pytest.raises(InvalidInput, match="t_index_list"):
            check_indices(indices, steps)


@given(STEPS, STEPS, st.lists(st.integers(0, 99), min_size=1, max_size=4))
def test_rescaled_indices_fit_and_keep_their_order(before: int, after: int, indices: list[int]) -> None:
    inside = sorted(min(index, before - 1) for index in indices)
    moved = rescaled(inside, before, after)
    assert check_indices(moved, after) == moved


def test_signal_and_noise_make_one() -> None:
    alphas = 1000
    schedule = [1 - (index + 1) / (alphas + 1) for index in range(alphas)]
    for step in constants([0, 10, 49], 50, schedule):
        assert math.isclose(step.signal**2 + step.noise**2, 1.0)
        # A perfect prediction of the noise gives the clean value back.
        clean, noise = 0.7, -1.3
        latent = step.signal * clean + step.noise * noise
        found = step.from_input * latent + step.from_prediction * noise
        assert math.isclose(found, clean, rel_tol=1e-3, abs_tol=1e-3)


@given(st.floats(0, 1), st.integers(0, 100))
def test_slerp_stays_on_the_sphere(share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.nn.functional.normalize(torch.randn(64, generator=generator), dim=0) for _ in range(2))
    mixed = blending.slerp(a, b, share)
    assert math.isclose(float(mixed.norm()), 1.0, abs_tol=1e-4)
    assert torch.allclose(blending.slerp(a, b, 0.0), a, atol=1e-5)
    assert torch.allclose(blending.slerp(a, b, 1.0), b, atol=1e-5)
    assert torch.allclose(blending.slerp(a, a, share), a, atol=1e-5)


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=5), st.integers(0, 100))
def test_mixed_noise_is_as_strong_as_its_parts(weights: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn((1, 4, 8, 8), generator=generator) for _ in weights]
    shares = blending.shares(weights, normalised=True, field="seed")
    mixed = blending.blend_noise(parts, shares, "linear", normalised=True)
    expected = sum(float(part.norm()) for part in parts) / len(parts)
    assert math.isclose(float(mixed.norm()), expected, rel_tol=1e-3)


@given(st.floats(0, 0.999), st.floats(-1, 1))
def test_only_what_is_over_the_threshold_may_be_left_out(threshold: float, similarity: float) -> None:
    chance = skip_chance(similarity, threshold)
    assert 0 <= chance <= 1
    assert (chance > 0) == (similarity > threshold) or math.isclose(similarity, threshold, abs_tol=1e-9)


@given(st.integers(0, 20), st.integers(1, 60))
def test_never_more_in_a_row_than_allowed(max_skip: int, frames: int) -> None:
    chosen = SimilarityFilter(0.5, max_skip)
    same = np.ones((4, 4), np.float32)
    row = 0
    for _ in range(frames):
        row = row + 1 if chosen.skips(same) else 0
        assert row <= max_skip


@given(st.dictionaries(st.sampled_from(sorted(parameters.StreamDiffusionParams.model_fields)), st.one_of(
    st.none(), st.booleans(), st.integers(-5, 200), st.floats(), st.text(max_size=5),
    st.lists(st.one_of(st.integers(-5, 120), st.tuples(st.text(max_size=3), st.floats())), max_size=6),
), max_size=4))  # fmt: skip
def test_any_parameters_are_taken_or_refused_in_words(params: dict[str, object]) -> None:
    try:
        taken = parameters.start(params)
    except InvalidInput as error:
        assert error.field
        assert error.message
    else:
        check_indices(taken.t_index_list, taken.num_inference_steps)


@pytest.mark.parametrize("size", [(64, 48), (33, 47)])
def test_frames_are_compared_by_the_bytes_that_came(size: tuple[int, int]) -> None:
    """Without a tensor; of RGB as if there were one."""
    values = np.random.default_rng(3)
    width, height = size

    def frame(picture: Picture) -> VideoFrame:
        return VideoFrame.from_picture(picture, 0, Fraction(1, 30))

    rgb = frame(Picture.from_rgb(values.integers(0, 256, (height, width, 3), np.uint8)))
    found = thumbnail_of(rgb)
    assert not rgb.has_tensor
    assert np.allclose(found, thumbnail(rgb.tensor), atol=1e-5)
    planes = [values.integers(0, 256, shape, np.uint8) for shape in plane_shapes("yuv420p", width, height)]
    yuv = thumbnail_of(frame(Picture("yuv420p", width, height, planes, "bt709", False)))
    darker = [plane // 2 for plane in planes]
    other = thumbnail_of(frame(Picture("yuv420p", width, height, darker, "bt709", False)))
    assert yuv.shape == other.shape == found.shape
    assert np.abs(yuv).max() <= 1
    assert cosine(yuv, yuv) == pytest.approx(1)
    assert cosine(yuv, other) < 0.99

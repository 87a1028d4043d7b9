"""Schedules fall, samplers arrive; a picture that is known from the start is found by all of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.nodes.names import sampler_names, scheduler_names
from headrace.nodes.samplers import SAMPLERS, SeededNoise
from headrace.nodes.schedules import SCHEDULES, Levels, sigmas_for

LEVELS = Levels.of({})


def test_what_is_offered_is_what_there_is() -> None:
    assert set(sampler_names()) == set(SAMPLERS)
    assert set(scheduler_names()) == set(SCHEDULES)


def test_the_levels_are_those_of_stable_diffusion() -> None:
    assert LEVELS.least == pytest.approx(0.0292, abs=1e-4)
    assert LEVELS.most == pytest.approx(14.6146, abs=1e-4)
    assert int(LEVELS.timestep(torch.tensor(LEVELS.sigma(500.0)))) == 500


@given(
    scheduler=st.sampled_from(sorted(SCHEDULES)),
    sampler=st.sampled_from(["euler", "dpm_2"]),
    steps=st.integers(1, 60),
    denoise=st.sampled_from([0.0, 0.3, 0.65, 1.0]),
)
def test_levels_fall_to_zero(scheduler: str, sampler: str, steps: int, denoise: float) -> None:
    sigmas = sigmas_for(LEVELS, scheduler, sampler, steps, denoise)
    if denoise == 0:
        assert not len(sigmas)
        return
    assert sigmas[-1] == 0
    assert (sigmas[:-1] > sigmas[1:]).all()
    assert float(sigmas[0]) <= LEVELS.most * (1 + 1e-5)
    if scheduler != "ddim_uniform":  # whose steps come out as they do
        assert len(sigmas) <= steps + 1


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_finds_a_picture_that_is_known(name: str) -> None:
    truth = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    sigmas = sigmas_for(LEVELS, "karras", name, 6, 1.0)
    x = truth + torch.randn(truth.shape, generator=torch.Generator().manual_seed(2)) * sigmas[0]
    noise = SeededNoise(3, (sigmas.max(), sigmas[sigmas > 0].min()))
    made = SAMPLERS[name](lambda x, sigma: truth, x, sigmas, noise)
    torch.testing.assert_close(made, truth, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["heun", "dpm_2", "dpmpp_2m", "lms"])
def test_those_of_higher_order_are_nearer_to_the_exact_solution(name: str) -> None:
    """Of normally distributed pictures the clean one is known: x / (1 + sigma^2)."""

    def predict(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x / (1 + sigma**2)

    start = torch.ones(1, 1, 1, 1) * 10
    sigmas = sigmas_for(LEVELS, "karras", name, 20, 1.0)
    exact = start / (1 + sigmas[0] ** 2).sqrt()
    noise = SeededNoise(0, (sigmas.max(), sigmas[:-1].min()))
    error = {n: float((SAMPLERS[n](predict, start, sigmas, noise) - exact).abs()) for n in (name, "euler")}
    assert error[name] < error["euler"] / 2


@pytest.mark.parametrize("name", ["euler_ancestral", "lcm", "ddpm", "dpmpp_2m_sde"])
def test_the_same_seed_draws_the_same_noise(name: str) -> None:
    sigmas = sigmas_for(LEVELS, "normal", name, 4, 1.0)

    def made(seed: int) -> torch.Tensor:
        noise = SeededNoise(seed, (sigmas.max(), sigmas[sigmas > 0].min()))
        x = torch.ones(1, 4, 4, 4) * sigmas[0]
        return SAMPLERS[name](lambda x, sigma: x / (1 + sigma**2), x, sigmas, noise)

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))

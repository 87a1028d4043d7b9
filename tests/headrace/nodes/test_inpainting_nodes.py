"""Latents with a mask, and the samplers that keep to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from headrace.nodes.inpainting import SetLatentNoiseMask, VAEEncodeForInpaint  # noqa: E402
from headrace.nodes.samplers import SAMPLERS, SeededNoise, masked  # noqa: E402

SIGMAS = torch.tensor([5.0, 2.0, 1.0, 0.0])


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m"])
def test_what_the_mask_leaves_out_stays(sampler: str) -> None:
    generator = torch.Generator().manual_seed(1)
    image, noise = torch.randn(2, 1, 4, 8, 8, generator=generator)
    mask = torch.zeros(1, 16, 16)
    mask[:, :, 8:] = 1  # the right half, at twice the size
    (latent,) = SetLatentNoiseMask().set_mask({"samples": image}, mask)
    assert latent["noise_mask"].shape == (1, 1, 16, 16)
    seen: list[Any] = []

    def predict(x: Any, sigma: Any) -> Any:
        seen.append((x, sigma))
        return torch.ones_like(x)

    within = masked(predict, latent["noise_mask"], image, noise)
    source = SeededNoise(0, (SIGMAS[0], SIGMAS[2]))
    made = SAMPLERS[sampler](within, image + noise * SIGMAS[0], SIGMAS, source)
    assert torch.allclose(made[..., :4], image[..., :4], atol=1e-5)
    assert torch.allclose(made[..., 4:], torch.ones(()), atol=1e-5)
    for x, sigma in seen:
        assert torch.allclose(x[..., :4], (image + noise * sigma)[..., :4], atol=1e-5)


@pytest.mark.parametrize(("by", "wide"), [(0, 2), (3, 4), (6, 7)])
def test_a_picture_is_grey_where_it_is_painted_and_the_mask_grows(by: int, wide: int) -> None:
    encoded: list[Any] = []

    class Module:
        device, dtype = torch.device("cpu"), torch.float32
        config = SimpleNamespace(block_out_channels=(1, 1, 1, 1))

        def encode(self, plane: Any) -> Any:
            encoded.append(plane / 2 + 0.5)
            return SimpleNamespace(latents=torch.zeros(1, 4, 2, 2))

    vae: Any = SimpleNamespace(module=Module(), ratio=8, scale=1.0)
    mask = torch.zeros(1, 16, 16)
    mask[:, 7:9, 7:9] = 1
    (latent,) = VAEEncodeForInpaint().encode(torch.ones(1, 16, 16, 3), vae, mask, by)
    assert encoded[0][0, :, 7:9, 7:9].unique().tolist() == [0.5]
    assert encoded[0].sum() == 16 * 16 * 3 - 4 * 3 * 0.5
    rows = latent["noise_mask"][0, 0].any(dim=1)
    assert (latent["noise_mask"].shape, int(rows.sum())) == ((1, 1, 16, 16), wide)

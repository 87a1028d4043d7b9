"""Cached attention: what a ring keeps, what a stream sees of it, when it begins anew."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("diffusers")

from hypothesis import given
from hypothesis import strategies as st

from headrace.diffusion.adapters import Kit, Recalled
from headrace.diffusion.networks import Networks
from headrace.diffusion.recall import INTERVAL, MAX_FRAMES, Ring
from headrace.diffusion.stream import Stream
from tests.headrace.diffusion.test_diffusion_batch import INDICES, pictures, play, relative, settings
from tests.headrace.diffusion.test_diffusion_loras import file, lora_for, merged
from tests.headrace.diffusion.test_diffusion_processor import frame, loaded, result
from tests.headrace.diffusion.tiny_networks import networks


@pytest.fixture(scope="module", autouse=True)
def one_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setenv("HEADRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HEADRACE_MODELS_FOLDER", str(tmp_path_factory.mktemp("models")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return networks("sd", tmp_path_factory.mktemp("tiny"))


@given(st.integers(1, MAX_FRAMES), st.integers(1, 5), st.integers(1, 14))
def test_a_ring_has_the_latest_frames_that_were_due(frames: int, interval: int, count: int) -> None:
    ring = Ring(frames)
    kept = [0] * frames
    every = {INTERVAL: torch.tensor([[interval], [interval]])}
    for number in range(count):
        own = torch.full((2, 3, 4), float(number))
        keys, values = ring(own, own + 100, every)
        assert keys[:, ::3, 0].tolist()[0][0] == number
        assert sorted(keys[1, ::3, 0].tolist()[1:]) == sorted(map(float, kept))
        assert torch.equal(values, keys + 100)
        if number % interval == 0:
            kept[number // interval % frames] = number


def test_a_ring_begins_anew_for_other_rows_or_sizes() -> None:
    ring, every = Ring(2), {INTERVAL: torch.ones((1, 1), dtype=torch.long)}
    ring(torch.zeros(1, 3, 4), torch.zeros(1, 3, 4), every)
    for shape in ((2, 3, 4), (2, 5, 4)):
        keys, _ = ring(torch.ones(shape), torch.ones(shape), every)
        assert torch.equal(keys, torch.ones(shape[0], 3 * shape[1], 4))
    ring.clear()
    keys, _ = ring(torch.zeros(shape), torch.zeros(shape), every)
    assert not keys.any()


@pytest.mark.parametrize("count", [1, 2])
def test_a_still_picture_is_seen_once_and_a_moving_one_leaves_traces(sd: Networks, count: int) -> None:
    """Attention to more of the same is attention to the same; a still stream's steps are filled with it."""
    still, moving = pictures(1) * 4, pictures(4)
    plain = {"still": play(sd, Stream(settings(sd, INDICES[count])), still),
             "moving": play(sd, Stream(settings(sd, INDICES[count])), moving)}  # fmt: skip
    found = {}
    for name, own in (("still", still), ("moving", moving)):
        kit = Kit(sd)
        adapters = kit.adapters([], recalled=Recalled(2))
        found[name] = play(sd, Stream(settings(sd, INDICES[count], adapters=adapters)), own)
    assert relative(found["moving"][0], plain["moving"][0]) < 1e-4
    assert relative(found["moving"][-1], plain["moving"][-1]) > 1e-4
    if count == 1:
        assert relative(found["still"][-1], plain["still"][-1]) < 1e-4


def test_loras_and_memory_go_together_and_what_is_over_is_given_back(sd: Networks) -> None:
    tensors = lora_for(sd.unet, 1)
    kit = Kit(sd, [file(tensors, "one")])
    adapters = kit.adapters([0.5], recalled=Recalled(1))
    assert adapters is not None
    assert adapters.view is not kit.view
    other = merged(sd, (tensors, 0.5))
    same = Kit(other).adapters([], recalled=Recalled(1))
    found, expected = (
        play(net, Stream(settings(net, INDICES[2], adapters=own)), pictures(3))[-1]
        for net, own in ((sd, adapters), (other, same))
    )
    assert relative(found, expected) < 1e-4
    ring = adapters.view.self_attentions[0].recall
    assert isinstance(ring, Ring)
    assert ring._keys is not None
    kit.settle(kit.adapters([0.5]))
    assert ring._keys is None
    again = kit.adapters([0.5], recalled=Recalled(1))
    assert again is not None
    assert again.view is not adapters.view


async def test_frames_and_interval_are_live_and_off_is_as_never_on() -> None:
    steps = {"t_index_list": [32]}
    plain, processor = await loaded(**steps), await loaded(**steps)
    held = processor._held
    differs = []
    for number, cached in enumerate(
        (None, {"enabled": True, "max_frames": 2}, {"enabled": True, "max_frames": 3, "interval": 2}, {})
    ):
        await processor.prepare_params({"cached_attention": cached})
        await processor.update_params({"cached_attention": cached})
        for seed in range(2):
            found, expected = [await result(one, frame(2 * number + seed)) for one in (processor, plain)]
        differs.append(not torch.allclose(found, expected, atol=1e-4))
    assert differs == [False, True, True, False]
    assert processor._held is held
    for one in (plain, processor):
        await one.on_stream_stop()


@pytest.mark.parametrize(
    ("given_", "field"),
    [
        ({"cached_attention": {"enabled": True, "max_frames": 5}}, "cached_attention.max_frames"),
        ({"cached_attention": {"enabled": True, "interval": 0}}, "cached_attention.interval"),
        ({"cached_attention": {"enabled": True}, "use_denoising_batch": False}, "params"),
    ],
)
async def test_what_is_out_of_bounds_is_told_by_field(given_: dict[str, object], field: str) -> None:
    with pytest.raises(Exception, match="cached_attention") as caught:
        await loaded(**given_)
    assert getattr(caught.value, "field", None) == field

"""The processor over a model on the disk: loading, live parameters, what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from headrace.diffusion import calls
from headrace.diffusion import compiler as compilers
from headrace.diffusion.calls import Gathering
from headrace.diffusion.processor import StreamDiffusionProcessor
from headrace.models.live_cache import cache_of
from stream.errors import InvalidInput
from stream.frames import VideoFrame

MODEL = "demo:tiny-sd"


@pytest.fixture(scope="module", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HEADRACE_MODELS_FOLDER", str(tmp_path_factory.mktemp("models")))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


async def loaded(**params: Any) -> StreamDiffusionProcessor:
    processor = StreamDiffusionProcessor(model_id=MODEL, **params)
    await processor.load_model()
    return processor


def frame(seed: int = 0, height: int = 64, width: int = 64) -> VideoFrame:
    generator = torch.Generator().manual_seed(seed)
    return VideoFrame(torch.rand((1, height, width, 3), generator=generator), seed, Fraction(1, 30))


async def result(processor: StreamDiffusionProcessor, given: VideoFrame) -> torch.Tensor:
    made = await processor.process_video_async(given)
    assert isinstance(made, VideoFrame)
    tensor: torch.Tensor = made.tensor
    return tensor


async def test_frames_keep_their_size_whatever_it_is() -> None:
    processor = await loaded()
    for height, width in ((64, 64), (65, 83), (72, 40)):
        out = await result(processor, frame(1, height, width))
        assert out.shape == (1, height, width, 3)
        assert 0 <= float(out.min()) < float(out.max()) <= 1
    await processor.on_stream_stop()


async def test_two_streams_share_one_copy_of_the_weights() -> None:
    first, second = await loaded(), await loaded(prompt="a lake", t_index_list=[20])
    assert first._held is not None
    assert second._held is not None
    assert first._held.networks.unet is second._held.networks.unet
    cache = cache_of(str(first._held.networks.device))
    entry = next(entry for entry in cache.entries() if entry.key.ref == MODEL)
    assert entry.leases == 2
    await first.on_stream_stop()
    await second.on_stream_stop()
    assert all(entry.leases == 0 for entry in cache.entries())


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a lake"},
        {"prompt": [["a lake", 1.0], ["a forest", 3.0]]},
        {"seed": 5},
        {"seed": [[5, 1.0], [6, 1.0]]},
        {"t_index_list": [40]},
        {"t_index_list": [10, 20, 30, 40]},
        {"num_inference_steps": 10},
        {"guidance_scale": 1.8},
        {"guidance_scale": 1.8, "cfg_type": "full"},
        {"do_add_noise": False},
        {"use_denoising_batch": False},
        {"skip_diffusion": True},
    ],
)
async def test_a_parameter_shows_in_the_next_frame(change: dict[str, Any]) -> None:
    changed, same = await loaded(), await loaded()
    for number in range(3):
        await result(changed, frame(number))
        await result(same, frame(number))
    await changed.prepare_params(change)
    await changed.update_params(change)
    after = await result(changed, frame(9))
    assert torch.isfinite(after).all()
    assert not torch.equal(after, await result(same, frame(9)))
    assert changed._stream is not None
    await changed.on_stream_stop()
    await same.on_stream_stop()


async def test_what_is_refused_leaves_everything_as_it_was() -> None:
    changed, same = await loaded(), await loaded()
    await result(changed, frame(0))
    await result(same, frame(0))
    for params, field in (
        ({"t_index_list": [60]}, "params"),
        ({"t_index_list": [30, 10]}, "t_index_list"),
        ({"prompt": [["a", 0.0]]}, "params"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"controlnets": [{"model_id": "x", "enabled": True}]}, "controlnets"),
        ({"latent_preprocessing": {"enabled": True}}, "latent_preprocessing"),
        ({"colour": "red"}, "colour"),
        ({"model_id": "nobody/nothing"}, "model_id"),
    ):
        with pytest.raises(Exception, match=r"."):
            await changed.prepare_params(params)
        with pytest.raises(Exception) as caught:  # noqa: PT011 (the field is looked at below)
            await changed.update_params(params)
        assert getattr(caught.value, "field", None) == field
    assert torch.equal(await result(changed, frame(1)), await result(same, frame(1)))
    await changed.on_stream_stop()
    await same.on_stream_stop()


async def test_ai_runners_defaults_are_taken_when_what_is_not_there_is_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = compilers.Compiler(tmp_path, command=("false",))
    monkeypatch.setattr(compilers, "compiler_for", lambda _: compiler)
    given = {
        "acceleration": "tensorrt", "use_lcm_lora": False, "controlnets": [], "lora_dict": None,
        "ip_adapter": {"type": "regular", "enabled": False}, "cached_attention": {"enabled": False},
        "image_preprocessing": None, "use_safety_checker": False,
    }  # fmt: skip
    processor = await loaded(**given)
    assert (await result(processor, frame())).shape == (1, 64, 64, 3)
    await processor.on_stream_stop()
    compiler.stop()
    with pytest.raises(InvalidInput, match="processors around the pipeline"):
        StreamDiffusionProcessor(model_id=MODEL, image_preprocessing={"enabled": True})


async def test_frames_that_look_alike_repeat_the_result() -> None:
    processor = await loaded(enable_similar_image_filter=True, similar_image_filter_max_skip_frame=2)
    given = frame(3)
    outs = [await result(processor, given) for _ in range(4)]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])
    assert not torch.equal(outs[0], outs[3])
    await processor.on_stream_stop()


async def test_a_small_autoencoder_takes_the_place_of_the_models_own(tmp_path: Path) -> None:
    from tests.headrace.diffusion.tiny_networks import tiny_autoencoder

    own = await loaded(t_index_list=[30])
    assert own._held is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_MODELS_FOLDER", str(tmp_path))
        tiny_autoencoder().save_pretrained(tmp_path / "taesd")
        small = await loaded(t_index_list=[30], autoencoder="taesd")
    assert small._held is not None
    assert (own._held.autoencoder, small._held.autoencoder) == ("the model's own", "taesd")
    assert not torch.equal(await result(own, frame()), await result(small, frame()))
    await own.on_stream_stop()
    await small.on_stream_stop()


def test_the_schema_tells_bounds_and_present_values(tmp_path: Path) -> None:
    schema = StreamDiffusionProcessor(model_id=MODEL, guidance_scale=2.0).info().schema
    assert schema["properties"]["guidance_scale"]["default"] == 2.0
    assert schema["properties"]["guidance_scale"]["maximum"] == 30.0


@pytest.mark.parametrize("scale", [1.0, 1.5])
async def test_what_a_single_step_leaves_for_guidance_does_not_grow(scale: float) -> None:
    """There the noise is thirteen times the signal: what goes on is infinite after forty frames."""
    session = await loaded(t_index_list=[0], guidance_scale=scale, cfg_type="self")
    found = []
    for number in range(6):
        await result(session, frame(number))
        assert session._stream is not None
        _, residual = session._stream.state()
        found.append(float(residual.abs().max()))
    assert max(found) < 3 * found[0]
    await session.on_stream_stop()


async def test_frames_of_several_sessions_go_through_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six sessions at once, one of another size: fewer calls than frames, the same results as alone."""
    rows: list[int] = []
    wanted = [{"prompt": f"a lake {number}", "seed": number} for number in range(5)]
    sessions = [await loaded(**one) for one in wanted] + [await loaded(guidance_scale=1.5, cfg_type="full")]
    given = [frame(number) for number in range(5)] + [frame(5, 64, 72)]
    alone = [await result(await loaded(**one), made) for one, made in zip(wanted, given, strict=False)]
    whole = calls.run
    monkeypatch.setattr(calls, "run", lambda *given: rows.append(len(given[1])) or whole(*given))
    together = await asyncio.gather(*(result(*pair) for pair in zip(sessions, given, strict=True)))
    assert rows == [5, 1]  # three rows each: sixteen rows are the limit of a call
    for found, expected in zip(together, alone, strict=False):
        assert torch.allclose(found, expected, atol=1e-4)
    assert together[5].shape == (1, 64, 72, 3)
    for session in sessions:
        await session.on_stream_stop()


def test_a_busy_call_waits_for_the_streams_of_the_last_ones_and_never_long() -> None:
    """Calls of 8 ms."""
    gathering = Gathering()
    assert gathering.wait([1], 0.0, 0.0) == 0  # nobody else is known
    gathering.called([1], 0.000, 0.008)
    gathering.called([2], 0.009, 0.017)
    # The two go by turns: each waits for the other, for a quarter of a call.
    assert gathering.wait([1], 0.018, 0.018) == pytest.approx(0.002)
    assert gathering.wait([1], 0.018, 0.019) == pytest.approx(0.001)
    assert gathering.wait([1, 2, 3], 0.018, 0.018) == 0
    assert gathering.wait([1], 0.018, 0.021) == 0
    # With time to spare a frame goes at once.
    assert gathering.wait([1], 0.026, 0.026) == 0
    gathering.called([1], 0.026, 0.034)
    assert gathering.wait([1], 0.035, 0.035) == 0
    gathering.called([1, 2], 0.1, 1.0)
    assert gathering.wait([1], 1.1, 1.1) == pytest.approx(Gathering.LONGEST)


async def test_a_session_that_gives_up_holds_up_nobody() -> None:
    first, second = await loaded(), await loaded(prompt="a lake")
    gone = asyncio.create_task(result(first, frame(0)))
    stays = asyncio.create_task(result(second, frame(1)))
    await asyncio.sleep(0)
    gone.cancel()
    assert (await stays).shape == (1, 64, 64, 3)
    assert (await result(first, frame(2))).shape == (1, 64, 64, 3)
    for session in (first, second):
        await session.on_stream_stop()


async def test_a_call_that_fails_is_told_to_all_in_it_and_the_next_frame_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sessions = [await loaded(), await loaded(prompt="a lake")]
    assert sessions[0]._held is not None
    networks = sessions[0]._held.networks

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(networks, "step_of", fail)
        found = await asyncio.gather(*(result(one, frame(0)) for one in sessions), return_exceptions=True)
    assert [str(error) for error in found] == ["no memory", "no memory"]
    assert (await result(sessions[0], frame(1))).shape == (1, 64, 64, 3)
    for session in sessions:
        await session.on_stream_stop()

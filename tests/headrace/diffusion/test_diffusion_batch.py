"""The stream batch against the package that brought it, and against itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from headrace.diffusion.asked import Guidance, GuidanceMode, Settings
from headrace.diffusion.frame import advance, run
from headrace.diffusion.networks import Networks
from headrace.diffusion.package import StreamDiffusion
from headrace.diffusion.schedule import constants
from headrace.diffusion.stream import Stream
from stream.errors import InvalidInput, ProcessorError
from tests.headrace.diffusion.tiny_networks import networks, pipeline

INDICES = {1: [32], 2: [16, 32], 4: [5, 16, 32, 45]}
SIZE = 64
PROMPT, NEGATIVE = "a red fox", "grey and flat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sd(folder: Path) -> Networks:
    return networks("sd", folder)


def noise_of(net: Networks, count: int, seed: int) -> torch.Tensor:
    shape = net.latent_shape(SIZE, SIZE)
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed))


def settings(net: Networks, indices: list[int], **more: Any) -> Settings:
    given = {
        "steps": constants(indices, 50, net.alphas_cumprod),
        "noise": noise_of(net, len(indices), more.pop("seed", 2)),
        "positive": net.encode_prompt(more.pop("prompt", PROMPT)),
        "negative": net.encode_prompt(NEGATIVE),
    }
    return Settings(**{**given, **more})


def pictures(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand((1, SIZE, SIZE, 3), generator=generator) for _ in range(count)]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("mode", ["none", "self", "initialize", "full"])
def test_equals_the_package_in_its_own_way_of_starting(
    folder: Path, sd: Networks, mode: GuidanceMode, count: int
) -> None:
    package = pytest.importorskip("streamdiffusion", reason="the package streamdiffusion is not installed")
    theirs = package.StreamDiffusion(
        pipeline("sd", folder), INDICES[count], torch.float32, SIZE, SIZE, cfg_type=mode
    )
    with torch.no_grad():
        theirs.prepare(PROMPT, NEGATIVE, guidance_scale=1.7, delta=0.7, generator=torch.Generator(), seed=2)
    ours = Stream(settings(sd, INDICES[count], guidance=Guidance(mode, 1.7, 0.7)), reference=True)
    for picture in pictures(8):
        with torch.no_grad():
            image = picture.permute(0, 3, 1, 2) * 2 - 1
            expected = theirs.predict_x0_batch(theirs.encode_image(image))
            found = advance(sd, [ours], sd.encode(picture))
        assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("mode", ["none", "full"])
def test_equals_the_package_step_after_step(folder: Path, sd: Networks, mode: GuidanceMode) -> None:
    package = pytest.importorskip("streamdiffusion", reason="the package streamdiffusion is not installed")
    theirs = package.StreamDiffusion(
        pipeline("sd", folder), INDICES[2], torch.float32, SIZE, SIZE, do_add_noise=False,
        use_denoising_batch=False, cfg_type="none",
    )  # fmt: skip
    with torch.no_grad():
        theirs.prepare(PROMPT, NEGATIVE, generator=torch.Generator(), seed=2)
    guidance = Guidance(mode, 1.0)
    ours = Stream(settings(sd, INDICES[2], guidance=guidance, renoise=False, sequential=True, noise=torch.cat(
        [noise_of(sd, 1, 2)] * 2)))  # fmt: skip
    picture = pictures(1)[0]
    with torch.no_grad():
        expected = theirs.predict_x0_batch(theirs.encode_image(picture.permute(0, 3, 1, 2) * 2 - 1))
        found = advance(sd, [ours], sd.encode(picture))
    assert relative(found, expected) < 1e-5


def play(net: Networks, stream: Stream, frames: list[torch.Tensor]) -> list[torch.Tensor]:
    return [run(net, [stream], [frame])[0] for frame in frames]


@pytest.mark.parametrize("count", [2, 4])
def test_a_stream_begins_with_its_first_frame_in_every_slot(sd: Networks, count: int) -> None:
    """A still camera: what leaves first has come through all steps, as what leaves when the pipe is full."""
    still = pictures(1) * (2 * count)
    out = play(
        sd, Stream(settings(sd, [16] * count, noise=noise_of(sd, 1, 2).expand(count, -1, -1, -1))), still
    )
    # Slots of the same step and noise, filled with the clean picture: the first result is one step from it.
    once = Stream(settings(sd, [16]))
    assert relative(out[0], run(sd, [once], [still[0]])[0]) < 1e-5
    assert not torch.equal(out[0], out[-1])


def test_sessions_in_one_call_equal_sessions_alone(sd: Networks) -> None:
    def made() -> list[Stream]:
        return [
            Stream(settings(sd, INDICES[1], prompt="a fox", seed=1)),
            Stream(settings(sd, INDICES[4], prompt="a lake", seed=2, guidance=Guidance("self", 2.0, 0.5))),
            Stream(settings(sd, INDICES[2], prompt="a city", seed=3, guidance=Guidance("full", 1.5))),
            Stream(settings(sd, INDICES[2], prompt="a cat", seed=4, guidance=Guidance("initialize", 1.5))),
            Stream(settings(sd, INDICES[2], prompt="a dog", seed=5, sequential=True)),
        ]

    frames = [pictures(4, seed) for seed in range(5)]
    alone = [play(sd, stream, own) for stream, own in zip(made(), frames, strict=True)]
    streams = made()
    for number in range(4):
        together = run(sd, streams, [own[number] for own in frames])
        for index, picture in enumerate(together):
            assert relative(picture, alone[index][number]) < 1e-4


def test_other_steps_seeds_and_noise_hold_from_the_next_frame(sd: Networks) -> None:
    """After a change the next frame equals that of a stream which has the same frames under way."""
    frames = pictures(6)
    stream = Stream(settings(sd, [16, 32]))
    play(sd, stream, frames[:5])
    other = settings(sd, [5, 45], seed=9, renoise=False)
    twin = Stream(other)
    assert stream.clean is not None
    twin.clean = stream.clean.clone()
    stream.apply(other)
    assert torch.equal(run(sd, [stream], [frames[5]])[0], run(sd, [twin], [frames[5]])[0])


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 3), (3, 2)])
def test_more_or_fewer_steps_keep_what_is_under_way(sd: Networks, before: int, after: int) -> None:
    indices = [5, 16, 32, 45]
    stream = Stream(settings(sd, indices[:before], guidance=Guidance("self", 1.5, 0.5)))
    play(sd, stream, pictures(5))
    stream.apply(settings(sd, indices[:after], guidance=Guidance("self", 1.5, 0.5)))
    assert stream.delay == after - 1
    out = play(sd, stream, pictures(4, seed=3))
    assert all(torch.isfinite(picture).all() and picture.std() > 0 for picture in out)


def test_a_full_batch_of_prompts_reaches_sdxl(folder: Path) -> None:
    net = networks("sdxl", folder)
    stream = Stream(settings(net, INDICES[2], guidance=Guidance("full", 1.5)))
    out = play(net, stream, pictures(3))
    assert out[-1].shape == (1, SIZE, SIZE, 3)
    assert 0 <= float(out[-1].min()) <= float(out[-1].max()) <= 1


def test_velocity_is_read_as_noise(sd: Networks) -> None:
    """v = signal * eps - noise * x0 (Salimans and Ho 2022): what such a network says becomes the picture."""
    scheduler = type("S", (), {"config": {"prediction_type": "v_prediction"}})
    net = Networks({**sd.parts, "scheduler": scheduler}, torch.device("cpu"), torch.float32)
    given = settings(net, [32])
    signal, noise = given.steps[0].signal, given.steps[0].noise
    clean = torch.randn(1, 4, 8, 8)
    net.view.forward = lambda *_: signal * given.noise - noise * clean  # type: ignore[method-assign]
    assert relative(advance(net, [Stream(given)], clean), clean) < 1e-4


@pytest.mark.parametrize("mode", ["none", "full"])
def test_scripts_of_the_package_run(folder: Path, mode: GuidanceMode) -> None:
    stream = StreamDiffusion(pipeline("sd", folder), [16, 32], torch.float32, SIZE, SIZE, cfg_type=mode)
    with pytest.raises(ProcessorError, match="prepare"):
        stream(torch.zeros(1, 3, SIZE, SIZE))
    stream.prepare(PROMPT, NEGATIVE, guidance_scale=1.5)
    picture = Image.fromarray((pictures(1)[0][0] * 255).byte().numpy())
    before = [stream(picture) for _ in range(3)]
    assert before[-1].shape == (1, 3, SIZE, SIZE)
    stream.update_prompt("a lake at night")
    assert not torch.equal(stream(picture), before[-1])
    stream.enable_similar_image_filter(0.9, 1)
    results = [stream(picture) for _ in range(3)]
    assert torch.equal(results[0], results[1])
    assert stream.txt2img(2).shape == (2, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("more", "field"), [({"width": 60}, "width"), ({"frame_buffer_size": 17}, "frame_buffer_size")]
)
def test_what_the_package_takes_and_this_does_not_is_named(
    folder: Path, more: dict[str, int], field: str
) -> None:
    with pytest.raises(InvalidInput, match=field):
        StreamDiffusion(
            pipeline("sd", folder), [32], torch.float32, **{"width": SIZE, "height": SIZE, **more}
        )


@pytest.mark.parametrize("mode", ["none", "full"])
def test_frames_in_a_buffer_are_those_of_the_package(folder: Path, mode: GuidanceMode) -> None:
    """With one step, for which alone the package has buffers."""
    package = pytest.importorskip("streamdiffusion", reason="the package streamdiffusion is not installed")
    given = (pipeline("sd", folder), INDICES[1], torch.float32, SIZE, SIZE)
    theirs = package.StreamDiffusion(*given, frame_buffer_size=2, cfg_type=mode)
    ours = StreamDiffusion(*given, frame_buffer_size=2, cfg_type=mode)
    theirs.prepare(PROMPT, NEGATIVE, guidance_scale=1.7, generator=torch.Generator(), seed=2)
    ours.prepare(PROMPT, NEGATIVE, guidance_scale=1.7, generator=torch.Generator(), seed=2)
    image = torch.cat(pictures(2)).permute(0, 3, 1, 2) * 2 - 1
    expected = theirs.decode_image(theirs.predict_x0_batch(theirs.encode_image(image))).clamp(-1, 1)
    assert relative(ours(image), expected) < 1e-5


def test_places_of_a_buffer_are_streams_of_their_own(folder: Path) -> None:
    given = (pipeline("sd", folder), INDICES[2], torch.float32, SIZE, SIZE)
    both = StreamDiffusion(*given, frame_buffer_size=2)
    alone = [StreamDiffusion(*given) for _ in range(2)]
    for stream in (both, *alone):
        stream.prepare(PROMPT, guidance_scale=1.5)
    for first, second in zip(pictures(3, 1), pictures(3, 2), strict=True):
        images = [one.permute(0, 3, 1, 2) * 2 - 1 for one in (first, second)]
        expected = torch.cat([stream(image) for stream, image in zip(alone, images, strict=True)])
        assert relative(both(torch.cat(images)), expected) < 1e-5
    assert both.txt2img(3).shape == (3, 3, SIZE, SIZE)
    with pytest.raises(InvalidInput, match="1 x 3 x 64 x 64; 2 x 3"):
        both(images[0])

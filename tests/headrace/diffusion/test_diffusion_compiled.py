"""Compiling in a process beside: what comes of it, what is kept, what becomes of failures."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import AutoencoderTiny

from headrace.diffusion import compiler as compilers
from headrace.diffusion.acceleration import Acceleration
from headrace.diffusion.adapters import Kit, Recalled
from headrace.diffusion.compiler import Compiler
from headrace.diffusion.lora_branch import LORA_SCALES, blank
from headrace.diffusion.pieces import NetworkSpec, Piece, Recipe, padded_to, recipes_of
from headrace.diffusion.step import Decode
from headrace.diffusion.stream import Stream
from headrace.diffusion.view import Branched
from headrace.models.tiny import fill
from stream.processor import Emission
from tests.headrace.diffusion.test_diffusion_batch import settings
from tests.headrace.diffusion.test_diffusion_processor import frame, loaded, result

LATENTS = (1, 4, 8, 8)
QUICK = {
    "aot_inductor.compile_wrapper_opt_level": "O0",
    "aot_inductor.precompile_headers": False,
    "cpp.vec_isa_ok": True,
}
"""Options that make compiling quicker: a header is only worth preparing for more than one piece, and that the
compiler knows the instructions of this machine need not be tried."""
PATIENCE = 300.0


@pytest.fixture(scope="module", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setenv("HEADRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def vae() -> Any:
    return fill(
        AutoencoderTiny(
            encoder_block_out_channels=(4,), decoder_block_out_channels=(4,),
            num_encoder_blocks=(1,), num_decoder_blocks=(1,),
        ),
        "smallest",
    ).eval()  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "compiled"


def piece_of(vae: Any, **more: Any) -> Piece:
    given = {"tensors": (("given", LATENTS, "float32"),), "networks": (NetworkSpec.of(vae),)}
    return Piece("decode", "cpu", "float32", **{**given, "inductor": QUICK, **more})


def asked(acceleration: Acceleration, vae: Any, module: Decode) -> Any:
    return acceleration.find("decode", (("given", LATENTS, "float32"),), module, [vae])


def settled(acceleration: Acceleration) -> tuple[str, str]:
    begun = time.monotonic()
    while acceleration.state[0] == "compiling" and time.monotonic() - begun < PATIENCE:
        time.sleep(0.02)
    return acceleration.state


def accelerated(compiler: Compiler) -> Acceleration:
    found = Acceleration(torch.device("cpu"), torch.float32)
    found.use(compiler, QUICK)
    return found


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_piece_says_what_its_module_says_over_the_same_weights(vae: Any, folder: Path) -> None:
    compiler, module = Compiler(folder), Decode(vae).eval()
    first = accelerated(compiler)
    assert asked(first, vae, module) is None
    assert first.state == ("compiling", "")
    assert settled(first) == ("compiled", "")
    compiler.stop()
    run = asked(first, vae, module)
    latents = torch.randn(LATENTS, generator=torch.Generator().manual_seed(3))
    assert float((run(latents) - module(latents)).abs().max()) < 1 / 255
    assert [path.suffix for path in folder.iterdir()] == [".pt2"]

    # Another process's worth of objects finds it on the disk; what compiles here cannot.
    again = Compiler(folder, command=("false",))
    second = accelerated(again)
    assert asked(second, vae, module) is None
    assert settled(second) == ("compiled", "")
    again.stop()
    run = asked(second, vae, module)
    weight = vae.decoder.layers[0].weight
    kept = weight.clone()
    weight.mul_(2.0)
    assert float((run(latents) - module(latents)).abs().max()) < 1 / 255
    weight.copy_(kept)


def test_a_piece_that_cannot_be_made_has_a_reason(vae: Any, folder: Path) -> None:
    compiler = Compiler(folder, command=("sh", "-c", "echo the disk is full >&2; exit 1", "sh"))
    acceleration, module = accelerated(compiler), Decode(vae).eval()
    assert asked(acceleration, vae, module) is None
    assert settled(acceleration) == ("eager", "the disk is full")
    assert asked(acceleration, vae, module) is None
    assert acceleration.state == ("eager", "the disk is full")
    compiler.stop()
    assert not list(folder.iterdir())


def test_a_broken_package_is_removed(vae: Any, folder: Path) -> None:
    folder.mkdir()
    path = folder / f"{piece_of(vae, options={}).key}.pt2"
    path.write_bytes(b"nothing")
    compiler = Compiler(folder, command=("false",))
    acceleration = accelerated(compiler)
    module = Decode(vae).eval()
    asked(acceleration, vae, module)
    state, reason = settled(acceleration)
    assert state == "eager"
    assert "could not be loaded" in reason
    assert not path.exists()
    compiler.stop()


@pytest.mark.parametrize("how", ["limit", "stop", "unwanted"])
def test_what_takes_too_long_or_is_not_wanted_is_killed_with_its_children(
    vae: Any, folder: Path, how: str, tmp_path: Path
) -> None:
    alive = tmp_path / "alive"
    script = f"(sleep 60; touch {alive}) & wait"
    compiler = Compiler(folder, command=("sh", "-c", script, "sh"), limit=0.3 if how == "limit" else 60)
    told: list[tuple[Path | None, str]] = []
    done = threading.Event()

    def made(path: Path | None, reason: str) -> None:
        told.append((path, reason))
        done.set()

    wanted = threading.Event()
    wanted.set()
    assert compiler.ask(piece_of(vae), made, wanted.is_set)
    if how == "stop":
        while compiler._process is None:
            time.sleep(0.01)
        compiler.stop()
    if how == "unwanted":
        while compiler._process is None:
            time.sleep(0.01)
        wanted.clear()
    assert done.wait(10)
    assert told[0][0] is None
    assert {"limit": "longer than", "stop": "stopped", "unwanted": "nobody wants"}[how] in told[0][1]
    compiler.stop()
    assert compiler._thread is not None
    assert not compiler._thread.is_alive()
    assert not compiler.ask(piece_of(vae), made, lambda: True)


def test_a_piece_is_told_apart_by_all_that_matters(vae: Any) -> None:
    piece = piece_of(vae)
    assert Piece.load(piece.dump()) == piece
    assert Piece.load(piece.dump()).key == piece.key
    others = [
        piece_of(vae, tensors=(("given", (2, 4, 8, 8), "float32"),)),
        piece_of(vae, inductor={}),
        piece_of(vae, options={"channels_last": True}),
        piece_of(vae, recipes=(Recipe("conv_out", "a:b", {"rank": 4}),)),
        piece_of(vae, networks=(NetworkSpec("AutoencoderTiny", {"latent_channels": 8}),)),
    ]
    assert len({one.key for one in (piece, *others)}) == 1 + len(others)
    assert [padded_to("step", count) for count in (1, 5, 16, 17)] == [1, 6, 16, None]


async def test_frames_go_on_while_compiling_fails_and_the_session_says_why(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    compiler = Compiler(folder, command=("sh", "-c", "echo no compiler >&2; exit 1", "sh"))
    monkeypatch.setattr(compilers, "compiler_for", lambda _: compiler)
    processor = await loaded(acceleration="compile")
    said: list[Emission] = []
    processor.bind(said.append)
    plain = await loaded()
    for number in range(3):
        assert torch.equal(await result(processor, frame(number)), await result(plain, frame(number)))
    assert processor._held is not None
    assert settled(processor._held.networks.acceleration) == ("eager", "no compiler")
    await result(processor, frame(4))
    assert [one.data["acceleration"] for one in said][-1] == "eager"
    assert said[-1].data == {"type": "processor", "acceleration": "eager", "reason": "no compiler"}
    for one in (processor, plain):
        await one.on_stream_stop()
    compiler.stop()


def test_recipes_are_asked_of_every_branch(tmp_path: Path) -> None:
    from tests.headrace.diffusion.tiny_networks import networks

    view = networks("sd", tmp_path).view.twin()
    assert recipes_of(view) == ()

    class Branch(torch.nn.Module):
        recipe = ("module:name", {"rank": 2})

        def forward(self, x: torch.Tensor, given: Any) -> torch.Tensor:
            return x[:, :4]

    view.attach("conv_out", Branch())
    assert recipes_of(view) == (Recipe("conv_out", "module:name", {"rank": 2}),)
    view.attach("conv_out", lambda x, given: x)
    assert recipes_of(view) is None


def test_a_stream_that_recalls_stays_eager_and_says_why(tmp_path: Path) -> None:
    from tests.headrace.diffusion.tiny_networks import networks

    net, compiler = networks("sd", tmp_path), Compiler(tmp_path, command=("false",))
    net.acceleration.use(compiler)
    adapters = Kit(net).adapters([], recalled=Recalled(1))
    assert net.compiled_step(1, Stream(settings(net, [32], adapters=adapters))) is None
    state, reason = net.acceleration.state
    assert state == "eager"
    assert "cached attention" in reason
    compiler.stop()


def test_a_module_is_after_tracing_what_it_was(tmp_path: Path) -> None:
    """It is then compared with what was made of it: what a call is given must still reach every layer."""
    from tests.headrace.diffusion.tiny_networks import networks

    given = networks("sd", tmp_path).view.twin().given

    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.given, self.layer = (
                given,
                Branched(torch.nn.Linear(4, 4), blank([2, 4], [4, 2], 0, None), given),
            )

        def forward(self, x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
            self.given[LORA_SCALES] = scales
            found: torch.Tensor = self.layer(x)
            self.given.clear()
            return found

    module, tensors = Scaled(), (torch.randn(2, 4), torch.tensor([[0.0], [1.0]]))
    expected = module(*tensors)
    exported = torch.export.export(module, tensors, strict=False)
    for again in (module, exported.module()):
        torch.testing.assert_close(again(*tensors), expected)

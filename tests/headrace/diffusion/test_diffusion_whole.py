"""The frame over fixed addresses: padded rows, live changes in place, and nothing read back."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from headrace.diffusion.acceleration import Acceleration, Run
from headrace.diffusion.asked import Adapters, Conditioning, Control, Guidance
from headrace.diffusion.attention import Given
from headrace.diffusion.frame import run
from headrace.diffusion.networks import Networks
from headrace.diffusion.pieces import Described, Kind, Recipe
from headrace.diffusion.stream import Stream
from tests.headrace.diffusion.test_diffusion_batch import INDICES, pictures, play, relative, settings
from tests.headrace.diffusion.test_diffusion_controls import net_for
from tests.headrace.diffusion.tiny_networks import networks


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return networks("sd", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def net(sd: Networks) -> Any:
    return net_for(sd.unet, "edges")


class Modules(Acceleration):
    """Gives the modules themselves for compiled ones, and checks that they get what they were asked for."""

    in_use = True

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), torch.float32)
        self.asked: list[tuple[Kind, int]] = []

    def find(
        self,
        kind: Kind,
        tensors: Described,
        module: torch.nn.Module,
        networks: Sequence[Any],
        *,
        owner: object = None,
        options: Mapping[str, bool] | None = None,
        recipes: tuple[Recipe, ...] | None = (),
    ) -> Run | None:
        known = self._ready.get((kind, owner, tensors))
        if known is not None:
            return known

        def checked(*given: torch.Tensor) -> Any:
            assert [(tuple(one.shape), str(one.dtype)[6:]) for one in given] == [
                (shape, dtype) for _, shape, dtype in tensors
            ]
            return module(*given)

        self.asked.append((kind, tensors[0][1][0]))
        self._ready[kind, owner, tensors] = checked
        return checked


@pytest.fixture
def whole(sd: Networks, monkeypatch: pytest.MonkeyPatch) -> Modules:
    found = Modules()
    monkeypatch.setattr(sd, "acceleration", found)
    monkeypatch.setattr(sd, "_places", {})
    return found


def several(sd: Networks, net: Any = None) -> list[Stream]:
    controls = () if net is None else (Control(net, lambda picture: picture, 0.7, start=0.3),)
    return [
        Stream(settings(sd, INDICES[1], prompt="a fox", seed=1, controls=controls)),
        Stream(settings(sd, INDICES[4], seed=2, guidance=Guidance("self", 2.0, 0.5), controls=controls)),
        Stream(settings(sd, INDICES[2], seed=3, guidance=Guidance("initialize", 1.5), controls=controls)),
        Stream(settings(sd, INDICES[2], seed=4, guidance=Guidance("full", 1.5), controls=controls)),
        Stream(settings(sd, INDICES[1], seed=5, controls=controls)),
    ]


@pytest.mark.parametrize("with_net", [False, True])
def test_padded_rows_change_nothing_of_the_others(
    sd: Networks, net: Any, whole: Modules, with_net: bool
) -> None:
    """Five sessions of 13 rows together, on 8 pictures and 16 rows, as each alone by the modules."""
    given = net if with_net else None
    frames = [pictures(3, seed) for seed in range(5)]
    alone = [
        [run(sd, [stream], [frame], eager=True)[0] for frame in own]
        for stream, own in zip(several(sd, given), frames, strict=True)
    ]
    streams = several(sd, given)
    for number in range(3):
        together = run(sd, streams, [own[number] for own in frames])
        for index, picture in enumerate(together):
            assert relative(picture, alone[index][number]) < 1e-4
    assert whole.asked == [("encode", 8), ("step", 16), ("decode", 8)]


def test_streams_come_go_and_change_without_another_piece_or_address(sd: Networks, whole: Modules) -> None:
    """All that is live, and a second stream now and then, at the same addresses, with the eager results."""
    mine = [Stream(settings(sd, INDICES[2], seed=3)), Stream(settings(sd, INDICES[1], seed=4))]
    twins = [Stream(stream.settings) for stream in mine]
    frames = pictures(9)
    negative = sd.encode_prompt("grey")
    changes: list[dict[str, Any]] = [
        {},
        {"positive": sd.encode_prompt("a lake")},
        {"noise": mine[0].settings.noise.flip(-1)},
        {"steps": settings(sd, [10, 40]).steps},
        {"renoise": False},
        {"guidance": Guidance("self", 1.7, 0.6)},
        {"guidance": Guidance("initialize", 1.7, 0.6), "negative": negative},
        {"guidance": Guidance("none")},
    ]
    places: set[Any] = set()
    addresses: set[tuple[tuple[str, int], ...]] = set()
    for number, (frame, change) in enumerate(zip(frames, changes, strict=False)):
        for streams in (mine, twins):
            streams[0].apply(replace(streams[0].settings, **change))
        count = 2 if number % 3 else 1
        found = run(sd, mine[:count], [frame] * count)
        expected = run(sd, twins[:count], [frame] * count, eager=True)
        for one, other in zip(found, expected, strict=True):
            assert relative(one, other) < 1e-4
        for place in sd._places.values():
            if place.whole is not None:
                places.add(place)
                own = tuple((name, value.data_ptr()) for name, value in place.tensors.items())
                addresses.add((("place", id(place)), *own))
    assert len(addresses) == len(places)
    assert len([one for one in whole.asked if one[0] == "step"]) == len({place.capacity for place in places})


def test_a_stream_goes_on_when_its_pieces_come(sd: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(settings(sd, INDICES[4], guidance=Guidance("self", 1.5, 0.5)))
    frames = pictures(8)
    expected = play(sd, Stream(stream.settings), frames)
    found = play(sd, stream, frames[:3])
    with monkeypatch.context() as patch:
        patch.setattr(sd, "acceleration", Modules())
        found += play(sd, stream, frames[3:6])
    found += play(sd, stream, frames[6:])
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other) < 1e-4


def test_what_adapters_are_given_reaches_the_pieces(sd: Networks, whole: Modules) -> None:
    view = sd.view.twin()

    def branch(x: torch.Tensor, given: Given) -> torch.Tensor:
        return x[:, :4] * given["scale"].view(-1, 1, 1, 1)

    view.attach("conv_out", branch)
    streams = [
        Stream(settings(sd, INDICES[2], adapters=Adapters(view, {"scale": torch.tensor([scale])})))
        for scale in (0.0, 0.5, 1.0)
    ]
    frame = pictures(1)[0]
    expected = [run(sd, [Stream(one.settings)], [frame], eager=True)[0] for one in streams]
    for found, other in zip(run(sd, streams, [frame] * 3), expected, strict=True):
        assert relative(found, other) < 1e-4
    assert ("step", 6) in whole.asked


@pytest.mark.parametrize("padded", [False, True])
def test_nothing_is_read_back_from_the_device_in_a_frame(
    sd: Networks, net: Any, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole frames on tensors without data: reading a value, or a shape that depends on one, would fail."""
    parts = {name: sd.parts[name] for name in ("text_encoder", "tokenizer", "scheduler")}
    for name in ("unet", "vae"):
        parts[name] = copy.deepcopy(sd.parts[name]).to("meta")
    meta = Networks(parts, torch.device("meta"), torch.float32)
    if padded:
        meta.acceleration = Modules()
    nowhere = copy.deepcopy(net).to("meta")
    prompt = Conditioning(sd.encode_prompt("a fox").text.to("meta"))
    streams = [
        Stream(
            replace(
                stream.settings, noise=stream.settings.noise.to("meta"), positive=prompt, negative=prompt,
                controls=(Control(nowhere, lambda picture: picture, 0.5),),
            )
        )
        for stream in several(sd)
    ]  # fmt: skip
    for _ in range(3):
        out = run(meta, streams, [torch.empty((1, 64, 64, 3), device="meta")] * 5)
        assert [one.shape for one in out] == [(1, 64, 64, 3)] * 5

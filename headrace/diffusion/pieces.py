"""The parts of a frame that are compiled, each for a number of pictures or rows, as data and as modules.

A piece is described by plain values, so that another process can build the same from networks of the same
shape and make a package of it without their weights.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from headrace.diffusion.rows import COLUMNS
from headrace.diffusion.step import ControlRows, Decode, Encode, Step, StepRows
from headrace.diffusion.view import NetworkView, to_channels_last

Kind = Literal["encode", "step", "decode"]
Described = tuple[tuple[str, tuple[int, ...], str], ...]
"""Name, shape and type of tensors."""
LADDER: Mapping[Kind, tuple[int, ...]] = {
    "encode": (1, 2, 4, 8, 16), "step": (1, 2, 3, 4, 6, 8, 12, 16), "decode": (1, 2, 4, 8, 16),
}  # fmt: skip
"""Numbers of pictures and rows that are compiled; others are padded to the next."""
_SOURCES = ("attention", "lora_branch", "pieces", "rows", "step", "view")


@dataclass(frozen=True)
class NetworkSpec:
    """A network of diffusers by class and configuration."""

    name: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, network: Any) -> NetworkSpec:
        config = {name: value for name, value in network.config.items() if not name.startswith("_")}
        return cls(network.config.get("_class_name", type(network).__name__), plain(config))


@dataclass(frozen=True)
class Piece:
    """``tensors``: what goes in, in order; ``networks``: the autoencoder, or the network and its nets;
    ``options``: of the view; ``inductor``: options of the compiler."""

    kind: Kind
    device: str
    dtype: str
    tensors: Described
    networks: tuple[NetworkSpec, ...]
    options: Mapping[str, bool] = field(default_factory=dict)
    inductor: Mapping[str, Any] = field(default_factory=dict)
    recipes: tuple[Recipe, ...] = ()

    @property
    def key(self) -> str:
        """Different for whatever would give other code: torch, device, shapes, networks, our own sources."""
        told = {**asdict(self), "torch": torch.__version__, "device": machine(self.device), "code": _code()}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Piece:
        told = json.loads(text)
        tensors = tuple((name, tuple(shape), dtype) for name, shape, dtype in told["tensors"])
        networks = tuple(NetworkSpec(**one) for one in told["networks"])
        recipes = tuple(Recipe(**one) for one in told["recipes"])
        return cls(**{**told, "tensors": tensors, "networks": networks, "recipes": recipes})


@dataclass(frozen=True)
class Recipe:
    """A branch of an adapter: its layer, the function that makes it (``module:name``), and with what."""

    layer: str
    target: str
    arguments: Mapping[str, Any]

    def branch(self) -> Any:
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)(**self.arguments)


def recipes_of(view: NetworkView) -> tuple[Recipe, ...] | None:
    """Of all that was attached to a view; None where something cannot be made elsewhere."""
    found = []
    for layer, branch in view.source.attached:
        recipe = getattr(branch, "recipe", None)
        if recipe is None:
            return None
        found.append(Recipe(layer, recipe[0], plain(recipe[1])))
    return None if any(one.recall is not None for one in view.self_attentions) else tuple(found)


class FlatStep(nn.Module):
    """A `Step` from tensors in a row: those of `StepRows`, of each net's `ControlRows`, what is given."""

    def __init__(self, step: Step, names: Sequence[str]) -> None:
        super().__init__()
        self.step, self.names = step, tuple(names)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own, width = len(StepRows._fields), len(ControlRows._fields)
        controls = []
        for _ in self.step.controls:
            controls.append(ControlRows(*tensors[own : own + width]))
            own += width
        given = dict(zip(self.names[own:], tensors[own:], strict=True))
        found: tuple[torch.Tensor, torch.Tensor] = self.step(
            StepRows(*tensors[: len(StepRows._fields)]), tuple(controls), given
        )
        return found


def flat_rows(
    rows: StepRows, controls: Sequence[ControlRows], given: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Everything that a step gets, by name, in the order of `FlatStep`."""
    found = rows._asdict()
    for number, control in enumerate(controls):
        found |= {f"{name} {number}": value for name, value in control._asdict().items()}
    return found | {name: given[name] for name in sorted(given)}


def module_of(piece: Piece, networks: Sequence[Any]) -> nn.Module:
    """What is compiled, over networks that the caller has made."""
    if piece.kind != "step":
        if piece.options.get("channels_last"):
            to_channels_last(networks[0])
        return (Encode if piece.kind == "encode" else Decode)(networks[0]).eval()
    options = {name: piece.options[name] for name in ("fused", "channels_last")}
    view, *controls = (NetworkView(network, **options) for network in networks)
    for recipe in piece.recipes:
        branch = recipe.branch()
        view.attach(
            recipe.layer, branch.to(next(view.parameters())) if isinstance(branch, nn.Module) else branch
        )
    step = Step(view, tuple(controls), velocity=piece.options["velocity"])
    return FlatStep(step, [name for name, _, _ in piece.tensors]).eval()


def padded_to(kind: Kind, count: int) -> int | None:
    """The next number that is compiled; None where it is beyond all."""
    return next((size for size in LADDER[kind] if size >= count), None)


def step_tensors(
    capacity: int,
    latent: tuple[int, ...],
    tokens: int,
    views: Sequence[NetworkView],
    given: Mapping[str, torch.Tensor],
) -> Described:
    """What a `FlatStep` of so many rows gets. ``views``: of the network and its nets; ``given``: of a row."""
    of_rows = dict.fromkeys(("sources", "residual", "offset", "base", "next_noise"), latent)
    of_rows |= {"columns": (len(COLUMNS),), "residual_from": (), "partner": ()}
    types = {"residual_from": "int64", "partner": "int64"}
    kind = str(next(views[0].parameters()).dtype)[6:]

    def conditioned(view: NetworkView) -> dict[str, tuple[tuple[int, ...], str]]:
        return {"time": ((view.time_width,), kind), "text": ((tokens, view.text_width), kind)}

    found: dict[str, tuple[tuple[int, ...], str]] = {
        name: conditioned(views[0])[name]
        if name in ("time", "text")
        else (of_rows[name], types.get(name, "float32"))
        for name in StepRows._fields
    }
    sides = tuple(side * 8 for side in latent[-2:])
    for number, view in enumerate(views[1:]):
        own = {"pictures": ((3, *sides), "float32"), "scales": ((1, 1, 1), "float32"), **conditioned(view)}
        found |= {f"{name} {number}": own[name] for name in ControlRows._fields}
    found |= {name: (tuple(given[name].shape[1:]), str(given[name].dtype)[6:]) for name in sorted(given)}
    return tuple((name, (capacity, *shape), dtype) for name, (shape, dtype) in found.items())


def machine(device: str) -> str:
    """What compiled code is made for."""
    if not device.startswith("cuda"):
        return torch.backends.cpu.get_cpu_capability()
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} sm_{major}{minor} cuda {torch.version.cuda}"


def plain(value: Any) -> Any:
    """As JSON would give it back."""
    return json.loads(json.dumps(value, default=str))


def _code() -> str:
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / f"{name}.py").read_bytes() for name in _SOURCES)).hexdigest()[
        :16
    ]

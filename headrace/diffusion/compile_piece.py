"""The process that makes a package: ``python -m headrace.diffusion.compile_piece PIECE PACKAGE PARENT``.

The networks have random weights of their own here. The package holds none: whoever loads it lends it his.
What was compiled is compared with what it was made from before it counts. Ends with the process ``PARENT``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from headrace.diffusion.pieces import Piece, module_of
from headrace.engine.bootstrap import die_with_parent

FIXED = {
    "aot_inductor.package_constants_in_so": False,
    # Else the smallest weights, biases of a few channels, are written into the code.
    "always_keep_tensor_constants": True,
}
CUDA = {"max_autotune": True, "coordinate_descent_tuning": True, "conv_1x1_as_mm": True}
ALLOWED = {"float32": 2e-3, "float16": 3e-2, "bfloat16": 1e-1}
"""How far compiled and eager may be from each other, relative, in each kind of number."""


def build(piece: Piece) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The piece over random weights, and random tensors for it."""
    import diffusers

    device, dtype = torch.device(piece.device), getattr(torch, piece.dtype)
    networks: list[Any] = []
    for spec in piece.networks:
        with torch.device(device):
            network = getattr(diffusers, spec.name).from_config(dict(spec.config))
        networks.append(network.to(dtype).eval().requires_grad_(requires_grad=False))
    random = torch.Generator().manual_seed(0)
    tensors = [
        torch.rand(shape, generator=random).to(device, getattr(torch, kind))
        if not kind.startswith("int")
        else torch.arange(shape[0], device=device)
        for _, shape, kind in piece.tensors
    ]
    return module_of(piece, networks), tuple(tensors)


@torch.no_grad()
def compile_piece(piece: Piece, target: Path) -> None:
    """Export, compile, compare. Raises whatever torch raises, and `ValueError` for other results."""
    module, tensors = build(piece)
    exported = torch.export.export(module, tensors, strict=False)
    options = {**FIXED, **(CUDA if piece.device.startswith("cuda") else {}), **piece.inductor}
    torch._inductor.aoti_compile_and_package(exported, package_path=str(target), inductor_configs=options)
    package = torch._inductor.aoti_load_package(str(target))
    weights = dict(module.state_dict())
    lent = {name: weights[name] for name in package.get_constant_fqns()}
    package.load_constants(lent, check_full_update=True, user_managed=True)
    # Other weights than it was compiled with, so that none of those can have stayed in there.
    for weight in module.parameters():
        weight.add_(0.1 * torch.randn_like(weight) * weight.std(correction=0).clamp_min(0.5))
    expected = _all(module(*tensors))
    for found, wanted in zip(_all(package(*tensors)), expected, strict=True):
        off = float((found - wanted).float().norm() / wanted.float().norm().clamp_min(1e-6))
        if not off <= ALLOWED[piece.dtype]:
            raise ValueError(f"what was compiled is {off:.1e} off")


def _all(found: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [found] if isinstance(found, torch.Tensor) else list(found)


def main() -> int:
    die_with_parent(int(sys.argv[3]))
    os.nice(10)  # frames go first
    piece, target = Piece.load(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    compile_piece(piece, target)
    return 0


if __name__ == "__main__":
    sys.exit(main())

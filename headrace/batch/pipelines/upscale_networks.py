"""Convolutional networks that enlarge pictures, from the files that people have of them.

ESRGAN's RRDBNet (Wang et al., arXiv 1809.00219) and the compact network of Real-ESRGAN (arXiv 2107.10833).
Which one a file is and how large is read off the names and shapes of its tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from headrace.models.errors import LoadFailed

_RESIDUE = 0.2
"""Share of a block's result that is added to what went in."""
_SLOPE = 0.2

_OTHER_NAMES = (
    (r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2."),
    (r"^trunk_conv\.", "conv_body."),
    (r"^upconv(\d)\.", r"conv_up\1."),
    (r"^HRconv\.", "conv_hr."),
    (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3."),
    (r"^model\.1\.sub\.\d+\.(weight|bias)$", r"conv_body.\1"),
    (r"^model\.0\.(weight|bias)$", r"conv_first.\1"),
)
"""Names in earlier files of the same network, and what they are called here."""


class Upscaler(nn.Module):
    """Takes and gives [pictures, 3, height, width], 0..1."""

    scale: int

    reach: int
    """Pixels around one that have a say in it, as far as tiles need to know."""

    tiled: bool = True
    """Whether it may see a picture in parts."""


class _DenseBlock(nn.Module):
    """Five convolutions of which each sees what all before it made."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for number in range(5):
            out = width if number == 4 else growth
            setattr(self, f"conv{number + 1}", nn.Conv2d(width + number * growth, out, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = [x]
        for number in range(1, 5):
            made = getattr(self, f"conv{number}")(torch.cat(seen, 1))
            seen.append(functional.leaky_relu(made, _SLOPE))
        last: torch.Tensor = getattr(self, "conv5")(torch.cat(seen, 1))  # noqa: B009 (set by number)
        return x + _RESIDUE * last


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = _DenseBlock(width, growth)
        self.rdb2 = _DenseBlock(width, growth)
        self.rdb3 = _DenseBlock(width, growth)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return x + _RESIDUE * made


class RrdbNet(Upscaler):
    """ESRGAN. ``folding``: pixels of a side that are put into channels first (Real-ESRGAN for x2 and x1)."""

    reach = 24

    def __init__(self, blocks: int, width: int, growth: int, enlargements: int, folding: int) -> None:
        super().__init__()
        self.scale = 2**enlargements // folding
        self._folding = folding
        self._enlargements = enlargements
        self.conv_first = nn.Conv2d(3 * folding**2, width, 3, 1, 1)
        self.body = nn.Sequential(*(_ResidualBlock(width, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(width, width, 3, 1, 1)
        for number in range(enlargements):
            setattr(self, f"conv_up{number + 1}", nn.Conv2d(width, width, 3, 1, 1))
        self.conv_hr = nn.Conv2d(width, width, 3, 1, 1)
        self.conv_last = nn.Conv2d(width, 3, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        fold = self._folding
        if fold > 1:
            x = functional.pad(x, (0, -width % fold, 0, -height % fold), mode="replicate")
            x = functional.pixel_unshuffle(x, fold)
        x = self.conv_first(x)
        x = x + self.conv_body(self.body(x))
        for number in range(self._enlargements):
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = functional.leaky_relu(getattr(self, f"conv_up{number + 1}")(x), _SLOPE)
        x = self.conv_last(functional.leaky_relu(self.conv_hr(x), _SLOPE))
        return x[..., : height * self.scale, : width * self.scale]


class CompactNet(Upscaler):
    """Real-ESRGAN's small one: a chain of convolutions, added to the plainly enlarged picture."""

    reach = 16

    def __init__(self, layers: int, width: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        chain: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1), nn.PReLU(width)]
        for _ in range(layers):
            chain += [nn.Conv2d(width, width, 3, 1, 1), nn.PReLU(width)]
        chain.append(nn.Conv2d(width, 3 * scale**2, 3, 1, 1))
        self.body = nn.ModuleList(chain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = x
        for layer in self.body:
            made = layer(made)
        made = functional.pixel_shuffle(made, self.scale)
        return made + functional.interpolate(x, scale_factor=self.scale, mode="nearest")


def build(tensors: Mapping[str, Any], name: str) -> Upscaler:
    """The network that ``tensors`` are of, with them in it. Raises `LoadFailed` for those of any other."""
    state = {key: value for key, value in _renamed(tensors).items() if isinstance(value, torch.Tensor)}
    try:
        with torch.device("meta"):
            network = _empty(state)
        network.load_state_dict(state, assign=True)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise LoadFailed(
            f"{name} is no upscaler of a known kind (ESRGAN, Real-ESRGAN and its compact one): {reason}",
            field="model_id",
        ) from None
    return network.float().eval().requires_grad_(False)


def _empty(state: Mapping[str, torch.Tensor]) -> Upscaler:
    if "conv_first.weight" in state:
        width, channels = state["conv_first.weight"].shape[:2]
        blocks = _count(state, r"body\.(\d+)\.rdb1\.conv1\.weight")
        growth = state["body.0.rdb1.conv1.weight"].shape[0]
        enlargements = _count(state, r"conv_up(\d+)\.weight")
        folding = {3: 1, 12: 2, 48: 4}[channels]
        return RrdbNet(blocks, width, growth, enlargements, folding)
    if "body.0.weight" in state and "body.1.weight" in state:
        convolutions = [v for k, v in state.items() if k.endswith(".weight") and v.ndim == 4]
        width, out = state["body.0.weight"].shape[0], state[_last(state)].shape[0]
        scale = round((out / 3) ** 0.5)
        return CompactNet(len(convolutions) - 2, width, scale)
    raise ValueError("its tensors have other names")


def _last(state: Mapping[str, torch.Tensor]) -> str:
    return max(
        (key for key, value in state.items() if key.endswith(".weight") and value.ndim == 4),
        key=lambda key: int(key.split(".")[1]),
    )


def _count(state: Mapping[str, torch.Tensor], pattern: str) -> int:
    return sum(1 for key in state if re.fullmatch(pattern, key))


def _renamed(tensors: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tensors.items():
        name = key.removeprefix("module.")
        for pattern, replacement in _OTHER_NAMES:
            name, changed = re.subn(pattern, replacement, name)
            if changed:
                break
        found[name] = value
    return _renamed_tail(found)


def _renamed_tail(state: dict[str, Any]) -> dict[str, Any]:
    """The earliest files number what follows the body: enlargements, then two more convolutions."""
    tail = sorted({int(m[1]) for key in state if (m := re.fullmatch(r"model\.(\d+)\.weight", key))})
    if len(tail) < 2:
        return state
    *enlargements, hr, last = tail
    names = {number: f"conv_up{place + 1}" for place, number in enumerate(enlargements)}
    names |= {hr: "conv_hr", last: "conv_last"}
    found = dict(state)
    for number, name in names.items():
        for kind in ("weight", "bias"):
            found[f"{name}.{kind}"] = found.pop(f"model.{number}.{kind}")
    return found

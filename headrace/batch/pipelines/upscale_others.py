"""Networks that enlarge pictures and are not of ESRGAN's kind: read by spandrel where it can be imported.

spandrel needs torchvision, so it is nobody's dependency here (github.com/chaiNNer-org/spandrel, MIT; the
marks by which files are told apart are facts from it).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

import torch

from headrace.batch.pipelines.upscale_networks import Upscaler, build
from headrace.models.errors import LoadFailed

_REACH = 32
_MARKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ESRGAN", ("conv_first.weight", "body.0.rdb1.conv1.weight")),
    ("ESRGAN", ("conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight")),
    ("ESRGAN", ("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight")),
    ("ESRGAN+", ("model.0.weight", "model.1.sub.0.RDB1.conv1x1.weight")),
    ("HAT", ("conv_first.weight", "layers.0.residual_group.overlap_attn.qkv.weight")),
    ("ATD", ("conv_first.weight", "layers.0.residual_group.td")),
    ("CRAFT", ("conv_first.weight", "layers.0.residual_group.hf_blocks.0.attn.temperature")),
    ("Swin2SR", ("patch_embed.proj.weight", "layers.0.residual_group.blocks.0.attn.logit_scale")),
    ("SwinIR", ("layers.0.residual_group.blocks.0.attn.relative_position_bias_table",)),
    ("DRCT", ("conv_first.weight", "layers.0.swin1.attn.relative_position_bias_table")),
    ("DAT", ("before_RG.1.weight", "layers.0.blocks.0.attn.dwconv.0.weight")),
    ("RGT", ("before_RG.1.weight", "layers.0.blocks.0.gamma")),
    ("GRL", ("conv_first.weight", "layers.0.blocks.0.attn.window_attn.attn_transform.logit_scale")),
    ("OmniSR", ("residual_layer.0.residual_layer.0.layer.0.fn.0.weight",)),
    ("SPAN", ("conv_1.sk.weight", "block_1.c1_r.sk.weight")),
    ("SAFMN", ("to_feat.weight", "feats.0.safm.aggr.weight")),
    ("PLKSR", ("feats.0.weight", "feats.1.refine.weight")),
    ("MoSR", ("gblocks.0.weight", "gblocks.1.fc1.weight")),
    ("DITN", ("sft.weight", "UFONE.0.ITLs.0.attn.temperature")),
    ("RCAN", ("body.0.body.0.body.3.conv_du.0.weight",)),
    ("RealCUGAN", ("unet1.conv1.conv.0.weight", "unet1.conv2.seblock.conv1.weight")),
    ("AuraSR", ("mid_attn.layers.0.0.to_out.weight",)),
    ("GFPGAN", ("toRGB.0.weight", "stylegan_decoder.style_mlp.1.weight")),
    ("NAFNet", ("intro.weight", "middle_blks.0.beta")),
    ("SCUNet", ("m_head.0.weight", "m_tail.0.weight")),
    ("SwiftSRGAN", ("initial.cnn.depthwise.weight",)),
)
"""Names of tensors that are all there in a file of an architecture; the first that fits counts."""


def architecture_of(names: Collection[str]) -> str | None:
    """What a file's tensors are of, as far as their names tell."""
    return next((kind for kind, marks in _MARKS if all(mark in names for mark in marks)), None)


class Other(Upscaler):
    """A network of spandrel's."""

    reach = _REACH

    def __init__(self, descriptor: Any, tiled: bool) -> None:
        super().__init__()
        self.scale = int(descriptor.scale)
        self.tiled = tiled
        self.architecture = str(descriptor.architecture.name)
        self.inner = descriptor.model
        self._call = descriptor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self._call(x)  # pads to the sizes that the network takes, and cuts
        return made


def network_of(tensors: Mapping[str, Any], name: str, *, field: str) -> Upscaler:
    """The network that ``tensors`` are of, ours or spandrel's. ``field``: what named the file.

    Raises `LoadFailed`, which names the architecture where it can be told, and how to get spandrel where
    that is missing.
    """
    try:
        return build(tensors, name)
    except LoadFailed as error:
        try:
            return _read(tensors, name, error)
        except LoadFailed as refused:
            refused.field = field
            raise


def _read(tensors: Mapping[str, Any], name: str, own: LoadFailed) -> Other:
    kind = architecture_of(tensors.keys())
    if kind == "ESRGAN":
        raise own
    spandrel = _spandrel(name, kind)
    try:
        descriptor = spandrel.ModelLoader().load_from_state_dict(
            spandrel.canonicalize_state_dict(dict(tensors))
        )
    except spandrel.UnsupportedModelError:
        raise LoadFailed(f"{name} is {_told(kind)}; spandrel does not know it either") from None
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise LoadFailed(f"{name} ({_told(kind)}): spandrel cannot read it: {reason}") from None
    if not isinstance(descriptor, spandrel.ImageModelDescriptor) or {
        descriptor.input_channels,
        descriptor.output_channels,
    } != {3}:
        kind = descriptor.architecture.name
        raise LoadFailed(f"{name} ({kind}) does not make one picture of one picture in colour")
    descriptor.model.float().eval().requires_grad_(False)
    return Other(descriptor, descriptor.tiling == spandrel.ModelTiling.SUPPORTED)


def _spandrel(name: str, kind: str | None) -> ModuleType:
    try:
        import spandrel
    except ImportError as error:
        missing = error.name or "spandrel"
        need = "spandrel, which is not installed"
        if missing != "spandrel":
            need = f"spandrel, which needs {missing}"
        raise LoadFailed(
            f"{name} is {_told(kind)}; here are ESRGAN, Real-ESRGAN and its compact one. Others are read by "
            f"{need}: pip install spandrel, and a torchvision that fits the torch that is here",
        ) from None
    found: ModuleType = spandrel
    return found


def _told(kind: str | None) -> str:
    return (
        "of an architecture that its tensors do not tell" if kind is None else f"of the architecture {kind}"
    )

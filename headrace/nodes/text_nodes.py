"""Texts and conditions: `CLIPTextEncode` and what is done with its result."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from workflows.nodes.stream import InputTypes

if TYPE_CHECKING:
    import torch

    from headrace.nodes.denoising import Conditioning
    from headrace.nodes.handles import Clip

_PAIR = {"conditioning_to": ("CONDITIONING",), "conditioning_from": ("CONDITIONING",)}


class CLIPTextEncode:
    """The condition that a text makes. Weights and embeddings: see `headrace.nodes.prompts`."""

    CATEGORY = "conditioning"
    DESCRIPTION = "Turns a text into what steers a diffusion model."
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    PACKAGES = ("transformers",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"text": ("STRING", {"multiline": True}), "clip": ("CLIP",)}}

    def encode(self, clip: Clip, text: str) -> tuple[Conditioning]:
        from headrace.nodes.encoding import encode

        return (encode(clip, text),)


class CLIPSetLastLayer:
    """Takes the states of an earlier layer: -1 is the last one, -2 the one before."""

    CATEGORY = "conditioning"
    DESCRIPTION = "Stops the text encoder at an earlier layer."
    RETURN_TYPES = ("CLIP",)
    FUNCTION = "set_last_layer"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        layer = ("INT", {"default": -1, "min": -24, "max": -1, "step": 1})
        return {"required": {"clip": ("CLIP",), "stop_at_clip_layer": layer}}

    def set_last_layer(self, clip: Clip, stop_at_clip_layer: int) -> tuple[Clip]:
        return (dataclasses.replace(clip, stop_at=stop_at_clip_layer),)


class ConditioningCombine:
    """Both conditions: the model is asked for each, and the mean counts."""

    CATEGORY = "conditioning"
    DESCRIPTION = "Steers by two texts at once."
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "combine"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"conditioning_1": ("CONDITIONING",), "conditioning_2": ("CONDITIONING",)}}

    def combine(self, conditioning_1: Conditioning, conditioning_2: Conditioning) -> tuple[Conditioning]:
        return ([*conditioning_1, *conditioning_2],)


class ConditioningConcat:
    """The states of one text after those of the other."""

    CATEGORY = "conditioning"
    DESCRIPTION = "Puts one text behind the other, in chunks of their own."
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "concat"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": dict(_PAIR)}

    def concat(self, conditioning_to: Conditioning, conditioning_from: Conditioning) -> tuple[Conditioning]:
        import torch

        behind = conditioning_from[0][0]
        return ([[torch.cat((text, behind), 1), dict(options)] for text, options in conditioning_to],)


class ConditioningAverage:
    """Between two texts: ``conditioning_to_strength`` of 1 is the first, 0 the second."""

    CATEGORY = "conditioning"
    DESCRIPTION = "Blends two texts."
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "addWeighted"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        share = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01})
        return {"required": {**_PAIR, "conditioning_to_strength": share}}

    def addWeighted(  # noqa: N802 (the name that it has in ComfyUI)
        self, conditioning_to: Conditioning, conditioning_from: Conditioning, conditioning_to_strength: float
    ) -> tuple[Conditioning]:
        other, other_options = conditioning_from[0]
        made = []
        for text, options in conditioning_to:
            blended = dict(options)
            pooled, other_pooled = options.get("pooled_output"), other_options.get("pooled_output")
            if other_pooled is not None:
                own = other_pooled if pooled is None else pooled
                blended["pooled_output"] = _between(other_pooled, own, conditioning_to_strength)
            made.append([_between(_as_long(other, text), text, conditioning_to_strength), blended])
        return (made,)


def _between(start: torch.Tensor, end: torch.Tensor, share: float) -> torch.Tensor:
    return end * share + start * (1 - share)


def _as_long(text: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Cut, or filled up with zeros."""
    import torch.nn.functional as F  # noqa: N812

    cut = text[:, : like.shape[1]]
    return F.pad(cut, (0, 0, 0, like.shape[1] - cut.shape[1]))


class PrimitiveString:
    """A text, for the inputs of other nodes."""

    CATEGORY = "utils/primitive"
    DESCRIPTION = "A text."
    RETURN_TYPES = ("STRING",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"value": ("STRING", {})}}

    def give(self, value: str) -> tuple[str]:
        return (value,)


class PrimitiveStringMultiline(PrimitiveString):
    """The same with room for several lines."""

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"value": ("STRING", {"multiline": True})}}


class StringConcatenate:
    """Two texts with something between them."""

    CATEGORY = "utils/string"
    DESCRIPTION = "Joins two texts."
    RETURN_TYPES = ("STRING",)
    FUNCTION = "join"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        text = ("STRING", {"multiline": True})
        return {"required": {"string_a": text, "string_b": text, "delimiter": ("STRING", {"default": ""})}}

    def join(self, string_a: str, string_b: str, delimiter: str) -> tuple[str]:
        return (delimiter.join((string_a, string_b)),)


NODE_CLASS_MAPPINGS: dict[str, Any] = {
    node_class.__name__: node_class
    for node_class in (
        CLIPTextEncode,
        CLIPSetLastLayer,
        ConditioningCombine,
        ConditioningConcat,
        ConditioningAverage,
        PrimitiveString,
        PrimitiveStringMultiline,
        StringConcatenate,
    )
}

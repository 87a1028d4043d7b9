"""Real-time diffusion as nodes: a model whose calls streams share, and a sampler that remembers its frames.

What it does and how it differs from StreamDiffusion: `headrace.diffusion.stream`. Declared without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.diffusion import parameters
from headrace.diffusion.schedule import MAX_STEPS
from headrace.nodes.files import ModelFiles
from headrace.nodes.loaders import Loader
from headrace.nodes.loaders import bound_to as bound
from stream.errors import InvalidInput
from workflows.nodes.stream import InputTypes

if TYPE_CHECKING:
    import torch

    from headrace.diffusion.image_prompts import AdapterFiles
    from headrace.nodes.denoising import Conditioning
    from headrace.nodes.handles import Clip, ControlNet
    from headrace.nodes.stream_state import Steering, StreamModel

_CATEGORY = "stream diffusion"
_SHARE = {"min": 0.0, "max": 1.0, "step": 0.001}
_WEIGHT_TYPES = ["linear", "style transfer", "composition", "style and composition"]
_PREPROCESSORS = ["passthrough", "tile", "color", "canny", "soft_edge"]


class StreamDiffusionLoader(Loader):
    """A checkpoint for `StreamDiffusionSampler`, as repository, folder, file or demo, and its text encoders.

    All graphs and pipelines of an engine on the same model and autoencoder share weights and calls.
    """

    CATEGORY = _CATEGORY
    DESCRIPTION = "Loads a model for real-time diffusion, and its text encoders."
    RETURN_TYPES = ("STREAM_DIFFUSION", "CLIP")
    FUNCTION = "load_stream"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "model_id": ("STRING", {"default": "stabilityai/sd-turbo"}),
                "autoencoder": ("STRING", {"default": "auto"}),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, model_id: Any, autoencoder: Any) -> bool | str:  # noqa: N802
        return _verdict(model_id=model_id, autoencoder=autoencoder)

    def load_stream(self, model_id: str, autoencoder: str) -> tuple[StreamModel, Clip]:
        from headrace.diffusion.loading import borrow
        from headrace.models.store import ModelStore
        from headrace.nodes.handles import Clip
        from headrace.nodes.stream_state import StreamModel

        if model_id in self.files.names("checkpoints"):
            model_id = self.files.ref("checkpoints", model_id)
        params = parameters.start({"model_id": model_id, "autoencoder": autoencoder})
        loan = borrow(params, lambda fraction, what: None, ModelStore(self.files.roots))
        return StreamModel(loan), Clip.of((loan.held[0],), self.files)


class StreamDiffusionLora(Loader):
    """A LoRA on a model for streams, as branches beside shared weights; several may follow on each other.

    Streams with the same LoRAs share calls, whatever their strengths, which are live. What the file has for
    text encoders is left out.
    """

    CATEGORY = _CATEGORY
    DESCRIPTION = "Applies a LoRA to a model for real-time diffusion."
    RETURN_TYPES = ("STREAM_DIFFUSION",)
    FUNCTION = "load_stream_lora"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "stream_model": ("STREAM_DIFFUSION",),
                "lora_name": cls.choice("loras"),
                "strength": ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}),
            }
        }

    def load_stream_lora(
        self, stream_model: StreamModel, lora_name: str, strength: float
    ) -> tuple[StreamModel]:
        from headrace.diffusion.loras import find
        from headrace.models.store import ModelStore

        found = find(self.files.ref("loras", lora_name), ModelStore(self.files.roots), "lora_name")
        return (stream_model.with_lora(found, strength),)


class StreamDiffusionIPAdapterLoader(Loader):
    """An IP-Adapter's file, and the folder of the image encoder that it was trained on."""

    CATEGORY = _CATEGORY
    DESCRIPTION = "Loads an IP-Adapter and its image encoder."
    RETURN_TYPES = ("STREAM_IP_ADAPTER",)
    FUNCTION = "load_adapter"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        top = "h94/IP-Adapter/models"
        return {
            "required": {
                "adapter": ("STRING", {"default": f"{top}/ip-adapter_sd15.safetensors"}),
                "image_encoder": ("STRING", {"default": f"{top}/image_encoder"}),
            }
        }

    def load_adapter(self, adapter: str, image_encoder: str) -> tuple[AdapterFiles]:
        from headrace.diffusion.image_prompts import find
        from headrace.models.store import ModelStore

        return (find(adapter, image_encoder, ModelStore(self.files.roots), "adapter"),)


class StreamDiffusionIPAdapter:
    """A picture as a prompt beside the text. Of several on one model the last counts."""

    CATEGORY = _CATEGORY
    DESCRIPTION = "Lets a picture be a prompt of a real-time stream."
    RETURN_TYPES = ("STREAM_DIFFUSION",)
    FUNCTION = "apply"
    PACKAGES = ("diffusers", "transformers")

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "stream_model": ("STREAM_DIFFUSION",),
                "ip_adapter": ("STREAM_IP_ADAPTER",),
                "image": ("IMAGE",),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01}),
                "weight_type": (_WEIGHT_TYPES,),
            }
        }

    def apply(
        self,
        stream_model: StreamModel,
        ip_adapter: AdapterFiles,
        image: torch.Tensor,
        strength: float,
        weight_type: str,
    ) -> tuple[StreamModel]:
        return (stream_model.with_picture(ip_adapter, image, strength, weight_type),)


class StreamDiffusionControl:
    """A control network of a stream, from `ControlNetLoader`. Several may follow on each other.

    It sees the frame through its ``preprocessor``, or ``image`` as it is where that is linked.
    """

    CATEGORY = _CATEGORY
    DESCRIPTION = "Holds a real-time stream to edges, colours or another picture."
    RETURN_TYPES = ("STREAM_CONTROL",)
    FUNCTION = "steer"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "control_net": ("CONTROL_NET",),
                "preprocessor": (_PREPROCESSORS,),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01}),
                "start_percent": ("FLOAT", {"default": 0.0, **_SHARE}),
                "end_percent": ("FLOAT", {"default": 1.0, **_SHARE}),
            },
            "optional": {"before": ("STREAM_CONTROL",), "image": ("IMAGE",)},
        }

    def steer(
        self,
        control_net: ControlNet,
        preprocessor: str,
        strength: float,
        start_percent: float,
        end_percent: float,
        before: tuple[Steering, ...] = (),
        image: torch.Tensor | None = None,
    ) -> tuple[tuple[Steering, ...]]:
        from headrace.nodes.stream_state import Steering

        if len(before) >= parameters.MAX_CONTROLS:
            raise ValueError(f"at most {parameters.MAX_CONTROLS} control networks act on a stream")
        one = Steering(control_net, preprocessor, strength, start_percent, end_percent, image)
        return ((*before, one),)


class StreamDiffusionSampler:
    """Takes every frame of a stream through the network. One node object has the frames of one stream.

    A change of anything here, or of a text, holds from the next frame on, and the frames under way go on.
    """

    CATEGORY = _CATEGORY
    DESCRIPTION = "Paints every frame of a stream anew, as the texts say."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "sample"
    PACKAGES = ("diffusers", "transformers")

    def __init__(self) -> None:
        from headrace.nodes.stream_state import StreamState

        self._state = StreamState()

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        steps = ("INT", {"default": 50, "min": 1, "max": MAX_STEPS})
        threshold = ("FLOAT", {"default": 0.98, **_SHARE})
        return {
            "required": {
                "stream_model": ("STREAM_DIFFUSION",),
                "image": ("IMAGE",),
                "positive": ("CONDITIONING",),
                "t_index_list": ("STRING", {"default": "12, 20, 32"}),
                "num_inference_steps": steps,
                "seed": ("INT", {"default": 789, "min": 0, "max": parameters.MAX_SEED}),
                "cfg_type": (["self", "none", "initialize", "full"],),
                "guidance_scale": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 30.0, "step": 0.05}),
                "delta": ("FLOAT", {"default": 0.7, "min": 0.0, "max": 10.0, "step": 0.05}),
                "do_add_noise": ("BOOLEAN", {"default": True}),
                "use_denoising_batch": ("BOOLEAN", {"default": True}),
                "enable_similar_image_filter": ("BOOLEAN", {"default": False}),
                "similar_image_filter_threshold": threshold,
                "similar_image_filter_max_skip_frame": ("INT", {"default": 10, "min": 0, "max": 10_000}),
            },
            "optional": {
                "negative": ("CONDITIONING",),
                "controls": ("STREAM_CONTROL",),
                "recalled_frames": ("INT", {"default": 0, "min": 0, "max": 4}),
                "recalled_interval": ("INT", {"default": 1, "min": 1, "max": 1440}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, **literals: Any) -> bool | str:  # noqa: N802
        given = _without_links(literals)
        scale, kind = given.get("guidance_scale"), given.get("cfg_type")
        guides = kind in ("full", "initialize") and isinstance(scale, int | float) and scale > 1
        if guides and "negative" not in literals:
            return f"cfg_type {kind} above a guidance_scale of 1 needs a negative condition"
        return _verdict(**given)

    async def sample(
        self,
        stream_model: StreamModel,
        image: torch.Tensor,
        positive: Conditioning,
        negative: Conditioning | None = None,
        controls: tuple[Steering, ...] = (),
        **literals: Any,
    ) -> tuple[torch.Tensor]:
        return (await self._state.run(stream_model, image, positive, negative, controls, literals),)


def _without_links(literals: dict[str, Any]) -> dict[str, Any]:
    """Of what is asked about: what is not None, as that stands for what another node will give."""
    return {name: value for name, value in literals.items() if value is not None}


def _verdict(**literals: Any) -> bool | str:
    """True, or what is wrong with them by the bounds of the pipeline `stream-diffusion`."""
    try:
        parameters.of_node(_without_links(literals))
    except InvalidInput as error:
        return error.message
    return True


def bound_to(files: ModelFiles) -> dict[str, Any]:
    """The classes; loaders find their files in ``files``."""
    return {
        **bound(files, (StreamDiffusionLoader, StreamDiffusionLora, StreamDiffusionIPAdapterLoader)),
        "StreamDiffusionIPAdapter": StreamDiffusionIPAdapter,
        "StreamDiffusionControl": StreamDiffusionControl,
        "StreamDiffusionSampler": StreamDiffusionSampler,
    }

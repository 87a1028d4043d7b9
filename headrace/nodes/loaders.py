"""Nodes that load models: checkpoints, their parts, LoRAs, control networks, upscalers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from headrace.nodes.files import DEMOS, ModelFiles
from workflows.nodes.stream import InputTypes

if TYPE_CHECKING:
    from headrace.models.live_cache import Held
    from headrace.nodes.access import Models
    from headrace.nodes.handles import Clip, ControlNet, Model, Vae
    from headrace.nodes.upscaling import UpscaleModel

_TINY = ("taesd", "taesdxl")
_TINY_SCALES = {"taesd": 0.18215, "taesdxl": 0.13025}


class Loader:
    """What the loaders share. ``files`` is set by `bound_to`."""

    CATEGORY = "loaders"
    FUNCTION = "load"
    PACKAGES: ClassVar[tuple[str, ...]] = ("diffusers", "transformers")
    LISTS_FILES = True
    files: ClassVar[ModelFiles]

    @classmethod
    def choice(cls, kind: str, *more: str) -> tuple[list[str], dict[str, Any]]:
        """The declaration of an input that names a file; ``folder`` is where files of the kind belong."""
        return [*cls.files.names(kind), *more], {"folder": str(cls.files.folder(kind))}

    @classmethod
    def models(cls) -> Models:
        from headrace.nodes.access import Models

        return Models(cls.files.roots)


class CheckpointLoaderSimple(Loader):
    """A whole checkpoint: the network, its text encoders and its autoencoder."""

    DESCRIPTION = "Loads a checkpoint of Stable Diffusion."
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load_checkpoint"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"ckpt_name": cls.choice("checkpoints", *DEMOS)}}

    def load_checkpoint(self, ckpt_name: str) -> tuple[Model, Clip, Vae]:
        from headrace.nodes.handles import Clip, Model

        held = self.models().network("checkpoints", ckpt_name)
        return Model.of(held), Clip.of((held,), self.files), vae_of(held)


class UNETLoader(Loader):
    """The network alone. Weights are computed in the engine's own type."""

    CATEGORY = "advanced/loaders"
    DESCRIPTION = "Loads a diffusion network from a file of its own."
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load_unet"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        names = cls.choice("diffusion_models", *DEMOS)
        return {"required": {"unet_name": names, "weight_dtype": (["default"],)}}

    def load_unet(self, unet_name: str, weight_dtype: str) -> tuple[Model]:
        from headrace.nodes.handles import Model

        return (Model.of(self.models().network("diffusion_models", unet_name)),)


class CLIPLoader(Loader):
    """One text encoder of CLIP's kind."""

    CATEGORY = "advanced/loaders"
    DESCRIPTION = "Loads a text encoder from a file of its own."
    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load_clip"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "clip_name": cls.choice("text_encoders", *DEMOS),
                "type": (["stable_diffusion"],),
            },
            "optional": {"device": (["default"],)},
        }

    def load_clip(self, clip_name: str, type: str, device: str = "default") -> tuple[Clip]:  # noqa: A002
        from headrace.nodes.handles import Clip

        return (Clip.of((self.models().parts("text_encoders", clip_name),), self.files),)


class DualCLIPLoader(Loader):
    """SDXL's two text encoders."""

    CATEGORY = "advanced/loaders"
    DESCRIPTION = "Loads two text encoders, each from a file of its own."
    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load_clip"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        names = cls.choice("text_encoders")
        return {
            "required": {"clip_name1": names, "clip_name2": names, "type": (["sdxl"],)},
            "optional": {"device": (["default"],)},
        }

    def load_clip(
        self,
        clip_name1: str,
        clip_name2: str,
        type: str,  # noqa: A002
        device: str = "default",
    ) -> tuple[Clip]:
        from headrace.nodes.handles import Clip

        models = self.models()
        held = tuple(models.parts("text_encoders", name) for name in (clip_name1, clip_name2))
        return (Clip.of(held, self.files),)


class VAELoader(Loader):
    """An autoencoder; ``taesd`` and ``taesdxl`` are the tiny ones, of two files in vae_approx."""

    DESCRIPTION = "Loads an autoencoder from a file of its own."
    RETURN_TYPES = ("VAE",)
    FUNCTION = "load_vae"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        small = [name for name in _TINY if len(cls._sides(name)) == 2]
        return {"required": {"vae_name": cls.choice("vae", *small, *DEMOS)}}

    @classmethod
    def _sides(cls, name: str) -> list[str]:
        there = cls.files.names("vae_approx")
        sides = (next((n for n in there if n.startswith(f"{name}_{s}.")), "") for s in ("encoder", "decoder"))
        return [side for side in sides if side]

    def load_vae(self, vae_name: str) -> tuple[Vae]:
        if vae_name not in _TINY:
            return (vae_of(self.models().parts("vae", vae_name)),)
        from headrace.nodes.handles import Vae
        from headrace.nodes.tiny_vae import load

        sides = self._sides(vae_name)
        if len(sides) != 2:
            raise ValueError(
                f"{vae_name} needs an encoder and a decoder in {self.files.folder('vae_approx')}"
            )
        held = load(self.models(), *sides)
        return (Vae(held.model["vae"], held, _TINY_SCALES[vae_name]),)


def vae_of(held: Held) -> Vae:
    """Raises `ValueError` where the model has none."""
    from headrace.nodes.handles import Vae

    if held.model.get("vae") is None:
        raise ValueError(f"{held.key.ref} has no autoencoder (vae)")
    return Vae(held.model["vae"], held)


class LoraLoader(Loader):
    """Applies a LoRA. What it changes is copied; the model that it is applied to stays as it is."""

    DESCRIPTION = "Applies a LoRA to a model and its text encoders."
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("MODEL", "CLIP")
    FUNCTION = "load_lora"
    _STRENGTH: ClassVar[Any] = ("FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01})

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "lora_name": cls.choice("loras"),
                "strength_model": cls._STRENGTH,
                "strength_clip": cls._STRENGTH,
            }
        }

    def load_lora(
        self, model: Model, clip: Clip, lora_name: str, strength_model: float, strength_clip: float
    ) -> tuple[Model, Clip]:
        from headrace.nodes.lora_models import apply_to_clip, apply_to_model

        models = self.models()
        return (
            apply_to_model(models, model, lora_name, strength_model),
            apply_to_clip(models, clip, lora_name, strength_clip),
        )


class LoraLoaderModelOnly(LoraLoader):
    """The same for the network alone."""

    DESCRIPTION = "Applies a LoRA to a model."
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("MODEL",)
    FUNCTION = "load_lora_model_only"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        names = cls.choice("loras")
        return {"required": {"model": ("MODEL",), "lora_name": names, "strength_model": cls._STRENGTH}}

    def load_lora_model_only(self, model: Model, lora_name: str, strength_model: float) -> tuple[Model]:
        from headrace.nodes.lora_models import apply_to_model

        return (apply_to_model(self.models(), model, lora_name, strength_model),)


class ControlNetLoader(Loader):
    """A control network of Stable Diffusion 1, 2 or XL."""

    DESCRIPTION = "Loads a control network."
    RETURN_TYPES = ("CONTROL_NET",)
    FUNCTION = "load_controlnet"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"control_net_name": cls.choice("controlnet")}}

    def load_controlnet(self, control_net_name: str) -> tuple[ControlNet]:
        from headrace.nodes.handles import ControlNet

        held = self.models().parts("controlnet", control_net_name)
        if "controlnet" not in held.model:
            raise ValueError(f"{control_net_name} is no control network of Stable Diffusion")
        return (ControlNet(held.model["controlnet"], held),)


class UpscaleModelLoader(Loader):
    """A network of the ESRGAN kind; others where spandrel can be imported, else they are refused by name."""

    DESCRIPTION = "Loads a network that enlarges pictures."
    RETURN_TYPES = ("UPSCALE_MODEL",)
    FUNCTION = "load_model"
    PACKAGES = ("safetensors",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"model_name": cls.choice("upscale_models")}}

    def load_model(self, model_name: str) -> tuple[UpscaleModel]:
        from headrace.nodes.upscaling import load

        return (load(self.models(), model_name),)


_LOADERS: tuple[type[Loader], ...] = (
    CheckpointLoaderSimple,
    UNETLoader,
    CLIPLoader,
    DualCLIPLoader,
    VAELoader,
    LoraLoader,
    LoraLoaderModelOnly,
    ControlNetLoader,
    UpscaleModelLoader,
)


def bound_to(files: ModelFiles, loaders: tuple[type[Loader], ...] = _LOADERS) -> dict[str, Any]:
    """The loaders' classes, which find their files in ``files``."""
    return {loader.__name__: type(loader.__name__, (loader,), {"files": files}) for loader in loaders}

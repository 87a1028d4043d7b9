"""A picture as a prompt: IP-Adapter (Ye et al. 2023, arXiv 2308.06721), in the layouts of SD 1.5 and SDXL.

CLIP's view of a picture becomes a few tokens, to which every cross-attention attends beside its text, by keys
and values of the adapter's own. All that is worked out once for a picture; a frame only attends.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch.nn.functional import linear

from headrace.batch.pipelines.pictures import Pixels
from headrace.diffusion.networks import Networks
from headrace.models import loading
from headrace.models.errors import ModelNotFound
from headrace.models.live_cache import Held, device_of_engine, hold
from headrace.models.store import Located, ModelStore
from stream.errors import InvalidInput

MAX_KEPT = 4
"""Pictures of one adapter of which the tokens are kept."""
_STYLE, _LAYOUT = "up_blocks.0.attentions.1.", "down_blocks.2.attentions.1."
WEIGHT_TYPES: Mapping[str, tuple[str, ...]] = {
    "linear": ("",),
    "style transfer": (_STYLE,),
    "composition": (_LAYOUT,),
    "style and composition": (_STYLE, _LAYOUT),
}
"""By the beginnings of the layers that act; the parts are those of SDXL (InstantStyle, arXiv 2404.02733)."""
_KINDS = {"proj.weight", "latents", "proj.3.weight"}
"""By a name in their projections: plain ones, plus, full."""
_LOCK = threading.Lock()
_BUILT: WeakKeyDictionary[Networks, WeakValueDictionary[tuple[Any, ...], ImageAdapter]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, eq=False)
class AdapterFiles:
    """An adapter's tensors and the image encoder that it was trained on, both shared and read-only."""

    name: str
    tensors: Held
    encoder: Held

    def release(self) -> None:
        self.tensors.release()
        self.encoder.release()


@dataclass(frozen=True, slots=True, eq=False)
class ImagePrompt:
    """What a picture is to a network: keys and values of all layers, 1 x tokens x total; and ``negative``,
    those for rows of the negative prompt."""

    rows: torch.Tensor
    negative: torch.Tensor


def find(adapter: str, encoder: str, store: ModelStore, field: str) -> AdapterFiles:
    """``adapter``: a file; ``encoder``: a folder with CLIP's image encoder, also one in a repository.

    Raises `ModelNotFound` with the command that fetches it, `InvalidInput` for what is none.
    """
    try:
        found = store.find(adapter)
        tensors = hold(found, "ip-adapter", lambda progress: loading.load_tensors(found), device="cpu")
        try:
            return AdapterFiles(adapter, tensors, _encoder(encoder, store))
        except BaseException:
            tensors.release()
            raise
    except (ModelNotFound, InvalidInput) as error:
        raise type(error)(error.message, field=field) from None


class ImageAdapter:
    """An adapter on the layers of one network, whose weights lie on its device."""

    def __init__(self, files: AdapterFiles, networks: Networks, field: str) -> None:
        self.files = files
        self._device, self._dtype = networks.device, networks.dtype
        tensors = _parts(files.tensors.model)
        if tensors is None:
            raise InvalidInput(f"{field}: {files.name} is no IP-Adapter", field=field)
        projection, attention = tensors
        if not _KINDS & projection.keys():
            raise InvalidInput(
                f"{field}: {files.name} is an IP-Adapter of a kind that is not there (FaceID)", field=field
            )
        self._pooled = "proj.weight" in projection
        self._weights = self._layers(attention, networks, field)
        # diffusers knows the layouts; what it makes is a network of its own.
        made = networks.unet._convert_ip_adapter_image_proj_to_diffusers(projection, low_cpu_mem_usage=False)
        self._projection = made.to(self._device, self._dtype).eval()
        self._names = [layer.name for layer in networks.view.cross]
        self._kept: dict[str, ImagePrompt] = {}

    @torch.inference_mode()
    def prompt(self, picture: Pixels) -> ImagePrompt:
        """What ``picture`` is to the network; worked out once, then kept."""
        key = hashlib.blake2b(picture.tobytes() + repr(picture.shape).encode(), digest_size=16).hexdigest()
        found = self._kept.pop(key, None)
        if found is None:
            found = ImagePrompt(*(self._rows(seen) for seen in self._seen(picture)))
        self._kept[key] = found
        while len(self._kept) > MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        return found

    def scales(self, scale: float, weight_type: str) -> tuple[float, ...]:
        """The weight of each layer. Raises `InvalidInput` where the network has no such parts."""
        parts = WEIGHT_TYPES[weight_type]
        found = tuple(scale if name.startswith(parts) else 0.0 for name in self._names)
        if scale and not any(found):
            raise InvalidInput(
                f"weight_type {weight_type} is for SDXL, whose parts it names", field="ip_adapter"
            )
        return found

    # -- inside ----------------------------------------------------------------------------------------

    def _layers(
        self, attention: Mapping[str, torch.Tensor], networks: Networks, field: str
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The weights of keys and values, by the view's layers; files count those of all attention."""
        names = [name.removesuffix(".processor") for name in networks.unet.attn_processors]
        crossing = [name for name in names if name.endswith("attn2")]
        numbers = {name: 2 * number + 1 for number, name in enumerate(crossing)}
        found = []
        try:
            for layer in networks.view.cross:
                parts = [attention[f"{numbers[layer.name]}.to_{part}_ip.weight"] for part in "kv"]
                width = networks.unet.config.cross_attention_dim
                if any(part.shape != (layer.width, width) for part in parts):
                    raise KeyError(layer.name)
                key, value = (part.to(self._device, self._dtype) for part in parts)
                found.append((key, value))
        except KeyError:
            raise InvalidInput(
                f"{field}: {self.files.name} is for another kind of network than this model's", field=field
            ) from None
        return found

    def _seen(self, picture: Pixels) -> tuple[torch.Tensor, torch.Tensor]:
        """CLIP's view of the picture, and what stands for none."""
        from PIL import Image
        from transformers import CLIPImageProcessor

        encoder = self.files.encoder.model
        side = encoder.config.image_size
        processor = CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
        pixels = processor(Image.fromarray(picture), return_tensors="pt").pixel_values
        pixels = pixels.to(self._device, encoder.dtype)
        if self._pooled:
            found = encoder(pixels).image_embeds
            return found, torch.zeros_like(found)
        own, none = (
            encoder(one, output_hidden_states=True).hidden_states[-2]
            for one in (pixels, torch.zeros_like(pixels))
        )
        return own, none

    def _rows(self, seen: torch.Tensor) -> torch.Tensor:
        tokens = self._projection(seen.to(self._dtype))
        return torch.cat([linear(tokens, part) for pair in self._weights for part in pair], dim=-1)


def on(networks: Networks, files: AdapterFiles, field: str) -> ImageAdapter:
    """The adapter on ``networks``, one for all. Raises `InvalidInput` where it does not fit them."""
    with _LOCK:
        known = _BUILT.setdefault(networks, WeakValueDictionary())
        key = (files.tensors.key, files.encoder.key)
        found = known.get(key)
        if found is None:
            found = known[key] = ImageAdapter(files, networks, field)
        return found


def _parts(tensors: Mapping[str, Any]) -> Sequence[dict[str, torch.Tensor]] | None:
    """Those of the projection and of the layers: nested in pickles, by prefix in safetensors."""
    found = []
    for part in ("image_proj", "ip_adapter"):
        inner = tensors.get(part)
        begin = f"{part}."
        own = (
            dict(inner)
            if isinstance(inner, Mapping)
            else {key.removeprefix(begin): value for key, value in tensors.items() if key.startswith(begin)}
        )
        if not own:
            return None
        found.append(own)
    return found


def _encoder(name: str, store: ModelStore) -> Held:
    from transformers import CLIPVisionModelWithProjection

    found = _folder(name, store)
    device = device_of_engine()
    dtype = loading.dtype_for(device)
    return hold(
        found,
        "image encoder",
        lambda progress: loading.load_transformers(
            found, CLIPVisionModelWithProjection, cache=store.roots.cache, device=device, dtype=dtype,
            progress=progress,
        ),
        dtype=loading.name_of(dtype),
        device=device,
    )  # fmt: skip


def _folder(name: str, store: ModelStore) -> Located:
    """A folder of weights with its configuration; one inside a repository is found by its files."""
    try:
        found = store.find(name)
    except ModelNotFound:
        found = store.find(f"{name}/model.safetensors")
        store.find(f"{name}/config.json")
        files = ("config.json", found.path.name)
        found = Located(
            found.ref, found.path.parent, "transformers", found.revision, found.bytes, found.source,
            found.weights, files=files,
        )  # fmt: skip
    if found.kind != "transformers":
        raise InvalidInput(f"{name} is a {found.kind}, not the folder of an image encoder")
    return found

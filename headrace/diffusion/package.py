"""`StreamDiffusion` with the names of the package of that name, so that scripts written for it run here.

    stream = StreamDiffusion(pipe, t_index_list=[32, 45], torch_dtype=torch.float16)
    stream.prepare("a red fox", guidance_scale=1.2)
    result = stream(picture)

Differences: it runs on any device; a stream begins with its first frame in every slot, not from nothing;
``update_prompt`` keeps the negative prompt; the similarity filter repeats the last result without sleeping;
several frames in a buffer go with any number of steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from headrace.diffusion.asked import Guidance, GuidanceMode, Settings
from headrace.diffusion.frame import advance
from headrace.diffusion.networks import LATENT_RATIO, Networks
from headrace.diffusion.schedule import check_indices, constants
from headrace.diffusion.similarity import SimilarityFilter
from headrace.diffusion.stream import Stream
from stream.errors import InvalidInput, ProcessorError

MAX_BUFFER = 16
"""Frames in a buffer."""
_THUMBNAIL_STEP = 16


class StreamDiffusion:
    """``pipe`` is a `StableDiffusionPipeline` or `StableDiffusionXLPipeline` of diffusers; sizes in pixels.

    With F = ``frame_buffer_size`` every call takes F frames in a row and gives F: the j-th is a step further
    on the way of the j-th of the calls before, with the same noise, all in one call of the network.

    Raises `InvalidInput` for sizes that are no multiple of 8 and for other than 1 to `MAX_BUFFER` frames.
    """

    def __init__(
        self,
        pipe: Any,
        t_index_list: list[int],
        torch_dtype: torch.dtype = torch.float16,
        width: int = 512,
        height: int = 512,
        do_add_noise: bool = True,
        use_denoising_batch: bool = True,
        frame_buffer_size: int = 1,
        cfg_type: GuidanceMode = "self",
    ) -> None:
        for name, side in (("width", width), ("height", height)):
            if side < LATENT_RATIO or side % LATENT_RATIO:
                raise InvalidInput(f"{name} is {side}; a multiple of {LATENT_RATIO} pixels", field=name)
        if not 1 <= frame_buffer_size <= MAX_BUFFER:
            raise InvalidInput(
                f"frame_buffer_size is {frame_buffer_size}; 1 to {MAX_BUFFER}", field="frame_buffer_size"
            )
        self.frame_buffer_size = frame_buffer_size
        self.pipe = pipe
        self.width, self.height = width, height
        self.cfg_type: GuidanceMode = cfg_type
        self._networks = Networks(dict(pipe.components), torch.device(pipe.device), torch_dtype)
        self._indices = list(t_index_list)
        self._renoise, self._sequential = do_add_noise, not use_denoising_batch
        self._streams: list[Stream] = []
        """One for each place in the buffer."""
        self._filter: SimilarityFilter | None = None
        self._last: torch.Tensor | None = None

    def prepare(
        self,
        prompt: str,
        negative_prompt: str = "",
        num_inference_steps: int = 50,
        guidance_scale: float = 1.2,
        delta: float = 1.0,
        generator: torch.Generator | None = None,
        seed: int = 2,
    ) -> None:
        """Begin anew. ``generator``: on the CPU; seeded with ``seed``."""
        generator = torch.Generator() if generator is None else generator
        generator.manual_seed(seed)
        networks, indices = self._networks, check_indices(self._indices, num_inference_steps)
        shape = (len(indices), *networks.latent_shape(self.height, self.width))
        scale = 1.0 if self.cfg_type == "none" else guidance_scale
        settings = Settings(
            steps=constants(indices, num_inference_steps, networks.alphas_cumprod),
            noise=torch.randn(shape, generator=generator).to(networks.device),
            positive=networks.encode_prompt(prompt),
            negative=networks.encode_prompt(negative_prompt),
            guidance=Guidance(self.cfg_type, scale, delta),
            renoise=self._renoise,
            sequential=self._sequential,
        )
        self._streams = [Stream(settings) for _ in range(self.frame_buffer_size)]
        self._last = None

    def update_prompt(self, prompt: str) -> None:
        """Another prompt from the next frame on."""
        positive = self._networks.encode_prompt(prompt)
        for stream in self._prepared():
            stream.apply(replace(stream.settings, positive=positive))

    def enable_similar_image_filter(self, threshold: float = 0.98, max_skip_frame: float = 10) -> None:
        self._filter = SimilarityFilter(threshold, int(max_skip_frame))

    def disable_similar_image_filter(self) -> None:
        self._filter = None

    @torch.inference_mode()
    def __call__(self, x: Any = None) -> torch.Tensor:
        """The results that are due, F x 3 x H x W in -1..1, for F pictures: of PIL, or a tensor of that form.

        Without pictures they are made of noise alone.
        """
        if x is None:
            return self.txt2img(self.frame_buffer_size)
        picture = self._picture(x)
        if self._filter is not None:
            small = picture[..., ::_THUMBNAIL_STEP, ::_THUMBNAIL_STEP].cpu().numpy()
            if self._filter.skips(np.asarray(small, dtype=np.float32)) and self._last is not None:
                return self._last
        self._last = self._run(self._networks.encode(picture.permute(0, 2, 3, 1) / 2 + 0.5))
        return self._last

    @torch.inference_mode()
    def txt2img(self, batch_size: int = 1) -> torch.Tensor:
        """Pictures of noise alone, B x 3 x H x W in -1..1, each a frame of the stream."""
        buffer = self.frame_buffer_size
        shape = (buffer, *self._networks.latent_shape(self.height, self.width))
        device = self._networks.device
        calls = -(-batch_size // buffer)
        return torch.cat([self._run(torch.randn(shape).to(device)) for _ in range(calls)])[:batch_size]

    def _run(self, latents: torch.Tensor) -> torch.Tensor:
        networks = self._networks
        clean = advance(networks, self._prepared(), latents)
        decoded: torch.Tensor = networks.decode(clean)
        return decoded.permute(0, 3, 1, 2) * 2 - 1

    def _picture(self, x: Any) -> torch.Tensor:
        if not isinstance(x, torch.Tensor):
            x = torch.cat([self._pixels(one) for one in (x if isinstance(x, list | tuple) else [x])])
        picture = x if x.ndim == 4 else x[None]
        wanted = (self.frame_buffer_size, 3, self.height, self.width)
        if picture.shape != wanted:
            found, right = (" x ".join(map(str, shape)) for shape in (picture.shape, wanted))
            raise InvalidInput(f"the picture is {found}; {right}", field="x")
        moved: torch.Tensor = picture.to(self._networks.device)
        return moved

    def _pixels(self, image: Any) -> torch.Tensor:
        """1 x 3 x H x W, -1..1, of a picture of PIL's."""
        resized: npt.NDArray[np.uint8] = np.asarray(image.convert("RGB").resize((self.width, self.height)))
        pixels = torch.from_numpy(np.array(resized, dtype=np.float32))
        return pixels.permute(2, 0, 1)[None] / 127.5 - 1

    def _prepared(self) -> list[Stream]:
        if not self._streams:
            raise ProcessorError("call prepare before the first frame")
        return self._streams

"""A short video that begins with a picture: Stable Video Diffusion and its XT."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from headrace.batch.contract import Job, Result
from headrace.batch.pipelines import diffusion
from headrace.batch.pipelines.diffusion import Checkpoint
from headrace.batch.pipelines.diffusion_run import (
    call,
    check_size,
    generators,
    multiple_of,
    on_step,
    to_pixels,
    tuned,
)
from headrace.batch.pipelines.images import Made, mark, uploaded
from headrace.batch.pipelines.pictures import Pixels, png
from headrace.batch.pipelines.safety import checker
from headrace.batch.pipelines.text_to_image import seed_of
from headrace.batch.pipelines.video_files import mp4
from headrace.models.cache import ModelCache
from stream.errors import InvalidInput

DEFAULTS = {
    "height": 576,
    "width": 1024,
    "fps": 6,
    "motion_bucket_id": 127,
    "noise_aug_strength": 0.02,
    "num_inference_steps": 25,
}
_DECODED = 4
"""Pictures that are decoded together: where memory peaks."""


class ImageToVideo:
    """``/image-to-video``: see `headrace.batch.contract.BatchPipeline`.

    The blob ``image`` (cut to the sides' ratio, so nothing is distorted); inputs: ``height``, ``width``,
    ``fps`` (of the file, and how fast things move), ``motion_bucket_id``, ``noise_aug_strength``,
    ``num_inference_steps``, ``num_frames`` (absent: as many as the model was made for), ``seed``,
    ``safety_check``, ``withhold``, ``frames`` (every picture as a PNG file besides). The body has ``images``,
    one MP4 file.
    """

    name: ClassVar[str] = "image-to-video"

    def run(self, job: Job, models: ModelCache) -> Result:
        inputs, adjusted = tuned(job, DEFAULTS)
        seed, picture = seed_of(inputs), uploaded(job)
        made = self._make(job, models, inputs, picture, seed)
        frames = [mark(frame) for frame in made.pictures] if made.weights == "random" else made.pictures
        told: dict[str, Any] = {"seed": seed, "nsfw": any(made.unsafe)}
        blobs = {"0.mp4": mp4(frames, int(inputs["fps"]))}
        body: dict[str, Any] = {
            "images": [{"blob": "0.mp4", **told}],
            "weights": made.weights,
            "safety": made.safety,
        }
        if adjusted:
            body["adjusted"] = adjusted
        if inputs.get("frames"):
            blobs |= {f"frame-{number}.png": png(frame) for number, frame in enumerate(frames)}
            body["frames"] = [{"blob": f"frame-{number}.png", **told} for number in range(len(frames))]
        return Result(body, blobs)

    def _make(self, job: Job, models: ModelCache, inputs: dict[str, Any], picture: Pixels, seed: int) -> Made:
        """Apart from `run`, so that nothing of the model is held while files are written."""
        with diffusion.acquire(job, models) as lease, checker(job, models) as safety, job.turn():
            checkpoint: Checkpoint = lease.model
            pipe = checkpoint.view(_class(checkpoint, job))
            frames = _frames(job, pipe, inputs, picture, seed)
            # What moves in was not in the picture that came: first, middle and last are looked at.
            looked = sorted({0, len(frames) // 2, len(frames) - 1})
            _, flags = safety.look([frames[number] for number in looked])
            if any(flags) and safety.withholds:
                frames = [np.zeros_like(frame) for frame in frames]
            return Made(frames, flags, safety.state, lease.weights)

    def warm(self, job: Job, models: ModelCache) -> None:
        diffusion.acquire(job, models).release()


def _class(checkpoint: Checkpoint, job: Job) -> type[Any]:
    import diffusers

    if checkpoint.index != "StableVideoDiffusionPipeline":
        raise InvalidInput(
            f"model {job.model} is a {checkpoint.index}, which does no {job.pipeline}", field="model_id"
        )
    kind: type[Any] = diffusers.StableVideoDiffusionPipeline
    return kind


def _frames(job: Job, pipe: Any, inputs: dict[str, Any], picture: Pixels, seed: int) -> list[Pixels]:
    from PIL import Image, ImageOps

    height, width = (check_size(side, int(inputs[side]), multiple_of(pipe)) for side in ("height", "width"))
    fitted = ImageOps.fit(Image.fromarray(picture), (width, height), Image.Resampling.LANCZOS)
    arguments = {
        "image": fitted,
        "height": height,
        "width": width,
        "num_frames": inputs.get("num_frames"),
        "num_inference_steps": int(inputs["num_inference_steps"]),
        "fps": int(inputs["fps"]),
        "motion_bucket_id": int(inputs["motion_bucket_id"]),
        "noise_aug_strength": float(inputs["noise_aug_strength"]),
        "decode_chunk_size": _DECODED,
        "generator": generators(seed, 1)[0],
    }
    made = call(pipe, arguments, on_step(job))
    return [to_pixels(frame) for frame in made.frames[0]]

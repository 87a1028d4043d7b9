"""Pictures from a picture and a text: image to image, and InstructPix2Pix, which edits as it is told."""

from __future__ import annotations

import inspect
import math
from typing import Any, ClassVar

from headrace.batch.contract import Job, Result
from headrace.batch.defaults import Adjustment, tuning_of
from headrace.batch.fields import MAX_PIXELS
from headrace.batch.pipelines import diffusion, loras
from headrace.batch.pipelines.diffusion import Checkpoint
from headrace.batch.pipelines.diffusion_run import multiple_of, tuned
from headrace.batch.pipelines.diffusion_together import Wish
from headrace.batch.pipelines.images import Made, answer, check_side, padded, uploaded
from headrace.batch.pipelines.pictures import Pixels
from headrace.batch.pipelines.safety import checker
from headrace.batch.pipelines.schedulers import scheduler_for
from headrace.batch.pipelines.text_to_image import seed_of, settings
from headrace.models.cache import ModelCache
from stream.errors import TooLarge

DEFAULTS = {
    "strength": 0.8,
    "guidance_scale": 7.5,
    "image_guidance_scale": 1.5,
    "num_inference_steps": 100,
}
MAX_STEPS = 200
_ROUNDING = 1e-6
"""What keeps a whole step whole when it is multiplied again."""


class ImageToImage:
    """``/image-to-image``: see `headrace.batch.contract.BatchPipeline`.

    The blob ``image``; inputs: ``prompt`` (may be empty), ``negative_prompt``, ``strength``,
    ``guidance_scale``, ``image_guidance_scale`` (InstructPix2Pix), ``num_inference_steps``,
    ``num_images_per_prompt``, ``seed``, ``safety_check``, ``withhold``, ``loras``, ``scheduler``. Answers as
    `headrace.batch.pipelines.text_to_image.TextToImage`, with pictures as large as the one that came.
    """

    name: ClassVar[str] = "image-to-image"

    def run(self, job: Job, models: ModelCache) -> Result:
        inputs, adjusted = tuned(job, DEFAULTS)
        seed, picture = seed_of(inputs), uploaded(job)
        check_side(picture)
        _check_pixels(picture, inputs)
        made = self._make(job, models, inputs, adjusted, picture, seed)
        return answer(made, seed=seed, adjusted=adjusted)

    def _make(
        self,
        job: Job,
        models: ModelCache,
        inputs: dict[str, Any],
        adjusted: list[dict[str, Any]],
        picture: Pixels,
        seed: int,
    ) -> Made:
        """Apart from `run`, so that nothing of the model is held while files are written."""
        count = int(inputs.get("num_images_per_prompt", 1))
        with (
            diffusion.acquire(job, models) as lease,
            loras.wanted(job, models) as branches,
            checker(job, models) as safety,
        ):
            checkpoint: Checkpoint = lease.model
            kind = diffusion.class_for("image-to-image", checkpoint.index, job.model)
            parts = loras.with_branches(checkpoint.parts, branches)
            pipe = checkpoint.view(kind, parts, scheduler=scheduler_for(job, checkpoint))
            larger = padded(picture, multiple_of(pipe))
            arguments = {**_arguments(pipe, inputs, larger), **_strength(pipe, job, inputs, adjusted)}
            height, width = picture.shape[:2]
            loras.attach(job, pipe, branches)
            like = loras.likeness(job), inputs.get("scheduler")
            wish = Wish(job, pipe, arguments, seed, count, larger[..., 0].size, like)
            made = checkpoint.studio.make(wish)
            shown, unsafe = safety.look_for(job, [one[:height, :width] for one in made])
            return Made(shown, unsafe, safety.state, lease.weights)

    def warm(self, job: Job, models: ModelCache) -> None:
        diffusion.acquire(job, models).release()


def _check_pixels(picture: Pixels, inputs: dict[str, Any]) -> None:
    height, width = picture.shape[:2]
    count = int(inputs.get("num_images_per_prompt", 1))
    if height * width * count > MAX_PIXELS:
        raise TooLarge(
            f"image is {width} x {height}, and num_images_per_prompt is {count}; {MAX_PIXELS} pixels are the "
            "limit of all pictures together",
            field="num_images_per_prompt",
        )


def _arguments(pipe: Any, inputs: dict[str, Any], picture: Any) -> dict[str, Any]:
    from PIL import Image

    return {
        **settings(pipe, inputs),
        "prompt": str(inputs.get("prompt") or ""),
        "negative_prompt": inputs.get("negative_prompt") or None,
        "image": Image.fromarray(picture),
        "image_guidance_scale": float(inputs["image_guidance_scale"]),
        "height": picture.shape[0],
        "width": picture.shape[1],
    }


# -- strength ------------------------------------------------------------------------------------------


def _strength(pipe: Any, job: Job, inputs: dict[str, Any], adjusted: list[dict[str, Any]]) -> dict[str, Any]:
    """Strength and steps with which both the picture and the text count; ``adjusted`` is told of changes."""
    if "strength" not in inspect.signature(type(pipe).__call__).parameters:
        return {}
    asked, steps = float(inputs["strength"]), int(inputs["num_inference_steps"])
    tuning = tuning_of(job.model)
    most = MAX_STEPS if tuning is None or tuning.step_range is None else int(tuning.step_range[1])
    flow = type(pipe.scheduler).__name__.startswith("FlowMatch")
    strength, used = workable(asked, steps, most=max(most, steps), flow=flow)
    for field, before, after in (("num_inference_steps", steps, used), ("strength", asked, strength)):
        if before != after:
            reason = (
                f"with {asked:g} of {steps} steps {'the picture' if flow else 'the text'} would not count"
            )
            adjusted.append(Adjustment(field, before, round(after, 4), reason).as_dict())
    return {"strength": strength, "num_inference_steps": used}


def workable(strength: float, steps: int, *, most: int, flow: bool) -> tuple[float, int]:
    """Strength and steps, of which ``most`` are allowed, near to those that were asked for.

    Pipelines run the last ``strength`` of the steps: at least one must be run. More steps in all cost
    nothing then, so they come first, and a greater strength after them. Those of ``flow`` models round the
    other way: below a strength of one a step must be left out, for the first one begins with noise alone.
    """
    if flow:
        if strength >= 1:
            return strength, steps
        steps = max(steps, 2)
        return min(strength, (steps - 1 - _ROUNDING) / steps), steps
    if int(strength * steps) < 1:
        wanted = (1 + _ROUNDING) / max(strength, 1 / most)
        steps = max(steps, min(math.ceil(wanted), most))
    if int(strength * steps) < 1:
        strength = min(1.0, (1 + _ROUNDING) / steps)
    return strength, steps

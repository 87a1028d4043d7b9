"""Pictures from a text: Stable Diffusion 1.5 to 3, SDXL with its Turbo and Lightning variants, Flux."""

from __future__ import annotations

import secrets
from typing import Any, ClassVar, cast

from headrace.batch.contract import Job, Result
from headrace.batch.pipelines import diffusion, loras
from headrace.batch.pipelines.diffusion import Checkpoint
from headrace.batch.pipelines.diffusion_run import check_size, multiple_of, tuned
from headrace.batch.pipelines.diffusion_together import Wish
from headrace.batch.pipelines.images import Made, answer
from headrace.batch.pipelines.safety import checker
from headrace.batch.pipelines.schedulers import scheduler_for
from headrace.models.cache import ModelCache
from headrace.models.loading import call_arguments_of
from stream.errors import InvalidInput

DEFAULTS = {"height": 576, "width": 1024, "guidance_scale": 7.5, "num_inference_steps": 50}
MAX_PARTS = 4
_SHORT_TEXT = 256
"""Tokens of text that a Flux distilled for few steps was trained with."""


class TextToImage:
    """``/text-to-image``: see `headrace.batch.contract.BatchPipeline`.

    Inputs: ``prompt``, ``negative_prompt``, ``height``, ``width``, ``guidance_scale``,
    ``num_inference_steps``, ``num_images_per_prompt``, ``seed``, ``safety_check``, ``withhold``, ``loras``,
    ``scheduler`` (`headrace.batch.pipelines.schedulers.SCHEDULERS`). The body has ``images``, one PNG file
    each, ``safety`` and, where values were clamped, ``adjusted``.
    """

    name: ClassVar[str] = "text-to-image"

    def run(self, job: Job, models: ModelCache) -> Result:
        inputs, adjusted = tuned(job, DEFAULTS)
        seed = seed_of(inputs)
        return answer(self._make(job, models, inputs, seed), seed=seed, adjusted=adjusted)

    def _make(self, job: Job, models: ModelCache, inputs: dict[str, Any], seed: int) -> Made:
        """Apart from `run`, so that nothing of the model is held while files are written."""
        count = int(inputs.get("num_images_per_prompt", 1))
        with (
            diffusion.acquire(job, models) as lease,
            loras.wanted(job, models) as branches,
            checker(job, models) as safety,
        ):
            checkpoint: Checkpoint = lease.model
            kind = diffusion.class_for("text-to-image", checkpoint.index, job.model)
            parts = loras.with_branches(checkpoint.parts, branches)
            pipe = checkpoint.view(kind, parts, scheduler=scheduler_for(job, checkpoint))
            height, width = (
                check_size(side, int(inputs[side]), multiple_of(pipe)) for side in ("height", "width")
            )
            arguments = {**texts(pipe, inputs), **settings(pipe, inputs), "height": height, "width": width}
            loras.attach(job, pipe, branches)
            like = loras.likeness(job), inputs.get("scheduler")
            made = checkpoint.studio.make(Wish(job, pipe, arguments, seed, count, height * width, like))
            shown, unsafe = safety.look_for(job, made)
            return Made(shown, unsafe, safety.state, lease.weights)

    def warm(self, job: Job, models: ModelCache) -> None:
        diffusion.acquire(job, models).release()


def seed_of(inputs: dict[str, Any]) -> int:
    """The request's seed, 0 too; a random one where it has none."""
    seed = inputs.get("seed")
    return secrets.randbits(32) if seed is None else int(seed)


def settings(pipe: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Arguments that pipelines from text and from pictures have in common."""
    config = getattr(getattr(pipe, "transformer", None), "config", None)
    made: dict[str, Any] = {
        "guidance_scale": float(inputs["guidance_scale"]),
        "num_inference_steps": int(inputs["num_inference_steps"]),
    }
    if getattr(config, "guidance_embeds", None) is False:
        made["max_sequence_length"] = _SHORT_TEXT
    return made


# -- prompts -------------------------------------------------------------------------------------------


def texts(pipe: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """``prompt``, ``prompt_2`` ... and their negatives for as many texts as the pipeline reads.

    ``a | b`` gives the second encoder a text of its own. Parts that no encoder is left for join the last one.
    Raises `InvalidInput` for a prompt without words.
    """
    takes = call_arguments_of(cast(Any, type(pipe)))
    made: dict[str, Any] = {}
    for name in ("prompt", "negative_prompt"):
        slots = [n for n in (name, *(f"{name}_{k}" for k in range(2, MAX_PARTS + 1))) if n in takes]
        parts = split_prompt(str(inputs.get(name) or ""))
        if name == "prompt" and not parts:
            raise InvalidInput("Prompt must be provided.", field="prompt")
        if slots and parts:
            last = len(slots) - 1
            parts = [*parts[:last], ", ".join(parts[last:])] if len(parts) > last else parts
            made.update(zip(slots, parts, strict=False))
    return made


def split_prompt(prompt: str) -> list[str]:
    """The parts between bars, at most four; empty ones are left out, further bars stay in the fourth."""
    parts = (part.strip() for part in prompt.split("|", MAX_PARTS - 1))
    return [part for part in parts if part]

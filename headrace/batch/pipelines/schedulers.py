"""Which scheduler a request gets: an object of its own, of the class of the model or one asked for."""

from __future__ import annotations

from typing import Any

from headrace.batch.contract import Job
from headrace.batch.pipelines import lightning
from headrace.batch.pipelines.diffusion import Checkpoint
from stream.errors import InvalidInput

SCHEDULERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Names that a request may give as ``scheduler``."""


def scheduler_for(job: Job, checkpoint: Checkpoint) -> Any:
    """A fresh scheduler. Raises `InvalidInput` (field ``scheduler``) for names and models that do not fit."""
    import diffusers

    own = checkpoint.parts["scheduler"]
    if lightning.base_of(job.model):
        return lightning.scheduler_for(checkpoint.scheduler)
    name = job.inputs.get("scheduler") or ""
    if not name:
        if "InstructPix2Pix" in checkpoint.index:
            return checkpoint.scheduler(diffusers.EulerAncestralDiscreteScheduler)
        return checkpoint.scheduler()
    if name not in SCHEDULERS:
        raise InvalidInput(f"scheduler is {name!r}; there are {', '.join(SCHEDULERS)}", field="scheduler")
    if type(own).__name__.startswith("FlowMatch"):
        raise InvalidInput(
            f"scheduler is {name!r}; model {job.model} runs with its own only ({type(own).__name__})",
            field="scheduler",
        )
    kind, changes = SCHEDULERS[name]
    return checkpoint.scheduler(getattr(diffusers, kind), **changes)

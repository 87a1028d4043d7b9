"""What a worker runs when a stream names nothing: a workflow, a class, or a pipeline by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from headrace.diffusion import parameters as stream_diffusion
from headrace.server.specs import Spec, Specs, processor_spec
from headrace.server.targets import check_target
from headrace.settings import Settings
from stream.errors import InvalidInput

PIPELINES: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], object]]] = {
    "stream-diffusion": (
        "headrace.diffusion.processor:StreamDiffusionProcessor",
        stream_diffusion.start,
    ),
}
"""By the setting ``pipeline``: the class, and what checks its parameters without loading it."""


def target_of(settings: Settings) -> str | None:
    """The class that streams run which name nothing, as ``module:Class``; None: a workflow."""
    known = PIPELINES.get(settings.pipeline)
    return settings.processor or (known[0] if known is not None else None)


def check_default(settings: Settings, specs: Specs) -> None:
    """Look, before anything starts, at what streams run that name nothing, where the settings choose it.

    Raises `NotFound`, `InvalidInput` or `InvalidWorkflow`. Of what runs in an interpreter or on nodes
    that are not ours, no more is known so early than that the workflow can be read.
    """
    if settings.processor:
        if settings.engine_python is None:
            check_target(settings.processor)
    elif target_of(settings) is None and "workflow" in settings.model_fields_set:
        foreign = (settings.comfyui, settings.custom_nodes, settings.object_info)
        look = specs.of_workflow if foreign == (None, None, None) else specs.data_of
        look(settings.workflow, allow_files=True)


def processor_of(settings: Settings) -> Spec | None:
    """The spec of the processor that the settings choose; None: the setting ``workflow`` holds.

    Raises `InvalidInput` for parameters that the pipeline does not take.
    """
    params = settings.pipeline_params
    if settings.processor:
        spec = processor_spec(settings.processor)
        return {**spec, "kwargs": params} if params else spec
    known = PIPELINES.get(settings.pipeline)
    if known is None:
        if params:
            raise InvalidInput(
                f"pipeline_params are for a processor or one of {', '.join(PIPELINES)}, "
                f"not for {settings.pipeline}",
                field="pipeline_params",
            )
        return None
    target, check = known
    check(params)
    return {"kind": "class", "target": target, "kwargs": params}

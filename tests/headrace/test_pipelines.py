"""Pipelines by name: what a worker runs for streams that name nothing."""

from __future__ import annotations

import pytest

from headrace.server.definitions import WorkerDefinitions
from headrace.server.pipelines import processor_of, target_of
from headrace.server.specs import Spec, Specs
from headrace.settings import load_settings
from stream.errors import InvalidInput

DIFFUSION = "headrace.diffusion.processor:StreamDiffusionProcessor"


def spec_of(**flags: object) -> Spec | None:
    return processor_of(load_settings(flags))


def test_a_pipeline_stands_for_its_class_and_begins_with_its_parameters() -> None:
    flags = {"pipeline": "stream-diffusion", "pipeline_params": '{"prompt": "a lake"}'}
    assert spec_of(**flags) == {"kind": "class", "target": DIFFUSION, "kwargs": {"prompt": "a lake"}}
    assert target_of(load_settings(flags)) == DIFFUSION
    assert spec_of() is None
    assert target_of(load_settings({})) is None
    assert spec_of(processor="a:B", pipeline="stream-diffusion") == {"kind": "class", "target": "a:B"}


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({"pipeline": "stream-diffusion", "pipeline_params": '{"t_index_list": [99]}'}, "params"),
        ({"pipeline": "stream-diffusion", "pipeline_params": '{"promt": "a"}'}, "promt"),
        ({"pipeline_params": '{"prompt": "a"}'}, "pipeline_params"),
        ({"pipeline_params": "{"}, "pipeline_params"),
        ({"pipeline_params": "[1]"}, "pipeline_params"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_starts(flags: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        spec_of(**flags)
    assert caught.value.field == field


def test_a_prompt_is_a_text_where_a_processor_runs_and_a_workflow_where_it_is_one() -> None:
    specs = Specs(WorkerDefinitions(None))
    own: Spec = {"kind": "class", "target": DIFFUSION}
    assert specs.of_start({"prompt": "a lake"}, default=own, allow_processors=False) == (
        own,
        {"prompt": "a lake"},
    )
    assert specs.completing(own) is None
    graph = {
        "1": {"class_type": "LoadTensor", "inputs": {}},
        "2": {"class_type": "SaveTensor", "inputs": {"images": ["1", 0]}},
    }
    spec, rest = specs.of_start({"prompt": graph}, default=own, allow_processors=False)
    assert (spec["kind"], rest) == ("workflow", {})
    spec, rest = specs.of_start({"workflow": "edges"}, default=own, allow_processors=False)
    assert spec["kind"] == "workflow"

"""What the page shows, from sessions as they are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from headrace.library.names import Library
from headrace.server.catalogue import Catalogue, examined, steps_of, title_of
from headrace.server.definitions import WorkerDefinitions
from headrace.server.page_state import RunningWorkflows, current_values, explain
from headrace.server.specs import Specs
from stream.errors import InvalidInput, InvalidWorkflow, ProcessorError
from stream.frames import VideoFrame
from stream.pattern import PatternSettings
from stream.pattern_session import pattern_session
from stream.processor import FrameProcessor
from stream.session import Session, SessionSettings
from workflows import library

SPECS = Specs(WorkerDefinitions())
LIBRARY = Library(Path("/nonexistent"))
SCHEMA = {
    "properties": {
        "2.sigma": {"title": "Smooth: sigma", "default": 1.0},
        "3.sigma": {"title": "Sharp: sigma", "default": 2.0},
        "4.mode": {"title": "Twin: mode", "default": "a"},
        "5.mode": {"title": "Twin: mode", "default": "b"},
    }
}


@pytest.mark.parametrize(
    ("params", "changed"),
    [
        ({}, {}),
        ({"2.sigma": 5}, {"2.sigma": 5}),
        ({"smooth.SIGMA": 5}, {"2.sigma": 5}),
        ({"3": {"sigma": 7}, "Smooth": {"sigma": 8}}, {"3.sigma": 7, "2.sigma": 8}),
        ({"Twin.mode": "c"}, {}),
        ({"5.mode": "c", "unknown": 1, "workflow": {"1": {}}}, {"5.mode": "c"}),
    ],
)
def test_values_are_the_defaults_and_what_was_changed_by_whatever_name(
    params: dict[str, Any], changed: dict[str, Any]
) -> None:
    defaults = {"2.sigma": 1.0, "3.sigma": 2.0, "4.mode": "a", "5.mode": "b"}
    assert current_values(SCHEMA, params) == {**defaults, **changed}


@given(
    st.dictionaries(st.text(max_size=8), st.integers() | st.dictionaries(st.text(max_size=4), st.integers()))
)
def test_parameters_of_any_shape_leave_the_keys_as_they_are(params: Mapping[str, Any]) -> None:
    assert current_values(SCHEMA, params).keys() == SCHEMA["properties"].keys()


@pytest.mark.parametrize("name", library.names())
def test_bundled_workflows_are_offered_with_words_of_their_own(name: str) -> None:
    entry = next(entry for entry in Catalogue(SPECS, LIBRARY).entries() if entry.name == name)
    assert entry.title == title_of(name)
    assert entry.description
    assert len(entry.steps) >= 2


@pytest.mark.parametrize("name", ["cartoon", "edges"])
def test_values_of_a_bundled_workflow_are_those_in_its_file(name: str) -> None:
    schema = SPECS.parameters(SPECS.of_workflow(name)).schema()
    data = library.load_bundled(name)
    values = current_values(schema, {})
    assert values
    for key, value in values.items():
        node, _, field = key.partition(".")
        assert data[node]["inputs"][field] == value


def test_a_workflow_from_a_file_has_a_name_too() -> None:
    assert title_of("/srv/workflows/night-sky.json") == "Night sky"
    assert steps_of([1, 2]) == ()
    assert steps_of({"1": {"class_type": "Canny"}, "2": {"class_type": "X", "_meta": {"title": "Last"}}}) == (
        "Canny",
        "Last",
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)
NODES = st.fixed_dictionaries(
    {},
    optional={
        "class_type": st.sampled_from(["LoadTensor", "Canny", "SaveTensor", "Nonsense"]) | JSON,
        "inputs": JSON,
        "_meta": JSON,
        "type": JSON,
        "id": JSON,
        "title": JSON,
    },
)


@given(st.dictionaries(st.text(max_size=3), NODES | JSON) | st.fixed_dictionaries({"nodes": st.lists(NODES)}))
def test_whatever_somebody_drops_is_answered_with_nodes_and_problems(workflow: dict[str, Any]) -> None:
    found = examined(workflow, SPECS)
    assert found["problems"]
    for node in found["nodes"]:
        assert set(node) == {"id", "title", "class_type"}
        assert all(isinstance(value, str) for value in node.values())


def test_a_workflow_that_can_run_has_no_problem_and_one_that_cannot_names_the_node() -> None:
    workflow = library.load_bundled("edges")
    assert examined(workflow, SPECS) == {
        "nodes": [
            {"id": "1", "title": "Stream in", "class_type": "LoadTensor"},
            {"id": "2", "title": "Edges", "class_type": "Canny"},
            {"id": "3", "title": "Stream out", "class_type": "SaveTensor"},
        ],
        "problems": [],
    }
    workflow["2"]["inputs"]["low_threshold"] = "much"
    (problem,) = examined(workflow, SPECS)["problems"]
    assert (problem["node_id"], problem["title"], problem["input"]) == ("2", "Edges", "low_threshold")
    for nonsense in (3, [], None):
        with pytest.raises(InvalidInput, match="JSON object of nodes"):
            examined(nonsense, SPECS)


class Works(FrameProcessor):
    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        return frame


async def test_what_a_session_runs_is_known_by_name_and_with_its_own_values_before_the_engine_is() -> None:
    spec = SPECS.of_workflow("edges")
    processor = EngineProcessor(Engine(EngineSettings()), spec, session="one")
    one = pattern_session("one", processor, SessionSettings(), PatternSettings(width=64, height=64))
    workflows = RunningWorkflows(SPECS, LIBRARY)
    running = await workflows.of(one)
    assert running.names == ("edges",)
    assert running.schema["properties"]["2.low_threshold"]["default"] == 0.4
    assert await workflows.of(one) is running
    processor._spec = {**spec, "workflow": "cartoon"}
    assert (await workflows.of(one)).names == ("cartoon",)
    own = library.load_bundled("edges")
    own["2"]["inputs"]["low_threshold"] = 0.1
    processor._spec = {**spec, "workflow": own}
    running = await workflows.of(one)
    assert running.names == ()
    assert running.schema["properties"]["2.low_threshold"]["default"] == 0.1


def session() -> Session:
    return pattern_session("one", Works(), SessionSettings(), PatternSettings(width=64, height=64))


def at_work(session: Session, frames: int = 300, results: int = 300) -> None:
    """As after ten seconds of 30 fps of which ``results`` were processed."""
    session.pipeline.ready = True
    session._running = True
    session._standing.ready_since = session.started
    figures, now = session.pipeline.figures, time.monotonic_ns()
    session._standing.started -= 20
    for index in range(frames):
        figures.input_rate.tick(now - (frames - index) * 10**10 // frames)
    for index in range(results):
        for rate in (figures.result_rate, figures.answer_rate):
            rate.tick(now - (results - index) * 10**10 // results)
    figures.first_answer = now - 10**10


async def test_loading_is_told_in_the_words_of_the_processor() -> None:
    assert explain(session(), "fetching the weights") == "Fetching the weights."
    assert explain(session(), "ready") == "Waiting for the first result."


async def test_a_stream_that_keeps_up_and_one_that_leaves_frames_out() -> None:
    quick, slow = session(), session()
    at_work(quick)
    at_work(slow, results=150)
    assert explain(quick, "ready") == "Every frame is processed."
    words = explain(slow, "ready")
    assert words.endswith("frames a second are processed, always the newest.")
    assert words.startswith(("14.", "15."))


async def test_a_stream_without_frames_is_not_said_to_be_processed() -> None:
    empty = session()
    at_work(empty, frames=0, results=0)
    assert explain(empty, "ready") != "Every frame is processed."


async def test_a_failed_frame_a_restart_and_an_absent_engine_are_told() -> None:
    failing, restarted, absent = session(), session(), session()
    for each in (failing, restarted, absent):
        at_work(each)
    failing.pipeline.figures.last_error = ProcessorError("node 5: out of memory")
    failing.pipeline.figures.last_error_at = time.monotonic_ns()
    assert explain(failing, "ready") == "A frame failed: Node 5: out of memory."
    restarted.restarted(1, ["killed"])
    assert explain(restarted, "ready").startswith("The engine was restarted 0 s ago")
    absent.restarted(1, ["killed"])
    assert explain(absent, "the engine is restarting") == "The engine is restarting."


async def test_an_error_for_good_and_the_end_are_told() -> None:
    broken, ended = session(), session()
    broken.fatal = InvalidWorkflow("node 7 is of no known class")
    assert explain(broken, "ready") == "Node 7 is of no known class."
    ended.stop("stopped by request")
    assert explain(ended, "ready") == "Ended: stopped by request."


async def test_silence_of_over_ten_seconds_is_told() -> None:
    silent = session()
    at_work(silent, results=0)
    silent._standing.started = silent._standing.ready_since = time.monotonic() - 20
    silent.pipeline.figures.first_answer = None
    assert explain(silent, "ready") == "There has been no result for over ten seconds."

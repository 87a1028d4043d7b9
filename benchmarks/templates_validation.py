"""ComfyUI's own ``validate_prompt`` over many prompts, in its own interpreter.

The inside (this file as a script: ``PROMPTS.json ANSWER.json``, in the folder of the installation) imports
nothing of ours.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TIMEOUT_S = 300.0
Complaint = dict[str, Any]
"""``node_id``, ``type`` as ComfyUI has it, ``details``, and for inputs ``input`` and ``value``."""


def validated(python: str, folder: Path, prompts: Mapping[str, Any]) -> dict[str, list[Complaint]] | str:
    """What the ComfyUI in ``folder`` has against each prompt; why it cannot be asked."""
    with tempfile.TemporaryDirectory() as place:
        given, answer = Path(place) / "prompts.json", Path(place) / "answer.json"
        given.write_text(json.dumps(prompts))
        command = [python, str(Path(__file__).resolve()), str(given), str(answer)]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if not answer.is_file():
            last = done.stderr.strip().splitlines()[-1:]
            return f"it ends with {done.returncode}: {''.join(last)}"
        found: dict[str, list[Complaint]] = json.loads(answer.read_bytes())
        return found


async def _inside(prompts: Mapping[str, Any]) -> dict[str, list[Complaint]]:
    __import__("utils.extra_config")  # before ``nodes``: what that imports has another ``utils``
    comfy_nodes: Any = __import__("nodes")
    execution: Any = __import__("execution")
    await comfy_nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=True)
    found: dict[str, list[Complaint]] = {}
    for name, prompt in prompts.items():
        _, error, _, by_node = await execution.validate_prompt(name, prompt, None)
        found[name] = [
            _complaint(node_id, reason) for node_id, held in by_node.items() for reason in held["errors"]
        ]
        if error is not None and not by_node:
            found[name].append(_complaint(None, error))
    return found


def _complaint(node_id: str | None, reason: Mapping[str, Any]) -> Complaint:
    extra = reason.get("extra_info") or {}
    value = extra.get("received_value")
    return {
        "node_id": node_id,
        "type": reason["type"],
        "details": str(reason.get("details", "")),
        "input": extra.get("input_name"),
        "value": value if isinstance(value, str | int | float | bool) else None,
    }


if __name__ == "__main__":
    prompts_file, answer_file = map(Path, sys.argv[1:3])
    sys.path[0] = str(Path.cwd())
    sys.argv = ["main.py", "--cpu"]
    __import__("comfy.options", fromlist=["options"]).enable_args_parsing()
    answered = asyncio.run(_inside(json.loads(prompts_file.read_bytes())))
    answer_file.write_text(json.dumps(answered))

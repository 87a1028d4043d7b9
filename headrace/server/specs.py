"""From what a caller asked for to what an engine is told to build."""

from __future__ import annotations

import json
import re
from typing import Any

from stream.errors import InvalidInput, InvalidWorkflow
from workflows import check, graph, library

WORKFLOW_KEYS = ("workflow", "prompts", "prompt")
TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

Spec = dict[str, Any]


def workflow_spec(workflow: dict[str, Any] | list[Any] | str, *, allow_files: bool) -> Spec:
    """The spec of a workflow given as JSON data, JSON text, a bundled name or (if allowed) a file.

    Raises `InvalidWorkflow` with every problem that can be found without an engine.
    """
    data = _workflow_data(workflow, allow_files=allow_files)
    problems = check.check_workflow(data)
    if problems:
        text = "; ".join(problem.message for problem in problems)
        raise InvalidWorkflow(text, field="workflow", details=[problem.as_dict() for problem in problems])
    return {"kind": "workflow", "workflow": data}


def _workflow_data(workflow: dict[str, Any] | list[Any] | str, *, allow_files: bool) -> Any:
    if not isinstance(workflow, str):
        return workflow
    text = workflow.strip()
    if text.startswith(("{", "[")):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidInput(
                f"workflow is not JSON: {error.msg} at line {error.lineno}, column {error.colno}", field="workflow"
            ) from None
    if not allow_files and text not in library.names():
        known = ", ".join(library.names())
        raise InvalidInput(f"there is no workflow {text[:80]!r}; there are: {known}", field="workflow")
    return library.load(text)


def processor_spec(target: Any) -> Spec:
    """The spec of a Python class, given as ``package.module:Class``."""
    if not isinstance(target, str) or not TARGET.fullmatch(target):
        raise InvalidInput(f"processor must read package.module:Class, not {target!r}", field="processor")
    return {"kind": "class", "target": target}


def spec_from_params(
    params: dict[str, Any], *, default: str, allow_processors: bool
) -> tuple[Spec, dict[str, Any]]:
    """Take the workflow or processor out of a start's parameters; returns its spec and the other parameters."""
    rest = dict(params)
    chosen = {key: rest.pop(key) for key in (*WORKFLOW_KEYS, "processor") if rest.get(key) is not None}
    if len(chosen) > 1:
        raise InvalidInput(f"give one of {', '.join(chosen)}, not several", field=next(iter(chosen)))
    if "processor" in chosen:
        if not allow_processors:
            raise InvalidInput(
                "processors by class are switched off here (HEADRACE_ALLOW_PROCESSORS turns them on)",
                field="processor",
            )
        return processor_spec(chosen["processor"]), rest
    if chosen:
        return workflow_spec(next(iter(chosen.values())), allow_files=False), rest
    return workflow_spec(default, allow_files=True), rest



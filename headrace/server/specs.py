"""From what a caller asked for to what an engine is told to build, checked as far as the worker can."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from stream.errors import InvalidInput
from workflows import library
from workflows.check import examine, normalise, not_installed
from workflows.graph import Graph, load_json
from workflows.parameters import ParameterTable
from workflows.problems import Problem, invalid_workflow
from workflows.processor import WORKFLOW_KEYS
from workflows.registry import NodeRegistry

TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

Spec = dict[str, Any]


@cache
def registry(input_folder: str | None = None) -> NodeRegistry:
    """The built-in nodes; their declarations need no torch. ``input_folder`` is LoadImage's."""
    return NodeRegistry.builtin(Path(input_folder) if input_folder is not None else None)


def workflow_spec(
    workflow: Any, *, allow_files: bool, input_folder: Path | None = None, local: bool = False
) -> Spec:
    """The spec of a workflow given as JSON data, JSON text, a bundled name or (if allowed) a file.

    A list means several in a row. ``input_folder`` is where LoadImage finds its pictures. ``local`` says that
    the engine runs in this interpreter, so that packages which are missing here are problems too. Raises
    `InvalidWorkflow` with every problem at once.
    """
    if isinstance(workflow, list):
        data: Any = [_workflow_data(item, allow_files=allow_files) for item in workflow]
    else:
        data = _workflow_data(workflow, allow_files=allow_files)
    spec = {"kind": "workflow", "workflow": data}
    if input_folder is not None:
        spec["input_folder"] = str(input_folder.resolve())
        # It lists the pictures that were there when it was last asked.
        registry(spec["input_folder"]).definitions.forget("LoadImage")
    graphs = spec_graphs(spec)
    if local:
        definitions = registry(spec.get("input_folder")).definitions
        missing = [problem for graph in graphs for problem in not_installed(graph, graph.nodes, definitions)]
        if missing:
            raise invalid_workflow(missing)
    return spec


def parameter_table(spec: Spec) -> ParameterTable:
    """The live parameters of a workflow's spec."""
    return ParameterTable(spec_graphs(spec), registry(spec.get("input_folder")).definitions)


def processor_spec(target: Any) -> Spec:
    """The spec of a Python class, given as ``package.module:Class``."""
    if not isinstance(target, str) or not TARGET.fullmatch(target):
        raise InvalidInput(f"processor must read package.module:Class, not {target!r}", field="processor")
    return {"kind": "class", "target": target}


def spec_from_params(
    params: Mapping[str, Any],
    *,
    default: str,
    allow_processors: bool,
    input_folder: Path | None = None,
    local: bool = False,
) -> tuple[Spec, dict[str, Any]]:
    """Take the workflow or processor out of a start's parameters: its spec, and the other parameters.

    Those of a workflow are checked here, so that a wrong one is refused before the stream begins.
    """
    rest = dict(params)
    chosen = {key: rest.pop(key) for key in (*WORKFLOW_KEYS, "processor") if rest.get(key) is not None}
    if len(chosen) > 1:
        raise InvalidInput(f"give one of {', '.join(chosen)}, not several", field=next(iter(chosen)))
    if "processor" in chosen:
        if not allow_processors:
            raise InvalidInput(
                "naming a class is switched off; HEADRACE_ALLOW_PROCESSORS=1 allows it", field="processor"
            )
        return processor_spec(chosen["processor"]), rest
    wanted = next(iter(chosen.values()), None)
    spec = workflow_spec(
        default if wanted is None else wanted,
        allow_files=wanted is None,
        input_folder=input_folder,
        local=local,
    )
    parameter_table(spec).resolve(rest)
    return spec, rest


def _workflow_data(workflow: Any, *, allow_files: bool) -> Any:
    if not isinstance(workflow, str):
        return workflow
    if workflow.lstrip().startswith(("{", "[")):
        return load_json(workflow, "workflow")
    return library.load(workflow) if allow_files else library.load_bundled(workflow)


def spec_graphs(spec: Spec) -> list[Graph]:
    """The workflows of a spec, checked, their literals as the nodes want them. Raises `InvalidWorkflow`."""
    data, definitions = spec["workflow"], registry(spec.get("input_folder")).definitions
    graphs, problems = [], list[Problem]()
    for item in data if isinstance(data, list) and data else [data]:
        graph, found = examine(load_json(item) if isinstance(item, str) else item, definitions)
        graphs.append(graph)
        problems += found
    if problems:
        raise invalid_workflow(problems)
    return [normalise(graph, definitions) for graph in graphs]

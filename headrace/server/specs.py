"""From what a caller asked for to what an engine is told to build, checked as far as the worker can."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headrace.server.definitions import WorkerDefinitions
from stream.errors import InvalidInput
from workflows import library
from workflows.check import examine, normalise, not_installed
from workflows.graph import Graph, load_json, looks_like_graph
from workflows.parameters import ParameterTable
from workflows.problems import Problem, invalid_workflow
from workflows.processor import WORKFLOW_KEYS

TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

Spec = dict[str, Any]


class Specs:
    """Makes the specs of a worker's sessions and reads them.

    ``definitions``: the nodes that workflows may name. ``named`` gives the data of a workflow by its name, or
    raises `NotFound`. ``local`` says that the engine runs in this interpreter, so that packages which are
    missing here are problems too.
    """

    def __init__(
        self,
        definitions: WorkerDefinitions,
        *,
        local: bool = False,
        named: Callable[[str], Any] = library.load_bundled,
    ) -> None:
        self.definitions = definitions
        self.local = local
        self.named = named

    def of_workflow(self, workflow: Any, *, allow_files: bool = False) -> Spec:
        """The spec of a workflow given as JSON data, JSON text, a name or (if allowed) a file.

        A list means several in a row. Raises `InvalidWorkflow` with every problem at once, `NotFound`.
        """
        data = self.data_of(workflow, allow_files=allow_files)
        spec = {"kind": "workflow", "workflow": data, **self.definitions.fields_for(data)}
        if allow_files and "engine" in spec:
            spec["trusted"] = True
        self.definitions.refresh()
        graphs = self.graphs(spec)
        if self.local and "engine" not in spec:
            missing = [
                problem for graph in graphs for problem in not_installed(graph, graph.nodes, self.definitions)
            ]
            if missing:
                raise invalid_workflow(missing)
        return spec

    def of_start(
        self, params: Mapping[str, Any], *, default: str | Spec, allow_processors: bool
    ) -> tuple[Spec, dict[str, Any]]:
        """Take the workflow or processor out of a start's parameters: its spec, and the other parameters.

        ``default`` is a workflow's name or a spec. Parameters of a workflow are checked here, so that a wrong
        one is refused before the stream begins.
        """
        rest = dict(params)
        # A processor has its own idea of a prompt; a workflow in its place is still told by its form.
        keys = [key for key in WORKFLOW_KEYS if isinstance(default, str) or _is_workflow(key, rest.get(key))]
        chosen = {key: rest.pop(key) for key in (*keys, "processor") if rest.get(key) is not None}
        if len(chosen) > 1:
            raise InvalidInput(f"give one of {', '.join(chosen)}, not several", field=next(iter(chosen)))
        if "processor" in chosen:
            if not allow_processors:
                raise InvalidInput(
                    "naming a class is switched off; HEADRACE_ALLOW_PROCESSORS=1 allows it", field="processor"
                )
            return processor_spec(chosen["processor"]), rest
        wanted = next(iter(chosen.values()), None)
        if not isinstance(default, str) and wanted in (None, default.get("target")):
            return default, rest
        spec = self.of_workflow(default if wanted is None else wanted, allow_files=wanted is None)
        self.parameters(spec).resolve(rest)
        return spec, rest

    def parameters(self, spec: Spec) -> ParameterTable:
        """The live parameters of a workflow's spec."""
        return ParameterTable(self.graphs(spec), self.definitions.of(spec))

    def graphs(self, spec: Spec) -> list[Graph]:
        """The workflows of a spec, checked, literals as the nodes want them. Raises `InvalidWorkflow`."""
        data, definitions = spec["workflow"], self.definitions.of(spec)
        graphs, problems = [], list[Problem]()
        for item in data if isinstance(data, list) and data else [data]:
            graph, found = examine(load_json(item) if isinstance(item, str) else item, definitions)
            graphs.append(graph)
            problems += found
            problems += self.definitions.only_elsewhere(graph, spec)
        if problems:
            raise invalid_workflow(problems)
        return [normalise(graph, definitions) for graph in graphs]

    def data_of(self, workflow: Any, *, allow_files: bool = False) -> Any:
        """JSON data in place of text and of names, in a list of several too; not checked."""
        if isinstance(workflow, list):
            return [self._one(item, allow_files) for item in workflow]
        return self._one(workflow, allow_files)

    def completing(self, spec: Spec) -> Callable[[Mapping[str, Any]], dict[str, Any]] | None:
        """What changed parameters of a session go through; what a class is told is its own affair."""
        return self.without_names if spec["kind"] == "workflow" else None

    def without_names(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Changed parameters with the data of a workflow in place of its name, which the engine may not know.
        Raises `NotFound`."""
        named = {
            key: self.data_of(params[key])
            for key in WORKFLOW_KEYS
            if isinstance(params.get(key), str | list) and params[key]
        }
        return {**params, **named}

    def _one(self, workflow: Any, allow_files: bool) -> Any:
        if not isinstance(workflow, str):
            return workflow
        if workflow.lstrip().startswith(("{", "[")):
            return load_json(workflow, "workflow")
        if allow_files and library.is_path(workflow):
            return library.load(Path(workflow))
        return self.named(workflow)


def _is_workflow(key: str, value: Any) -> bool:
    if key == "workflow":
        return True
    return any(looks_like_graph(item) for item in (value if isinstance(value, list) else [value]))


def processor_spec(target: Any) -> Spec:
    """The spec of a Python class, given as ``package.module:Class``."""
    if not isinstance(target, str) or not TARGET.fullmatch(target):
        raise InvalidInput(f"processor must read package.module:Class, not {target!r}", field="processor")
    return {"kind": "class", "target": target}

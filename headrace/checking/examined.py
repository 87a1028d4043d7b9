"""One file looked at: its workflows, what they are, and what keeps them from running."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workflows.check import examine, normalise, not_installed
from workflows.definitions import Definitions
from workflows.description import Description, describe
from workflows.graph import Graph, is_editor_format
from workflows.problems import Problem
from workflows.processor import MAX_WORKFLOWS
from workflows.reading import both_formats, read
from workflows.stream_rules import video_output


@dataclass(frozen=True, slots=True)
class Examined:
    """One workflow. ``drawn`` is its graph as it is in the file, ``graph`` that which runs.

    ``shown`` is the node whose pictures go out.
    """

    format: str
    drawn: Graph
    graph: Graph
    problems: Sequence[Problem]
    description: Description
    shown: str | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "ok": not self.problems,
            "problems": [problem.as_dict() for problem in self.problems],
            "titles": {node.id: node.title for node in self.drawn},
            "classes": {node.id: node.class_type for node in self.drawn},
            "video_output": self.shown,
            **self.description.as_dict(),
        }


def examine_file(
    data: Any,
    definitions: Definitions,
    *,
    input_node: str | None = None,
    output_node: str | None = None,
    local: bool = False,
) -> list[Examined]:
    """The workflows of a file, one or several in a row. A choice of a node holds for the one that has it.

    ``local`` says that it would run in this interpreter, so that packages which are missing are problems.
    """
    items = data if isinstance(data, list) and data else [data]
    found = []
    for item in items[:MAX_WORKFLOWS]:
        ids = set(read(item, definitions)[0].nodes)
        found.append(
            _examined(
                item,
                definitions,
                input_node if input_node in ids or len(items) == 1 else None,
                output_node if output_node in ids or len(items) == 1 else None,
                local,
            )
        )
    if len(items) > MAX_WORKFLOWS:
        message = f"{len(items)} workflows in a row; the limit is {MAX_WORKFLOWS}"
        last = found[-1]
        found[-1] = Examined(
            last.format, last.drawn, last.graph, [*last.problems, Problem("too_large", message)],
            last.description, last.shown,
        )  # fmt: skip
    return found


def _examined(
    data: Any, definitions: Definitions, input_node: str | None, output_node: str | None, local: bool
) -> Examined:
    drawn, _ = read(data, definitions)
    graph, problems = examine(data, definitions, input_node=input_node, output_node=output_node)
    if local:
        problems = [*problems, *not_installed(graph, graph.nodes, definitions)]
    graph = normalise(graph, definitions)
    shown, _ = video_output(graph, output_node)
    return Examined(
        format_of(data),
        drawn,
        graph,
        problems,
        describe(graph, definitions, output_node),
        None if shown is None else shown.id,
    )


def format_of(data: Any) -> str:
    """What a person calls the format of workflow data."""
    prompt, drawn = both_formats(data)
    if prompt is not None and drawn is not None:
        return "ComfyUI's API format and its editor's"
    if is_editor_format(data):
        version = data.get("version")
        return "ComfyUI's editor" + (f" (schema {version})" if isinstance(version, int | float) else "")
    return "ComfyUI's API format"

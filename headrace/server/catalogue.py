"""The bundled workflows, as a person chooses among them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from headrace.server.specs import Specs
from stream.errors import HeadraceError, InvalidInput, InvalidWorkflow
from workflows import library
from workflows.graph import load_json

ABOUT = {
    "blur-background": ("Blurred background", "Keeps the person sharp and blurs what is behind."),
    "cartoon": ("Cartoon", "Few, rich colours under dark outlines."),
    "edges": ("Edges", "White outlines on black."),
    "passthrough": ("Pass-through", "The picture as it came, through every stage."),
    "style-background": ("Painted background", "Paints what is behind the person in a style."),
    "style-transfer": ("Style transfer", "Paints the whole picture in a style."),
}
"""Title and description of a workflow; one that is not here is called by its file's name."""

MAX_LISTED = 500
"""Nodes of a workflow that are listed by name."""


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """``steps`` are the titles of its nodes in the file's order; ``problem`` says why it cannot run here."""

    name: str
    title: str
    description: str
    steps: tuple[str, ...]
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "steps": list(self.steps)}


class Catalogue:
    """The workflows that are offered by name."""

    def __init__(self, specs: Specs) -> None:
        self._specs = specs
        self._known: tuple[CatalogueEntry, ...] | None = None

    def entries(self) -> tuple[CatalogueEntry, ...]:
        """Every bundled workflow, in alphabetical order."""
        if self._known is None:
            self._known = tuple(self._entry(name) for name in library.names())
        return self._known

    def _entry(self, name: str) -> CatalogueEntry:
        problem = None
        try:
            self._specs.of_workflow(name)
        except HeadraceError as error:
            problem = error.message
        steps = steps_of(library.load_bundled(name))
        _, description = ABOUT.get(name, ("", " → ".join(steps)))
        return CatalogueEntry(name, title_of(name), description, steps, problem)


def title_of(name: str) -> str:
    """What a workflow is called: its title, its name, or for a file the end of its path."""
    if name in ABOUT:
        return ABOUT[name][0]
    return name.rpartition("/")[2].removesuffix(".json").replace("-", " ").capitalize()


def examined(workflow: Any, specs: Specs) -> dict[str, Any]:
    """A workflow that somebody brought, JSON data or text: ``nodes`` (``id``, ``title``, ``class_type``) and
    ``problems`` (as `Problem.as_dict` has them), none when it can run.

    Raises `InvalidInput` for what is not even an object.
    """
    data = load_json(workflow, "workflow") if isinstance(workflow, str) else workflow
    if not isinstance(data, dict):
        raise InvalidInput(
            f"a workflow is a JSON object of nodes, not {type(data).__name__}", field="workflow"
        )
    problems: list[dict[str, Any]] = []
    try:
        specs.of_workflow(data)
    except InvalidWorkflow as error:
        problems = error.details or [{"code": error.code, "message": error.message}]
    return {"nodes": _nodes_of(data), "problems": problems}


def _nodes_of(workflow: dict[str, Any]) -> list[dict[str, str]]:
    """The nodes as they stand in the file, in either of ComfyUI's formats, readable or not."""
    if isinstance(workflow.get("nodes"), list):
        found = [(node.get("id"), node.get("title"), node.get("type")) for node in _dicts(workflow["nodes"])]
    else:
        found = [
            (key, (node.get("_meta") or {}).get("title"), node.get("class_type"))
            for key, node in workflow.items()
            if isinstance(node, dict) and isinstance(node.get("_meta", {}), dict | None)
        ]
    return [
        {"id": str(key), "title": str(title or kind or "?"), "class_type": str(kind or "?")}
        for key, title, kind in found[:MAX_LISTED]
    ]


def _dicts(items: list[Any]) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)]


def steps_of(workflow: Any) -> tuple[str, ...]:
    """The titles of the nodes of a workflow in API format, in the file's order."""
    if not isinstance(workflow, dict):
        return ()
    nodes = (node for node in workflow.values() if isinstance(node, dict))
    return tuple(str(node.get("_meta", {}).get("title") or node.get("class_type", "?")) for node in nodes)

"""The workflows that a worker offers by name, as a person chooses among them."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from headrace.library.names import Library
from headrace.library.store import Kept
from headrace.server.specs import Specs
from stream.errors import HeadraceError, InvalidInput, InvalidWorkflow
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

PIPELINE_TITLES = {
    "headrace.diffusion.processor:StreamDiffusionProcessor": (
        "Real-time diffusion",
        "Paints every frame anew as the prompt says.",
    ),
}
"""Title and description of a pipeline by its class."""

MAX_LISTED = 500
"""Nodes of a workflow that are listed by name."""
LOOK_AGAIN = 10.0
"""Seconds for which what is wrong with a workflow is believed: a missing file may come."""
MAX_STEPS = 40
"""Of a kept workflow in the list of all."""


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """``steps`` are the titles of its nodes in the file's order; ``problem`` says why it cannot run here.
    ``kept``: it is the operator's own, else it is bundled; ``etag``, ``bytes``, ``modified``: of its file.
    """

    name: str
    title: str
    description: str
    steps: tuple[str, ...]
    problem: str | None = None
    kept: bool = False
    etag: str | None = None
    bytes: int | None = None
    modified: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "steps": list(self.steps)}


def processor_entry(target: str) -> CatalogueEntry:
    """A class, ``package.module:Class``, as one more thing to choose."""
    if target in PIPELINE_TITLES:
        return CatalogueEntry(target, *PIPELINE_TITLES[target], ())
    return CatalogueEntry(target, target.rpartition(":")[2], f"Your processor, {target}.", (target,))


@dataclass(frozen=True, slots=True)
class _Looked:
    mark: tuple[str | None, int]
    entry: CatalogueEntry
    until: float


class Catalogue:
    """The workflows that are offered by name. Blocks on the disk; for any thread."""

    def __init__(self, specs: Specs, names: Library) -> None:
        self._specs = specs
        self._names = names
        self._known: dict[str, _Looked] = {}

    def entries(self) -> tuple[CatalogueEntry, ...]:
        """Every kept workflow, then every bundled one, each in alphabetical order."""
        kept = [about for about in self._names.store.list() if not self._names.is_bundled(about.name)]
        found = [self._looked(about.name, about) for about in kept]
        found += [self._looked(name, None) for name in self._names.bundled]
        self._known = {each.entry.name: each for each in found}
        return tuple(each.entry for each in found)

    def _looked(self, name: str, kept: Kept | None) -> _Looked:
        mark = (kept.etag if kept is not None else None, self._specs.definitions.version)
        known, now = self._known.get(name), time.monotonic()
        if known is not None and known.mark == mark and (known.entry.problem is None or now < known.until):
            return known
        return _Looked(mark, self._look(name, kept), now + LOOK_AGAIN)

    def _look(self, name: str, kept: Kept | None) -> CatalogueEntry:
        problem, steps = None, tuple[str, ...]()
        try:
            data = self._names.load(name)
            steps = steps_of(data)
            self._specs.of_workflow(data)
        except HeadraceError as error:
            problem = error.message
        _, description = ABOUT.get(name, ("", " → ".join(steps[:MAX_STEPS])))
        if kept is None:
            return CatalogueEntry(name, title_of(name), description, steps, problem)
        about = (True, kept.etag, kept.bytes, kept.modified)
        return CatalogueEntry(name, name, description, steps[:MAX_STEPS], problem, *about)


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
    if isinstance(workflow.get("prompt"), dict) and "class_type" not in workflow["prompt"]:
        workflow = workflow["prompt"]
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
    """The titles of the nodes of a workflow, in the file's order."""
    return tuple(node["title"] for node in _nodes_of(workflow)) if isinstance(workflow, dict) else ()

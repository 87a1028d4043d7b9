"""The node classes that the workflows of a worker may name: its definitions, wherever they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.nodes import builtin
from workflows.definitions import Definitions, NodeDefinition
from workflows.graph import Graph
from workflows.problems import Problem

BUILTIN = "builtin"
ELSEWHERE = "object info"


class WorkerDefinitions(Mapping[str, NodeDefinition]):
    """The definitions of a worker: those of the built-in nodes (``registry``), and those that others `put`
    over them, by where they come from. Of a class that several have, what was put first counts.

    ``input_folder`` is where LoadImage finds its pictures, ``models_folder`` where loaders find files
    (None: that of the environment). ``spec_fields`` is what the engine is told beside
    a workflow, so that it has the same nodes. A class that cannot be read is not in it; `failures` says why.
    """

    def __init__(self, input_folder: Path | None = None, models_folder: Path | None = None) -> None:
        folder = input_folder.resolve() if input_folder is not None else None
        models = models_folder.expanduser().resolve() if models_folder is not None else None
        self.registry = builtin.registry(folder, models)
        given = {"input_folder": folder, "models_folder": models}
        self.spec_fields: dict[str, Any] = {n: str(p) for n, p in given.items() if p is not None}
        self._others: dict[str, Definitions] = {}
        self.choose: Callable[[Any], str | None] = lambda data: None
        """Names the engine that a workflow's nodes need where that is not ours, by an origin of `apart`."""
        self.apart: set[str] = set()
        """Origins whose classes run in an engine of their own and never beside those of ours."""
        self.version = 0
        """Grows with every `put` and `drop`."""
        self.elsewhere: Definitions = {}
        """Classes that are known, but that no engine here has: of a ComfyUI's ``/object_info``."""

    def put(self, origin: str, definitions: Definitions) -> None:
        """Have the definitions of ``origin`` (``comfyui``, ``custom nodes``), in place of any it had."""
        self._others[origin] = definitions
        self.version += 1

    def drop(self, origin: str) -> None:
        """Forget those of ``origin``."""
        self._others.pop(origin, None)
        self.version += 1

    def fields_for(self, data: Any) -> dict[str, Any]:
        """What the engine is told beside the workflow ``data``: of which nodes it is made, by `choose`."""
        return {"engine": chosen} if (chosen := self.choose(data)) is not None else self.spec_fields

    def of(self, spec: Mapping[str, Any]) -> Mapping[str, NodeDefinition]:
        """The definitions that hold for a workflow's spec: those of the engine that it names, or else those
        of ours; and those that no engine has, to be refused by `only_elsewhere`."""
        return Layers([*self._of(spec), (ELSEWHERE, self.elsewhere)])

    def ours(self) -> Mapping[str, NodeDefinition]:
        """The definitions of our own engine."""
        return Layers(self._of({}))

    def _of(self, spec: Mapping[str, Any]) -> list[tuple[str, Definitions]]:
        chosen = spec.get("engine")
        apart = {chosen} if chosen is not None else set(self.apart)
        return [(origin, known) for origin, known in self._layers() if (origin in apart) == bool(chosen)]

    def only_elsewhere(self, graph: Graph, spec: Mapping[str, Any]) -> Iterator[Problem]:
        """What to say of nodes whose classes the engine of a workflow's spec does not have."""
        if not self.elsewhere:
            return
        known = self.of(spec)
        for node in graph:
            if node.class_type in known and known[node.class_type] is self.elsewhere.get(node.class_type):
                yield node.problem(
                    "elsewhere",
                    f"{node.class_type} is known by the object info alone; an engine that has it is started "
                    "with --comfyui DIR",
                )

    def refresh(self) -> None:
        """Read anew what may have changed on the disk: pictures and files of models."""
        builtin.refresh(self.registry)

    def origin_of(self, class_type: str) -> str | None:
        """Where the definition of a class comes from: `BUILTIN`, a name that was `put`, None without one."""
        for origin, definitions in self._layers():
            if class_type in definitions:
                return origin
        return None

    @property
    def failures(self) -> dict[str, str]:
        """Classes that cannot be read, and why."""
        return self._all().failures

    def __getitem__(self, class_type: str) -> NodeDefinition:
        return self._all()[class_type]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> Layers:
        return Layers(list(self._layers()))

    def _layers(self) -> Iterator[tuple[str, Definitions]]:
        yield from self._others.items()
        yield BUILTIN, self.registry.definitions


class Layers(Mapping[str, NodeDefinition]):
    """Definitions by where they come from, the first that has a class counting."""

    def __init__(self, layers: Sequence[tuple[str, Definitions]]) -> None:
        self._layers = layers

    @property
    def failures(self) -> dict[str, str]:
        """Classes that cannot be read, and why."""
        found: dict[str, str] = {}
        for _, definitions in self._layers:
            for class_type, why in getattr(definitions, "failures", {}).items():
                found.setdefault(class_type, why)
        return found

    def __getitem__(self, class_type: str) -> NodeDefinition:
        for _, definitions in self._layers:
            found = definitions.get(class_type)
            if found is not None:
                return found
        raise KeyError(class_type)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for _, definitions in self._layers for name in definitions))

    def __len__(self) -> int:
        return sum(1 for _ in self)

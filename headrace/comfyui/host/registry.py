"""The installation's node classes as a registry that trusts no literal with the file system."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

from headrace.comfyui.host import untouched
from headrace.comfyui.host.paths import chooses_file, may_be_computed, trouble_with
from workflows.definitions import NodeDefinition
from workflows.graph import Graph, Link, Node
from workflows.nodes import stream
from workflows.problems import Problem
from workflows.registry import NodeRegistry


class ComfyRegistry(NodeRegistry):
    """``roots``: folders that absolute paths may lead into. ``guard``: the engine's one execution lock.

    ``classes``: patterns of the classes that may be used, none: all; our stream nodes always may.
    """

    def __init__(
        self,
        *,
        roots: Sequence[str],
        classes: Sequence[str],
        network: bool,
        lock: contextlib.AbstractContextManager[Any],
    ) -> None:
        super().__init__()
        self._roots = tuple(roots)
        self._allowed = tuple(classes)
        self._network = network
        self._lock = lock

    def forget_lists(self) -> None:
        """Ask the classes anew when they are next needed: their lists of files may have grown."""
        for name in self:
            if name not in stream.NODE_CLASS_MAPPINGS:
                self.definitions.forget(name)

    def read_definition(self, class_type: str) -> NodeDefinition:
        with untouched.looking():
            return super().read_definition(class_type)

    def guard(self) -> contextlib.AbstractContextManager[Any]:
        return self._lock

    def refusals(self, graph: Graph, node: Node) -> Iterable[Problem]:
        if node.class_type in stream.NODE_CLASS_MAPPINGS:
            return
        if self._allowed and not any(fnmatch.fnmatchcase(node.class_type, one) for one in self._allowed):
            allowed = ", ".join(self._allowed)
            yield node.problem(
                "class_not_allowed", f"the class {node.class_type} may not be used; allowed are: {allowed}"
            )
            return
        declared = self.definitions[node.class_type].inputs
        for name, value in node.inputs.items():
            options = declared[name].options if name in declared else {}
            named = chooses_file(name, options)
            if isinstance(value, Link):
                if named and not may_be_computed(name) and _is_text(declared.get(name)):
                    yield node.problem(
                        "not_confined", f"{name} chooses a file: give it here, not by a link", name
                    )
                continue
            for text in _texts(value):
                trouble = trouble_with(text, self._roots, network=self._network, named=named)
                if trouble is not None:
                    yield node.problem("not_confined", f"{name} {trouble}, got {text[:80]!r}", name)


def _is_text(declared: Any) -> bool:
    return declared is None or declared.type in ("STRING", "COMBO")


def _texts(value: Any) -> Iterable[str]:
    """Every text in a literal, which may be a list or an object."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)

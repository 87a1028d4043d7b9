"""Node classes by name: the built-in ones and those of node packs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from workflows.definitions import BadDefinition, NodeDefinition
from workflows.graph import Graph, Node
from workflows.nodes import audio, batch, canny, canvas, image, load_image, mask, pretrained, quantize, stream
from workflows.problems import Problem

log = logging.getLogger(__name__)

NodeClass = Any
"""A class that follows ComfyUI's public node protocol."""


class NodeRegistry:
    """Node classes and their definitions, each read once when first asked for.

    The stream nodes are always there and always ours, because the plan binds the frame in their place. Of
    classes with the same name the one added last counts.
    """

    def __init__(self) -> None:
        self._classes: dict[str, NodeClass] = {}
        self._display_names: dict[str, str] = {}
        self._plain: set[str] = set()
        self.definitions = RegistryDefinitions(self)
        self.add(stream.NODE_CLASS_MAPPINGS, plain=True)

    @classmethod
    def builtin(cls, input_folder: Path | None = None) -> NodeRegistry:
        """The nodes that come with Headrace; ``input_folder`` is where `LoadImage` finds its pictures."""
        registry = cls()
        for module in (image, canvas, mask, batch, quantize, canny, audio):
            registry.add(module.NODE_CLASS_MAPPINGS, plain=True)
        registry.add({"LoadImage": load_image.bound_to(input_folder)}, plain=True)
        registry.add(pretrained.NODE_CLASS_MAPPINGS)
        return registry

    @classmethod
    def from_mappings(cls, *mappings: Mapping[str, NodeClass]) -> NodeRegistry:
        """A registry of node packs alone, from their ``NODE_CLASS_MAPPINGS``."""
        registry = cls()
        for mapping in mappings:
            registry.add(mapping)
        return registry

    def add(
        self,
        mapping: Mapping[str, NodeClass],
        display_names: Mapping[str, str] | None = None,
        *,
        plain: bool = False,
    ) -> NodeRegistry:
        """Add the ``NODE_CLASS_MAPPINGS`` (and ``NODE_DISPLAY_NAME_MAPPINGS``) of a node pack.

        ``plain``: they only compute with pixels, and make nothing at first use (see `is_plain`).
        """
        for class_type, node_class in mapping.items():
            if class_type in stream.NODE_CLASS_MAPPINGS and class_type in self._classes:
                continue
            self._classes[class_type] = node_class
            (self._plain.add if plain else self._plain.discard)(class_type)
            self.definitions.forget(class_type)
        self._display_names.update(display_names or {})
        return self

    def __contains__(self, class_type: object) -> bool:
        return class_type in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def node_class(self, class_type: str) -> NodeClass:
        """The class; KeyError when there is none of that name."""
        return self._classes[class_type]

    def is_plain(self, class_type: str) -> bool:
        """Whether the class is known to have no network in it, nor anything else that the first frames of a
        size would have to pay for."""
        return class_type in self._plain

    def read_definition(self, class_type: str) -> NodeDefinition:
        """Ask the class. Raises `BadDefinition`, or KeyError when there is no such class."""
        return NodeDefinition.from_class(
            class_type, self._classes[class_type], self._display_names.get(class_type)
        )

    def refusals(self, graph: Graph, node: Node) -> Iterable[Problem]:
        """What there is against running ``node``, beside what its class says: for registries of code that is
        not to be trusted with every literal. Asked before any call to the class."""
        return ()

    def guard(self) -> contextlib.AbstractContextManager[Any]:
        """Held during each run of a node outside the frame's path, where classes share state that runs in
        several threads at once would break. Classes are asked (IS_CHANGED, VALIDATE_INPUTS) without it."""
        return contextlib.nullcontext()

    def object_info(self) -> dict[str, Any]:
        """Every definition as ComfyUI's ``/object_info`` gives it, without classes that cannot be read."""
        return {
            class_type: self.definitions[class_type].to_object_info()
            for class_type in self
            if class_type in self.definitions
        }


class RegistryDefinitions(Mapping[str, NodeDefinition]):
    """The definitions of a registry. A class that cannot be read is not in it, and `failures` says why."""

    def __init__(self, registry: NodeRegistry) -> None:
        self._registry = registry
        self._known: dict[str, NodeDefinition] = {}
        self.failures: dict[str, str] = {}

    def __getitem__(self, class_type: str) -> NodeDefinition:
        definition = self._known.get(class_type)
        if definition is None:
            if class_type in self.failures:
                raise KeyError(class_type)
            try:
                definition = self._registry.read_definition(class_type)
            except BadDefinition as error:
                self.failures[class_type] = str(error)
                log.warning("node class %s cannot be used: %s", class_type, error)
                raise KeyError(class_type) from error
            self._known[class_type] = definition
        return definition

    def __iter__(self) -> Iterator[str]:
        return iter(self._registry)

    def __len__(self) -> int:
        return len(self._registry)

    def forget(self, class_type: str) -> None:
        """Read the class again when it is next asked for (its file lists may have changed)."""
        self._known.pop(class_type, None)
        self.failures.pop(class_type, None)


class ReadDefinitions(dict[str, NodeDefinition]):
    """Definitions that were read from data. `failures` says of classes why they could not be."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: dict[str, str] = {}


def definitions_from_object_info(data: Mapping[str, Any]) -> ReadDefinitions:
    """Definitions from the answer of ComfyUI's ``/object_info``, with our stream nodes in them.

    Entries that cannot be read are left out with a warning.
    """
    definitions = ReadDefinitions()
    for class_type, info in data.items():
        try:
            if not isinstance(info, Mapping):
                raise BadDefinition(f"{type(info).__name__}, not an object")
            definitions[class_type] = NodeDefinition.from_object_info(class_type, info)
        except BadDefinition as error:
            definitions.failures[class_type] = str(error)
            log.warning("object info of %s cannot be read: %s", class_type, error)
    definitions.update(NodeRegistry().definitions)
    return definitions

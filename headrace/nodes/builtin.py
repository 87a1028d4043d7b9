"""The nodes of Headrace's own engine: those of `workflows`, and those that need models.

Importing and declaring needs no torch, so that the worker checks workflows by the same classes.
"""

from __future__ import annotations

from pathlib import Path

from headrace.models.roots import Roots
from headrace.nodes import control, inpainting, latents, loaders, sampling, streaming, text_nodes, upscaling
from headrace.nodes.files import ModelFiles
from workflows.registry import NodeRegistry

_MODULES = (sampling, text_nodes, latents, inpainting, control, upscaling)


def registry(input_folder: Path | None = None, models_folder: Path | None = None) -> NodeRegistry:
    """All built-in nodes. ``input_folder`` is LoadImage's; ``models_folder`` as in `Roots`."""
    made = NodeRegistry.builtin(input_folder)
    files = ModelFiles(Roots.from_environment(models_folder))
    made.add(loaders.bound_to(files))
    made.add(streaming.bound_to(files))
    for module in _MODULES:
        made.add(module.NODE_CLASS_MAPPINGS)
    return made


def refresh(made: NodeRegistry) -> None:
    """Read anew what may have changed on the disk: the classes that list files."""
    for class_type in made:
        if class_type == "LoadImage" or getattr(made.node_class(class_type), "LISTS_FILES", False):
            made.definitions.forget(class_type)

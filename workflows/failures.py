"""Faults of nodes, told with the node, its class and title, and the sizes of what it was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stream.errors import ProcessorError
from workflows.graph import Node
from workflows.protocol import is_interrupt, is_out_of_memory

_MAX_SIZES = 16


def node_failed(
    node: Node, error: BaseException, arguments: Mapping[str, Any] | None = None
) -> ProcessorError:
    """The error that names the node whose code raised ``error`` when it was called with ``arguments``."""
    if isinstance(error, ProcessorError) and error.details:
        return error  # of a node within
    if is_interrupt(error):
        cause = "it was interrupted"
    else:
        cause = f"{type(error).__name__}: {str(error) or 'no message'}"
        if is_out_of_memory(error) and "out of memory" not in cause.lower():
            cause += " (out of memory)"
    problem = node.problem("node_failed", cause)
    found = sizes(arguments or {})
    message = str(problem)
    if found:
        message += " (" + ", ".join(f"{name}: {size}" for name, size in found.items()) + ")"
    details = problem.as_dict()
    if found:
        details["inputs"] = found
    return ProcessorError(message, field=node.id, details=[details])


def sizes(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Sizes of the arguments that have one: shape and type of tensors, number of what lists hold."""
    found: dict[str, str] = {}
    for name, value in arguments.items():
        if len(found) == _MAX_SIZES:
            break
        told = _size(value)
        if told is not None:
            found[name] = told
    return found


def _size(value: Any) -> str | None:
    if isinstance(value, Mapping):
        # A LATENT or an AUDIO.
        value = next((value[key] for key in ("samples", "waveform") if key in value), None)
    if isinstance(value, list) and value and _shape(value[0]) is not None:
        return f"{len(value)} of {_size(value[0])}"
    shape = _shape(value)
    if shape is None:
        return None
    kind = str(getattr(value, "dtype", "")).replace("torch.", "")
    return f"{' x '.join(map(str, shape)) or 'a number'} {kind}".rstrip()


def _shape(value: Any) -> tuple[int, ...] | None:
    shape = getattr(value, "shape", None)
    return tuple(shape) if isinstance(shape, tuple) else None

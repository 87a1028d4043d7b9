"""What ComfyUI's node protocol calls by name, recognised whoever made it.

Node packs bring ComfyUI's own classes (an execution blocker, the output object of a schema class), which are
not to be imported here; they are known by their names and attributes.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MethodType
from typing import Any

_MAX_KINDS = 4096

TRIAL: ContextVar[bool] = ContextVar("trial", default=False)
"""Whether nodes run on made-up pictures: one that remembers frames has to forget these."""


class ExecutionBlocker:
    """An output of which nobody is to use anything: nodes that it reaches do not run, and pass it on.

    ``message`` says why, for people; None where it is nothing to speak of.
    """

    def __init__(self, message: str | None = None) -> None:
        self.message = message


class Kinds(dict[type, bool]):
    """Whether values of a class are execution blockers; looked at once for each class."""

    def __missing__(self, kind: type) -> bool:
        if len(self) >= _MAX_KINDS:
            self.clear()
        self[kind] = found = any(base.__name__ == "ExecutionBlocker" for base in kind.__mro__)
        return found


IS_BLOCKER = Kinds()


def is_blocker(value: Any) -> bool:
    return IS_BLOCKER[value.__class__]


def is_node_output(value: Any) -> bool:
    """Whether this is the output object of a schema class (``io.NodeOutput``)."""
    return hasattr(value, "block_execution") and hasattr(value, "expand") and hasattr(value, "result")


def is_schema_class(node_class: Any) -> bool:
    """Whether the class declares itself by ``define_schema`` (ComfyUI's "V3")."""
    return callable(getattr(node_class, "define_schema", None)) and callable(
        getattr(node_class, "execute", None)
    )


def own_method(node_class: Any, name: str) -> Any:
    """The class method ``name`` that a schema class brings itself, not the placeholder of its base; else
    None."""
    find_base = getattr(node_class, "GET_BASE_CLASS", None)
    base = find_base() if find_base is not None else None
    for owner in node_class.__mro__:
        if owner is base or owner is object:
            return None
        if name in vars(owner):
            return getattr(node_class, name)
    return None


def question(node_class: Any, old_name: str, schema_name: str) -> Callable[..., Any] | None:
    """A class's own VALIDATE_INPUTS or IS_CHANGED, by the name that its kind of class gives it."""
    if is_schema_class(node_class):
        found = own_method(node_class, schema_name)
    else:
        found = getattr(node_class, old_name, None)
    return found if callable(found) else None


class _Hidden:
    """The hidden inputs of a schema class as attributes; what was not asked for is None."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> None:
        return None


def schema_holder(node_class: Any, hidden: Mapping[str, Any]) -> Any:
    """What the methods of a schema class get as their ``cls``: a copy with the hidden inputs, locked.

    ``hidden`` is keyed by what is asked for (UNIQUE_ID, ...). Raises whatever the class raises.
    """
    make = getattr(node_class, "PREPARE_CLASS_CLONE", None)
    if make is not None:
        node_class.VALIDATE_CLASS()
        clone: Any = make(dict(hidden))  # its keys are an enumeration of texts, which equal these
    else:
        clone = type(f"{node_class.__name__}Clone", (node_class,), {})
        clone.hidden = _Hidden({asked.lower(): value for asked, value in hidden.items()})
    return _locked(clone)


def _locked(node_class: Any) -> Any:
    """The class with attributes that cannot be set, so that no call leaves anything behind for the next."""

    def refuse(owner: Any, name: str, value: Any) -> None:
        raise AttributeError(f"{owner.__name__}.{name} cannot be set: schema classes keep no state")

    metaclass = type("Locked", (type(node_class),), {"__setattr__": refuse})
    return metaclass(node_class.__name__, (node_class,), {"__module__": node_class.__module__})


def schema_call(node_class: Any, holder: Any, name: str) -> Callable[..., Any]:
    """Class method ``name`` bound to ``holder``."""
    method = getattr(node_class, name)
    return MethodType(getattr(method, "__func__", method), holder)


def is_async(call: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(call)


def is_interrupt(error: BaseException) -> bool:
    """Whether this is how ComfyUI's nodes say that the run was interrupted."""
    return any(base.__name__ == "InterruptProcessingException" for base in type(error).__mro__)


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(
        base.__name__ in ("OutOfMemoryError", "OOM_EXCEPTION") for base in type(error).__mro__
    )


def name_expansions(node_id: str, call: int) -> None:
    """Let ComfyUI's GraphBuilder, where there is one, name what node ``node_id`` expands into."""
    module = sys.modules.get("comfy_execution.graph_utils")
    builder = getattr(module, "GraphBuilder", None)
    if builder is not None:
        builder.set_default_prefix(node_id, call, 0)


def is_link(value: Any) -> bool:
    """Whether a value in a graph that a node expands into is a link."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
    )


class DynamicPrompt:
    """The graph as a node that asks for DYNPROMPT sees it, with what nodes have expanded into (API
    format)."""

    def __init__(self, original: Mapping[str, Any]) -> None:
        self.original_prompt = original
        self.ephemeral_prompt: dict[str, Any] = {}
        self.ephemeral_parents: dict[str, str] = {}
        self.ephemeral_display: dict[str, str] = {}

    def get_node(self, node_id: str) -> Any:
        """The entry of a node; KeyError without it."""
        found = self.ephemeral_prompt.get(node_id)
        return self.original_prompt[node_id] if found is None else found

    def has_node(self, node_id: str) -> bool:
        return node_id in self.ephemeral_prompt or node_id in self.original_prompt

    def add_ephemeral_node(self, node_id: str, node_info: Any, parent_id: str, display_id: str) -> None:
        self.ephemeral_prompt[node_id] = node_info
        self.ephemeral_parents[node_id] = parent_id
        self.ephemeral_display[node_id] = display_id

    def get_real_node_id(self, node_id: str) -> str:
        while node_id in self.ephemeral_parents:
            node_id = self.ephemeral_parents[node_id]
        return node_id

    def get_parent_node_id(self, node_id: str) -> str | None:
        return self.ephemeral_parents.get(node_id)

    def get_display_node_id(self, node_id: str) -> str:
        while node_id in self.ephemeral_display:
            node_id = self.ephemeral_display[node_id]
        return node_id

    def all_node_ids(self) -> set[str]:
        return {*self.original_prompt, *self.ephemeral_prompt}

    def get_original_prompt(self) -> Mapping[str, Any]:
        return self.original_prompt

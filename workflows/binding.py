"""Nodes of a graph bound to their classes: an instance for each node, and the arguments of its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from workflows import stream_rules
from workflows.definitions import InputDefinition, NodeDefinition
from workflows.dynamic import inputs_of
from workflows.failures import node_failed
from workflows.graph import Graph, Link, Node
from workflows.protocol import (
    DynamicPrompt,
    is_async,
    is_schema_class,
    own_method,
    schema_call,
    schema_holder,
)
from workflows.registry import NodeRegistry

# The plan itself does what these do.
UNCALLED = frozenset(
    {stream_rules.LOAD, stream_rules.SAVE, stream_rules.LOAD_AUDIO, stream_rules.SAVE_AUDIO}
    | {stream_rules.PRIMARY, *stream_rules.VIDEO_OUTPUTS}
)
SOURCES = frozenset({stream_rules.LOAD, stream_rules.LOAD_AUDIO, stream_rules.PRIMARY})

# Hidden inputs that ComfyUI hands over as None when a prompt comes without an editor or an account.
_NOT_HERE = frozenset({"EXTRA_PNGINFO", "AUTH_TOKEN_COMFY_ORG", "API_KEY_COMFY_ORG"})


class _Cell:
    """Holds the instance of a node, made once for all graphs that the node is in."""

    instance: Any = None
    made = False


class BoundNode:
    """A node with the class that runs it. Its instance is made when it is first called.

    ``outputs`` is how many values a call gives. Hidden inputs are those of ``prompt``.
    """

    def __init__(self, node: Node, registry: NodeRegistry, prompt: DynamicPrompt) -> None:
        self.node = node
        self.node_class = registry.node_class(node.class_type)
        self.definition: NodeDefinition = registry.definitions[node.class_type]
        self.is_schema = is_schema_class(self.node_class)
        self.is_text = node.class_type == stream_rules.SAVE_TEXT
        self.outputs = max(len(self.definition.outputs), int(self.is_text))
        self.lists_out = tuple(output.is_list for output in self.definition.outputs)
        self.links = link_arguments(node, self.definition)
        """The arguments that come from other nodes."""
        self.lazy = lazy_links(node, self.definition) if self._has_lazy_check() else frozenset()
        """Linked inputs that are only evaluated when the node asks for them."""
        self.guard = registry.guard
        self.prompt = prompt
        self._cell = _Cell()
        self._holder: Any = None

    def under(self, node: Node, prompt: DynamicPrompt) -> BoundNode:
        """The same instance for the node as it is in another graph."""
        other = BoundNode.__new__(BoundNode)
        other.__dict__.update(self.__dict__)
        other.node, other.prompt = node, prompt
        other.links = link_arguments(node, other.definition)
        other.lazy = lazy_links(node, other.definition) if other._has_lazy_check() else frozenset()
        if self._holder is not None and self._sees_the_prompt():
            other._holder = schema_holder(self.node_class, other._asked())
        return other

    @property
    def call(self) -> Callable[..., Any]:
        """The method that runs the node. Raises `ProcessorError` when the class cannot be instantiated."""
        self._make()
        if self.is_schema:
            # Its FUNCTION only gives the result of this another form.
            name = self.definition.function
            return self._of_schema("execute" if name.startswith("EXECUTE_NORMALIZED") else name)
        found: Callable[..., Any] = getattr(self._cell.instance, self.definition.function)
        return found

    @property
    def is_async(self) -> bool:
        owner = self.node_class
        normalised = self.definition.function.startswith("EXECUTE_NORMALIZED")
        name = "execute" if self.is_schema and normalised else self.definition.function
        return is_async(getattr(owner, name))

    @property
    def lazy_check(self) -> Callable[..., Any]:
        """The method that says which lazy inputs are wanted, of a node that has some."""
        self._make()
        if self.is_schema:
            return self._of_schema("check_lazy_status")
        found: Callable[..., Any] = self._cell.instance.check_lazy_status
        return found

    def literals(self) -> dict[str, Any]:
        """The arguments that do not come from other nodes: literals, raw links and hidden inputs."""
        node, definition = self.node, self.definition
        known = inputs_of(definition, node.inputs)
        arguments: dict[str, Any] = {}
        for name, value in node.inputs.items():
            if not takes(definition, known, name):
                continue
            if not isinstance(value, Link):
                arguments[name] = value
            elif is_raw(known.get(name)):
                arguments[name] = [value.node_id, value.output]
        if not self.is_schema:
            arguments |= {
                name: _hidden(asked, node, self.prompt)
                for name, asked in definition.hidden.items()
                if _is_known(asked)
            }
        return arguments

    @property
    def is_asked(self) -> bool:
        """Whether the class is asked about its inputs (see `workflows.questions`), which may take long."""
        definition = self.definition
        return definition.may_change or definition.validates_all or bool(definition.validates)

    @property
    def has_raw_links(self) -> bool:
        known = inputs_of(self.definition, self.node.inputs)
        return any(is_raw(known.get(name)) for name, _ in self.node.links())

    def answer(self, name: str) -> Callable[..., Any]:
        """A class method by which the class is asked something, with the hidden inputs of a schema class."""
        if not self.is_schema:
            return getattr(self.node_class, name)  # type: ignore[no-any-return]
        return schema_call(self.node_class, schema_holder(self.node_class, self._asked()), name)

    def _has_lazy_check(self) -> bool:
        if self.is_schema:
            return own_method(self.node_class, "check_lazy_status") is not None
        return callable(getattr(self.node_class, "check_lazy_status", None))

    def _make(self) -> None:
        if self._holder is not None or self._cell.made:
            return
        try:
            if self.is_schema:
                self._holder = schema_holder(self.node_class, self._asked())
            else:
                self._cell.instance = self.node_class()
                self._cell.made = True
        except (Exception, SystemExit) as error:
            raise node_failed(self.node, error) from error

    def _of_schema(self, name: str) -> Callable[..., Any]:
        return schema_call(self.node_class, self._holder, name)

    def _asked(self) -> dict[str, Any]:
        asked = self.definition.hidden.values()
        return {kind: _hidden(kind, self.node, self.prompt) for kind in asked if _is_known(kind)}

    def _sees_the_prompt(self) -> bool:
        return bool({"PROMPT", "DYNPROMPT"} & set(self.definition.hidden.values()))


def _is_known(asked: str) -> bool:
    return asked in ("UNIQUE_ID", "PROMPT", "DYNPROMPT") or asked in _NOT_HERE


def _hidden(asked: str, node: Node, prompt: DynamicPrompt) -> Any:
    if asked == "UNIQUE_ID":
        return node.id
    if asked == "PROMPT":
        return prompt.get_original_prompt()
    return prompt if asked == "DYNPROMPT" else None


def bind(graph: Graph, order: Iterable[str], registry: NodeRegistry) -> dict[str, BoundNode]:
    """The nodes of ``order`` bound to their classes, but for those that the plan itself stands for."""
    prompt = DynamicPrompt(graph.to_api())
    return {
        node_id: BoundNode(graph.nodes[node_id], registry, prompt)
        for node_id in order
        if graph.nodes[node_id].class_type not in UNCALLED
    }


def rebind(bound: Mapping[str, BoundNode], graph: Graph) -> dict[str, BoundNode]:
    """The same instances for the nodes of a graph with other literals."""
    prompt = DynamicPrompt(graph.to_api())
    return {node_id: item.under(graph.nodes[node_id], prompt) for node_id, item in bound.items()}


def link_arguments(node: Node, definition: NodeDefinition) -> list[tuple[str, Link]]:
    """The arguments of a node that come from other nodes."""
    known = inputs_of(definition, node.inputs)
    return [
        (name, link)
        for name, link in node.links()
        if takes(definition, known, name) and not is_raw(known.get(name))
    ]


def lazy_links(node: Node, definition: NodeDefinition) -> frozenset[str]:
    """Linked inputs that are only evaluated when the node asks for them."""
    known = inputs_of(definition, node.inputs)
    return frozenset(name for name, _ in link_arguments(node, definition) if is_lazy(known.get(name)))


def takes(definition: NodeDefinition, known: Mapping[str, InputDefinition], name: str) -> bool:
    return name in known or definition.open_inputs


def is_lazy(declared: InputDefinition | None) -> bool:
    return declared is not None and bool(declared.options.get("lazy"))


def is_raw(declared: InputDefinition | None) -> bool:
    """Whether the node wants the link itself (``rawLink``), to build a graph with."""
    return declared is not None and bool(declared.options.get("rawLink"))

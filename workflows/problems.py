"""What is wrong with a workflow, as data and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stream.errors import InvalidWorkflow

MAX_CHOICES = 100


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that keeps a workflow from running.

    ``code`` is for programs and stays the same between releases; ``message`` is for people. ``node_id``,
    ``class_type``, ``title`` and ``input`` say where, as far as there is a place; ``choices`` what the input
    takes (the first `MAX_CHOICES`), where that is a list.
    """

    code: str
    message: str
    node_id: str | None = None
    class_type: str | None = None
    title: str | None = None
    input: str | None = None
    choices: tuple[Any, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON data, without the fields that are not known."""
        fields = ("code", "node_id", "class_type", "title", "input", "message")
        found = {name: getattr(self, name) for name in fields if getattr(self, name) is not None}
        return found if self.choices is None else {**found, "choices": list(self.choices[:MAX_CHOICES])}

    def __str__(self) -> str:
        if self.node_id is None:
            return self.message
        place = node_label(self.node_id, self.class_type, self.title)
        if self.input is not None:
            place += f", input {self.input}"
        return f"{place}: {self.message}"


def node_label(node_id: str, class_type: str | None, title: str | None) -> str:
    """A node as people know it: ``node 5 "Edges" (Canny)``; the title only where it says something new."""
    label = f"node {node_id}"
    if title and title != class_type:
        label += f' "{title}"'
    if class_type:
        label += f" ({class_type})"
    return label


def invalid_workflow(problems: Sequence[Problem]) -> InvalidWorkflow:
    """The error that carries all of ``problems``: as lines in its message, as data in its details."""
    lines = [str(problem) for problem in problems]
    if len(lines) == 1:
        message = lines[0]
    else:
        message = "\n- ".join((f"the workflow has {len(lines)} problems:", *lines))
    return InvalidWorkflow(message, field="workflow", details=[problem.as_dict() for problem in problems])

"""What ``headrace check`` found, as a person wants to read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from headrace.checking.examined import Examined
from workflows import stream_rules
from workflows.definitions import InputDefinition
from workflows.parameters import Parameter
from workflows.problems import Problem, node_label

_KINDS = {"INT": "whole number", "FLOAT": "number", "STRING": "text", "BOOLEAN": "true or false"}
_COSTS = {
    "frame": "next frame",
    "recompute": "recomputes",
    "reload": "loads anew",
}
_SHOWN_CHOICES = 5
_SHOWN_VALUE = 40
_MAX_LISTED = 40


def print_report(console: Console, name: str, found: Sequence[Examined]) -> None:
    """Each workflow of a file, one below the other."""
    for number, one in enumerate(found):
        title = _text(name, style="bold")
        if len(found) > 1:
            title.append(f"  workflow {number} of {len(found)} in a row")
        title.append(f"  {one.format}, {_count(len(one.drawn), 'node')}", style="dim")
        console.print(title)
        for part in _parts(one):
            console.print(Padding(part, (0, 0, 0, 2)))
        console.print()


def _parts(one: Examined) -> Iterator[RenderableType]:
    if one.graph:
        yield _facts(one)
    if one.problems:
        yield Text()
        yield Text(_count(len(one.problems), "problem"), style="bold red")
        yield _problems(one.problems)
        if any(problem.code == "missing_file" for problem in one.problems):
            yield Text("models that a file names: headrace models pull --workflow FILE", style="dim")
    elif one.description.parameters.parameters:
        yield Text()
        yield Text("live parameters", style="bold")
        yield _parameters(list(one.description.parameters.parameters.values()))
    if not one.problems:
        yield Text()
        yield Text("it can run", style="bold green")


def _facts(one: Examined) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in _lines(one):
        table.add_row(name, _text(words))
    return table


def _lines(one: Examined) -> Iterator[tuple[str, str]]:
    media = one.description.modalities
    nodes = list(one.graph)
    roles = one.description.roles
    video_in = [node for node in nodes if node.class_type == stream_rules.LOAD]
    audio_in = [node for node in nodes if node.class_type == stream_rules.LOAD_AUDIO]
    if media.video_input and video_in:
        yield "video in", ", ".join(node.label for node in video_in)
    if audio_in:
        yield "sound in", ", ".join(node.label for node in audio_in)
    if not video_in and not audio_in and not one.problems:
        yield "in", "nothing: it makes its own pictures or sound"
    if one.shown is not None:
        yield "video out", one.graph.nodes[one.shown].label
    for kind, class_type in (("sound out", stream_rules.SAVE_AUDIO), ("text out", stream_rules.SAVE_TEXT)):
        labels = [node.label for node in nodes if node.class_type == class_type]
        if labels:
            yield kind, ", ".join(labels)
    if one.problems:
        return
    for role, words in (("frame", "each frame"), ("constant", "once"), ("unused", "not needed")):
        labels = [_short(one, node_id) for node_id, known in roles.items() if known == role]
        if labels:
            yield words, _listed(labels)
    changing = [
        f"{_short(one, node.id)}.{name} ({rule})"
        for node in nodes
        for name, rule in node.after_generate.items()
        if rule != "fixed"
    ]
    if changing:
        yield "by itself", _listed(changing)
    for node_id, reason in one.description.slow.items():
        yield "slow road", f"{one.graph.nodes[node_id].label}: {reason}"
    if one.description.ignored:
        yield "ignored", _listed([f"{node_id}.{name}" for node_id, name in one.description.ignored])


def _short(one: Examined, node_id: str) -> str:
    node = one.graph.nodes[node_id]
    class_type, title = node.origin or (node.class_type, node.title)
    return f"{title or class_type} ({node_id})"


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _MAX_LISTED} more" if len(labels) > _MAX_LISTED else ""
    return ", ".join(labels[:_MAX_LISTED]) + more


def _problems(problems: Iterable[Problem]) -> Table:
    """By node: its name once, below it what is wrong with it."""
    table = Table.grid()
    by_node: dict[str | None, list[Problem]] = {}
    for problem in problems:
        by_node.setdefault(problem.node_id, []).append(problem)
    for node_id, found in by_node.items():
        if node_id is not None:
            table.add_row(_text(node_label(node_id, found[0].class_type, found[0].title), style="bold"))
        for problem in found:
            line = Text()
            if problem.input is not None:
                line.append_text(_text(f"{problem.input}: ", style="cyan"))
            line.append_text(_text(problem.message))
            table.add_row(Padding(line, (0, 0, 0, 2 if node_id is not None else 0)))
    return table


def _parameters(parameters: Sequence[Parameter]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("name", "node", "value", "takes", "default", "a change"):
        table.add_column(name, overflow="fold")
    for parameter in parameters:
        declared = parameter.definition
        default = None if declared is None else declared.default
        table.add_row(
            _text(parameter.key, style="cyan"),
            _text(parameter.title),
            _text(_value(parameter.value)),
            _text("anything" if declared is None else _takes(declared)),
            _text("" if default is None or default == parameter.value else _value(default)),
            Text(_COSTS.get(parameter.cost, parameter.cost)),
        )
    return table


def _takes(declared: InputDefinition) -> str:
    """Type and range in words: ``number, 0 to 1 by 0.01``."""
    if declared.choices is not None:
        shown = [_value(choice) for choice in declared.choices[:_SHOWN_CHOICES]]
        rest = len(declared.choices) - len(shown)
        return "one of " + ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
    words = _KINDS.get(declared.type, declared.type)
    low, high = declared.minimum, declared.maximum
    if low is not None and high is not None:
        words += f", {_number(low)} to {_number(high)}"
    elif low is not None:
        words += f", from {_number(low)}"
    elif high is not None:
        words += f", to {_number(high)}"
    return words + (f" by {_number(declared.step)}" if declared.step is not None else "")


def _number(value: float) -> str:
    if isinstance(value, int):
        exact = value.bit_length() - 1
        return str(value) if abs(value) < 1 << 32 else f"2^{exact if value == 1 << exact else exact + 1}"
    return f"{value:g}"


def _value(value: object) -> str:
    text = value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_VALUE else text[: _SHOWN_VALUE - 1] + "…"


def _text(words: str, style: str = "") -> Text:
    """Words out of a file, which must not steer the terminal."""
    return Text(
        "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in words), style=style
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

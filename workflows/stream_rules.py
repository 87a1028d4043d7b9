"""Where the stream enters and leaves a graph: ComfyStream's conversion rules, without their ambiguities.

`convert` gives the same graph as ComfyStream wherever that gives a sensible one, and refuses what it refuses
with the same five texts. Three kinds of graph that it accepts, though it cannot know which picture is the
stream, are refused with the node ids; a title that contains "input", or an explicit choice, resolves them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from workflows.graph import Graph, Node
from workflows.problems import Problem

LOAD = "LoadTensor"
SAVE = "SaveTensor"
LOAD_AUDIO = "LoadAudioTensor"
SAVE_AUDIO = "SaveAudioTensor"
SAVE_TEXT = "SaveTextTensor"
PRIMARY = "PrimaryInputLoadImage"
REFERENCE = "LoadImage"

VIDEO_INPUTS = frozenset({LOAD, PRIMARY, REFERENCE})
VIDEO_OUTPUTS = frozenset({SAVE, "PreviewImage", "SaveImage"})
OUTPUTS = VIDEO_OUTPUTS | {SAVE_AUDIO, SAVE_TEXT}
# Of several pictures that leave a graph, the one that is meant for others, not for the editor.
_OUTPUT_RANK = {SAVE: 0, "SaveImage": 1, "PreviewImage": 2}

_MAX_INPUTS = 2
_MAX_OUTPUTS = 3


@dataclass(frozen=True, slots=True)
class Modalities:
    """Which media a workflow takes and gives."""

    video_input: bool = False
    video_output: bool = False
    audio_input: bool = False
    audio_output: bool = False
    text_output: bool = False

    def as_dict(self) -> dict[str, dict[str, bool]]:
        """In ComfyStream's form: medium to ``input`` and ``output``."""
        return {
            "video": {"input": self.video_input, "output": self.video_output},
            "audio": {"input": self.audio_input, "output": self.audio_output},
            "text": {"input": False, "output": self.text_output},
        }


def modalities(graphs: Iterable[Graph]) -> Modalities:
    """What any of ``graphs`` takes and gives, converted or not."""
    classes = {node.class_type for graph in graphs for node in graph}
    return Modalities(
        video_input=bool(classes & VIDEO_INPUTS),
        video_output=bool(classes & VIDEO_OUTPUTS),
        audio_input=LOAD_AUDIO in classes,
        audio_output=SAVE_AUDIO in classes,
        text_output=SAVE_TEXT in classes,
    )


def frame_sources(graph: Graph) -> set[str]:
    """The nodes that give something else for each frame, as far as the graph alone tells: where the stream
    comes in, and where a literal is given a new value after each run."""
    return {
        node.id
        for node in graph
        if node.class_type in (LOAD, LOAD_AUDIO, PRIMARY) or set(node.after_generate.values()) - {"fixed"}
    }


def convert(
    graph: Graph, input_node: str | None = None, *, generates: bool = False
) -> tuple[Graph, list[Problem]]:
    """Put the stream nodes in place of those that the editor uses.

    ``input_node`` is the id of the node that the stream replaces, where the graph leaves that open.
    ``generates`` says that something in the graph changes by itself, so that it may do without input. Ids of
    nodes stay, so links do. With problems, every possible input is replaced: the rest can still be checked.
    """
    of_class: dict[str, list[Node]] = {}
    for node in graph:
        of_class.setdefault(node.class_type, []).append(node)
    primaries, references = of_class.get(PRIMARY, []), of_class.get(REFERENCE, [])
    marked, problems = _marked_input(of_class, input_node)
    problems += _count_problems(of_class, marked, generates)
    if problems or (not primaries and not marked and len(references) == 1):
        marked = references
    changed = {node.id: _as_load_tensor(node) for node in (*primaries, *marked)}
    for class_type in VIDEO_OUTPUTS - {SAVE}:
        for node in of_class.get(class_type, ()):
            changed[node.id] = replace(node, class_type=SAVE, title=SAVE, origin=(class_type, node.title))
    return graph.with_nodes(changed), problems


def _as_load_tensor(node: Node) -> Node:
    if node.class_type == LOAD:
        return node
    return Node(node.id, LOAD, LOAD, MappingProxyType({}), origin=(node.class_type, node.title))


def _count_problems(
    of_class: dict[str, list[Node]], marked: Sequence[Node], generates: bool
) -> list[Problem]:
    """ComfyStream's checks in its order; of those for too many, the first that fails is told, as there."""
    primaries, references = of_class.get(PRIMARY, []), of_class.get(REFERENCE, [])
    inputs = [*references, *of_class.get(LOAD, ()), *of_class.get(LOAD_AUDIO, ())]
    outputs = [node for class_type in sorted(OUTPUTS) for node in of_class.get(class_type, ())]
    if len(primaries) > 1:
        return [Problem("too_many_primary_inputs", f"too many primary inputs in prompt: {_names(primaries)}")]
    if not primaries and not marked and len(inputs) > _MAX_INPUTS:
        return [
            Problem(
                "too_many_inputs",
                f"too many inputs in prompt: {_names(inputs)}; put the word input into the title of "
                "the one that the stream replaces",
            )
        ]
    if len(outputs) > _MAX_OUTPUTS:
        return [Problem("too_many_outputs", f"too many outputs in prompt: {_names(outputs)}")]
    problems: list[Problem] = []
    if not primaries and not inputs and not generates:
        message = (
            f"missing input: no {PRIMARY}, {LOAD}, {REFERENCE} or {LOAD_AUDIO} node, and nothing else that "
            "changes from frame to frame, such as a seed that is not fixed (control after generate)"
        )
        problems.append(Problem("missing_input", message))
    if not outputs:
        problems.append(Problem("missing_output", f"missing output: none of {', '.join(sorted(OUTPUTS))}"))
    return problems


def _marked_input(
    of_class: dict[str, list[Node]], input_node: str | None
) -> tuple[list[Node], list[Problem]]:
    """The node that title or choice make the stream's, and what is ambiguous without one."""
    primaries = of_class.get(PRIMARY, [])
    loaders, references = of_class.get(LOAD, []), of_class.get(REFERENCE, [])
    # Beside a primary input, a LoadImage is a reference picture by definition.
    candidates = [*primaries, *loaders] if primaries else [*loaders, *references]
    if input_node is not None:
        chosen = [node for node in (*primaries, *loaders, *references) if node.id == input_node]
        if chosen:
            return chosen, []
        return [], [
            Problem(
                "bad_choice",
                f"node {input_node} was chosen as the input but is none of "
                f"{_names(candidates) or 'the inputs'}",
            )
        ]
    ambiguity = None
    if primaries and loaders:
        ambiguity = f"a {PRIMARY} and a {LOAD} would both be the stream"
    elif not primaries and loaders and references:
        ambiguity = f"it is open whether the {REFERENCE} is a reference picture or the stream"
    elif not primaries and not loaders and len(references) > 1:
        ambiguity = f"it is open which {REFERENCE} is the stream"
    if ambiguity is None or len(primaries) > 1:
        return [], []
    marked = [node for node in candidates if _title_says(node, "input")]
    if len(marked) == 1:
        return marked, []
    if not primaries and len(candidates) > _MAX_INPUTS and not marked:
        return [], []  # too many inputs, which is said there
    return [], [
        Problem(
            "ambiguous_input",
            f"{ambiguity}: {_names(candidates)}; put the word input into the title of the one that "
            "the stream replaces, or choose it by its id",
        )
    ]


def video_output(graph: Graph, output_node: str | None = None) -> tuple[Node | None, list[Problem]]:
    """The `SaveTensor` of a converted graph whose pictures go out; None when there is none.

    Of several, the chosen one, else the one whose title contains "output", else the one that was a
    SaveTensor before a SaveImage before a PreviewImage.
    """
    nodes = [node for node in graph if node.class_type == SAVE]
    if output_node is not None:
        chosen = next((node for node in nodes if node.id == output_node), None)
        if chosen is None:
            expected = _names(nodes) or "the outputs"
            message = f"node {output_node} was chosen as the output but is none of {expected}"
            return None, [Problem("bad_choice", message)]
        return chosen, []
    if len(nodes) > 1:
        titled = [node for node in nodes if _title_says(node, "output")]
        if not titled:
            best = min(_rank(node) for node in nodes)
            titled = [node for node in nodes if _rank(node) == best]
        nodes = titled
    if len(nodes) > 1:
        message = (
            f"it is open which picture is shown: {_names(nodes)}; put the word output into the title of one, "
            "or choose it by its id"
        )
        return None, [Problem("ambiguous_output", message)]
    return (nodes[0] if nodes else None), []


def _title_says(node: Node, word: str) -> bool:
    """Whether the author's title has ``word``; a title that only repeats the class says nothing."""
    class_type, title = node.origin or (node.class_type, node.title)
    letters = "".join(character for character in title.lower() if character.isalnum())
    return word in letters and letters != class_type.lower()


def _rank(node: Node) -> int:
    return _OUTPUT_RANK[node.origin[0] if node.origin else node.class_type]


def _names(nodes: Iterable[Node]) -> str:
    return ", ".join(node.label for node in nodes)

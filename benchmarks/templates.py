"""How many of ComfyUI's own workflow templates are read as its editor reads them, and which pass the check.

    python -m benchmarks.templates --object-info FILE|URL [--packages DIR] [--no-frontend] [--json FILE]
                                   [--comfyui DIR [--comfyui-python PATH]]

DIR is where ``comfyui-workflow-templates-json`` and ``comfyui-frontend-package`` are installed, where that is
not this interpreter (``pip install --target DIR --no-deps comfyui-workflow-templates-json
comfyui-frontend-package``). ``/object_info`` is what a running ComfyUI answers there.

A template is compared where the ComfyUI has all of its classes. The frontend's result and ours are compared
as graphs, so that ids may differ, over the nodes that an output needs, without inputs that the class does not
have (the editor has some for itself). A template passes where the check finds nothing but files that are not
on this machine and, apart from that, whether it has a place for a stream.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a script: the packages lie beside this folder.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.templates_frontend import Frontend, frontend, reason_to_skip
from benchmarks.templates_validation import Complaint, validated
from headrace.checking.object_info import load_object_info
from headrace.comfyui.installation import Installation
from headrace.nodes import builtin
from stream.errors import HeadraceError
from workflows.check import examine
from workflows.definitions import Definitions
from workflows.dynamic import inputs_of
from workflows.graph import is_editor_format
from workflows.model_files import is_file_choice
from workflows.reading import to_api
from workflows.registry import definitions_from_object_info

Prompts = Mapping[str, Mapping[str, Any]]
PACKAGES = ("comfyui_workflow_templates_json", "comfyui_frontend_package")
FILES = frozenset({"missing_file"})
STREAM = frozenset(
    {"missing_input", "missing_output", "ambiguous_input", "ambiguous_output", "constant_output"}
    | {"too_many_inputs", "too_many_outputs", "too_many_primary_inputs"}
)


def main() -> None:
    options = _parser().parse_args()
    templates = _package(PACKAGES[0], options.packages)
    if templates is None:
        print("skipped: comfyui-workflow-templates-json is not there; see --help")
        return
    files = dict(_workflows(templates))
    print(f"{len(files)} templates ({_version('comfyui-workflow-templates-json', templates)})")
    results = {"built-in nodes": _checked(files, builtin.registry().definitions)}
    _print_checks("built-in nodes", results["built-in nodes"])
    if options.object_info is None:
        print("no --object-info: nothing about ComfyUI's own nodes")
        return
    try:
        info = load_object_info(options.object_info)
    except HeadraceError as error:
        print(f"skipped: {error.message}")
        return
    definitions = definitions_from_object_info(info.data)
    results["ComfyUI"] = checks = _checked(files, definitions)
    _print_checks(f"ComfyUI ({len(info.data)} classes)", checks)
    known = {name: files[name] for name, codes in checks.items() if "unknown_class" not in codes}
    prompts = {name: to_api(data, definitions) for name, data in known.items()}
    valid = None
    if options.comfyui is not None:
        valid = _valid(options.comfyui, options.comfyui_python, prompts, definitions)
    if not options.no_frontend:
        equal, by_name = _compare_all(known, prompts, dict(info.data), definitions, options.packages)
        if valid is not None and equal:
            both = len(equal & valid)
            print(f"\nequal to the frontend's result and valid for ComfyUI: {both} of {len(known)}")
            print(f"  with those that are equal where it restores by name: {len((equal | by_name) & valid)}")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--object-info", metavar="FILE|URL", help="nodes of a ComfyUI")
    parser.add_argument("--packages", type=Path, metavar="DIR", help="where the two packages are installed")
    parser.add_argument("--no-frontend", action="store_true", help="leave out the comparison")
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="an installation, for validate_prompt")
    parser.add_argument("--comfyui-python", metavar="PATH", help="its interpreter")
    parser.add_argument("--json", type=Path, metavar="FILE", help="codes of all problems, by template")
    return parser


def _package(name: str, folder: Path | None) -> Path | None:
    if folder is not None:
        return folder / name if (folder / name).is_dir() else None
    spec = importlib.util.find_spec(name)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(places))) if places else None


def _version(name: str, package: Path) -> str:
    known = distributions(path=[str(package.parent)])
    found = (one.version for one in known if _plain(one.metadata["Name"]) == name)
    return next(found, "unknown version")


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _workflows(package: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((package / "templates").glob("*.json")):
        data = json.loads(path.read_bytes())
        if is_editor_format(data):
            yield path.name, data


def _checked(files: Mapping[str, Any], definitions: Definitions) -> dict[str, list[str]]:
    """The codes of the problems of each file."""
    return {name: [problem.code for problem in examine(data, definitions)[1]] for name, data in files.items()}


def _print_checks(title: str, checks: Mapping[str, list[str]]) -> None:
    known = {name: set(codes) for name, codes in checks.items() if "unknown_class" not in codes}
    nodes_pass = [name for name, codes in known.items() if not codes - FILES - STREAM]
    stream_pass = [name for name in nodes_pass if not known[name] - FILES]
    print(f"\n{title}: all classes known in {len(known)} of {len(checks)}")
    print(f"  their nodes pass, files that are not here aside: {len(nodes_pass)}")
    print(f"  and they have a place for a stream, or make pictures themselves: {len(stream_pass)}")
    others = Counter(code for codes in known.values() for code in codes - FILES)
    print("  templates with each other problem:", dict(others.most_common()) or "none")
    for name, codes in known.items():
        if codes - FILES - STREAM:
            print(f"  refused: {name}: {', '.join(sorted(codes - FILES - STREAM))}")


def _valid(folder: Path, python: str | None, prompts: Prompts, definitions: Definitions) -> set[str] | None:
    """The names of those that ComfyUI itself would run if all files were there."""
    try:
        place = Installation.at(folder, python)
        answer = validated(place.python, place.directory, prompts)
    except HeadraceError as error:
        answer = error.message
    if isinstance(answer, str):
        print(f"\nvalidate_prompt skipped: {answer}")
        return None
    against = {name: [one for one in found if not _of_a_file(one, prompts[name], definitions)]
               for name, found in answer.items()}  # fmt: skip
    valid = {name for name, found in against.items() if not found}
    print(f"\nvalid for ComfyUI's validate_prompt: {len(valid)} of {len(prompts)}")
    for name, found in against.items():
        if found:
            told = sorted({f"{one['type']}: {one['details'][:80]}" for one in found})
            print(f"  refused: {name}: {'; '.join(told)}")
    return valid


def _of_a_file(complaint: Complaint, prompt: Mapping[str, Any], definitions: Definitions) -> bool:
    if complaint["type"] not in _ABOUT_FILES or complaint["node_id"] is None:
        return False
    entry = prompt[complaint["node_id"]]
    declared = inputs_of(definitions[entry["class_type"]], entry["inputs"]).get(str(complaint["input"]))
    value = entry["inputs"].get(str(complaint["input"]))
    return declared is not None and is_file_choice(entry["class_type"], declared, value)


_ABOUT_FILES = frozenset({"value_not_in_list", "custom_validation_failed"})


def _compare_all(
    files: Mapping[str, dict[str, Any]],
    prompts: Prompts,
    info: dict[str, Any],
    definitions: Definitions,
    folder: Path | None,
) -> tuple[set[str], set[str]]:
    """The names of those that are equal, and of those that are where the frontend restores by name."""
    package = _package(PACKAGES[1], folder)
    reason = reason_to_skip(package)
    if reason is not None or package is None:
        print(f"\ncomparison with the frontend skipped: {reason}")
        return set(), set()
    print(f"\ncompared with the frontend {_version('comfyui-frontend-package', package)}")
    with frontend(package, info) as editor:
        verdicts = {n: _compare(editor, data, prompts[n], definitions) for n, data in files.items()}
    left = {name: verdict for name, verdict in verdicts.items() if verdict is not None}
    equal = verdicts.keys() - left.keys()
    print(f"  equal: {len(equal)} of {len(files)}")
    if not left:
        return equal, set()
    with frontend(package, info, named_values=True) as editor:
        named = {name: _compare(editor, files[name], prompts[name], definitions) for name in left}
    also = {name for name, verdict in named.items() if verdict is None}
    print(f"  of the others equal where the frontend restores values by name: {len(also)}")
    for name, verdict in left.items():
        print(f"  {'by name' if name in also else 'differs'}: {name}: {verdict}")
    return equal, also


def _compare(
    editor: Frontend, data: dict[str, Any], prompt: Mapping[str, Any], definitions: Definitions
) -> str | None:
    """None when both are the same graph, else how they differ."""
    theirs = editor.queued(data)
    if isinstance(theirs, str):
        return f"the frontend gives up: {theirs}"
    ours = _shapes(prompt, definitions)
    expected = _shapes(theirs, definitions)
    if ours == expected:
        return None
    missing, extra = expected - ours, ours - expected
    classes = sorted({shape[0] for shape in (*missing, *extra)})
    return (
        f"{missing.total()} of its nodes are not ours, {extra.total()} of ours not its: {', '.join(classes)}"
    )


Shape = tuple[str, str]


def _shapes(api: Mapping[str, Any], definitions: Definitions) -> Counter[Shape]:
    """Every node that an output needs, told by its class and all that feeds it instead of by its id."""
    known: dict[str, Shape] = {}

    def shape(node_id: str) -> Shape:
        if node_id not in known:
            entry = api[node_id]
            declared = inputs_of(definitions[entry["class_type"]], entry["inputs"])
            fed = {name: _fed(value, shape) for name, value in entry["inputs"].items() if name in declared}
            known[node_id] = (entry["class_type"], json.dumps(fed, sort_keys=True))
        return known[node_id]

    needed: set[str] = set()
    waiting = [node_id for node_id, entry in api.items() if definitions[entry["class_type"]].is_output]
    while waiting:
        node_id = waiting.pop()
        if node_id not in needed:
            needed.add(node_id)
            links = (value for value in api[node_id]["inputs"].values() if isinstance(value, list))
            waiting += [value[0] for value in links if value[0] in api]
    return Counter(shape(node_id) for node_id in needed)


def _fed(value: Any, shape: Any) -> Any:
    if isinstance(value, list):
        return {"output": value[1], "of": hash(shape(value[0]))}
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


if __name__ == "__main__":
    main()

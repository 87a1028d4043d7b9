"""What ComfyUI's ``/object_info`` tells of its node classes, and what checking a workflow needs beside."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from headrace.comfyui.host import untouched
from workflows.definitions import BadDefinition, NodeDefinition

log = logging.getLogger(__name__)


def object_info(classes: Mapping[str, Any], names: Mapping[str, str], folder_paths: Any) -> dict[str, Any]:
    """Every class that can be described, as the web server would; JSON data."""
    described: dict[str, Any] = {}
    with untouched.looking(), getattr(folder_paths, "cache_helper", None) or contextlib.nullcontext():
        for name, node_class in classes.items():
            try:
                entry = json.loads(json.dumps(_describe(name, node_class, names)))
            except (Exception, SystemExit) as error:  # noqa: BLE001 (the edge to a pack's class)
                log.warning("class %s cannot be described: %s: %s", name, type(error).__name__, error)
                continue
            described[name] = {**entry, **_more(name, node_class)}
    return described


def _describe(name: str, node_class: Any, names: Mapping[str, str]) -> dict[str, Any]:
    own = getattr(node_class, "GET_NODE_INFO_V1", None)
    if own is not None:
        made: dict[str, Any] = own()
        return made
    inputs = node_class.INPUT_TYPES()
    outputs = node_class.RETURN_TYPES
    info = {
        "input": inputs,
        "input_order": {group: list(members) for group, members in inputs.items()},
        "output": outputs,
        "output_is_list": getattr(node_class, "OUTPUT_IS_LIST", [False] * len(outputs)),
        "output_name": getattr(node_class, "RETURN_NAMES", outputs),
        "name": name,
        "display_name": names.get(name, name),
        "description": getattr(node_class, "DESCRIPTION", ""),
        "python_module": getattr(node_class, "RELATIVE_PYTHON_MODULE", "nodes"),
        "category": getattr(node_class, "CATEGORY", "sd"),
        "output_node": getattr(node_class, "OUTPUT_NODE", False) is True,
    }
    if hasattr(node_class, "OUTPUT_TOOLTIPS"):
        info["output_tooltips"] = node_class.OUTPUT_TOOLTIPS
    for key in ("DEPRECATED", "EXPERIMENTAL"):
        if getattr(node_class, key, False):
            info[key.lower()] = True
    if hasattr(node_class, "API_NODE"):
        info["api_node"] = node_class.API_NODE
    return info


def _more(name: str, node_class: Any) -> dict[str, Any]:
    """The key of ours that says how the class checks values itself."""
    try:
        full = NodeDefinition.from_class(name, node_class).to_object_info()
    except BadDefinition as error:
        log.debug("class %s: %s", name, error)
        return {}
    return {"headrace": full["headrace"]} if "headrace" in full else {}

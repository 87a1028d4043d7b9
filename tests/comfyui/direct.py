"""Run in ComfyUI's own interpreter: calls node classes directly and prints what the pictures are as bytes.

``python direct.py BOOTSTRAP COMFYUI CASES FRAME OUT``: the file of the engine's bootstrap, the installation,
a JSON file of cases, a frame as .npy (H x W x 3, bytes), and where the results go as .npz.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import sys
from pathlib import Path


def main() -> None:
    bootstrap_file, comfyui, cases_file, frame_file, out = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("bootstrap", bootstrap_file)
    assert spec is not None
    assert spec.loader is not None
    bootstrap = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bootstrap)
    # Only for the steps from bytes to floats and back, so that they are the same.
    sys.meta_path.insert(0, bootstrap.RoomFinder(str(bootstrap.__file__).partition("/headrace/engine/")[0]))
    sys.path[0] = comfyui
    sys.argv = ["main.py", "--cpu"]
    import numpy as np

    options = importlib.import_module("comfy.options")
    options.enable_args_parsing()
    # By name and in this order: utils.extra_config comes before nodes.
    for name in ("folder_paths", "utils.extra_config"):
        importlib.import_module(name)
    import torch

    from stream.frames import Picture
    from stream.tensors import tensor_from, write_rgb

    server = importlib.import_module("server")
    nodes = importlib.import_module("nodes")

    class Nobody:
        def __getattr__(self, name: str) -> object:
            return lambda *arguments, **named: None

    server.PromptServer.instance = Nobody()
    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    torch.set_num_threads(1)
    frame = tensor_from(Picture.from_rgb(np.load(frame_file)), torch.device("cpu"))
    results = {}
    with torch.inference_mode():
        for name, case in json.loads(Path(cases_file).read_text()).items():
            picture = run(nodes.NODE_CLASS_MAPPINGS, case, frame)
            made = np.empty((*picture.shape[1:3], 3), np.uint8)
            write_rgb(picture[0], made)
            results[name] = made
    np.savez(out, **results)


def run(classes: dict, graph: dict, frame: object) -> object:
    """What goes into the graph's SaveTensor; nodes are written in the order in which they run."""
    values: dict[str, object] = {}
    for node_id, node in graph.items():
        given = {
            name: values[value[0]][value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        if node["class_type"] == "LoadTensor":
            values[node_id] = (frame,)
        elif node["class_type"] == "SaveTensor":
            return given["images"]
        else:
            node_class = classes[node["class_type"]]
            if hasattr(node_class, "define_schema"):
                made = node_class.execute(**given)
            else:
                made = getattr(node_class(), node_class.FUNCTION)(**given)
            if inspect.isawaitable(made):
                made = asyncio.run(made)
            values[node_id] = getattr(made, "result", made)
    raise AssertionError("a graph without a SaveTensor")


if __name__ == "__main__":
    main()

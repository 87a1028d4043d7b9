"""A node pack by ComfyUI's protocol whose pictures are whole numbers, so that results can be told exactly."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from workflows.registry import NodeRegistry

MODULUS = 1_000_003


class Node:
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "test"
    calls: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        self.calls["created " + type(self).__name__] += 1

    def count(self) -> None:
        self.calls[type(self).__name__] += 1


class Constant(Node):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"value": ("INT", {"default": 0, "min": 0, "max": MODULUS})}}

    def run(self, value: int) -> tuple[int]:
        self.count()
        return (value,)


class Add(Node):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {"a": ("IMAGE",), "b": ("IMAGE",), "scale": ("INT", {"min": 0, "max": MODULUS})},
            "optional": {"offset": ("INT", {"default": 0})},
        }

    def run(self, a: int, b: int, scale: int, offset: int = 0) -> tuple[int]:
        self.count()
        return ((a + b * scale + offset) % MODULUS,)


class Split(Node):
    RETURN_TYPES = ("IMAGE", "IMAGE")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"a": ("IMAGE",)}}

    def run(self, a: int) -> tuple[int, int]:
        self.count()
        return (a * 3 + 1) % MODULUS, (a * a) % MODULUS


def registry(**more: Any) -> NodeRegistry:
    """The pack, and ``more`` classes by name."""
    Node.calls.clear()
    return NodeRegistry.from_mappings({"Constant": Constant, "Add": Add, "Split": Split, **more})


def naive(graph: dict[str, Any], frame: int) -> int:
    """What the graph gives for a frame, by recursion from its SaveTensor, with nothing remembered."""
    out = next(node for node in graph.values() if node["class_type"] == "SaveTensor")
    classes = {"Constant": Constant, "Add": Add, "Split": Split}

    def value(link: list[Any]) -> int:
        node = graph[link[0]]
        if node["class_type"] == "LoadTensor":
            return frame
        inputs = {
            name: value(given) if isinstance(given, list) else given for name, given in node["inputs"].items()
        }
        result: int = classes[node["class_type"]]().run(**inputs)[link[1]]
        return result

    return value(out["inputs"]["images"])

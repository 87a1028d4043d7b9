"""Small files as ComfyUI's editor saves them, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CONTROL = {"control_after_generate": True}


def _entry(
    name: str, inputs: dict[str, Any], outputs: Sequence[str], *, output: bool = False
) -> dict[str, Any]:
    return {
        "input": {"required": inputs},
        "output": list(outputs),
        "output_name": list(outputs),
        "output_is_list": [False] * len(outputs),
        "name": name,
        "output_node": output,
    }


OBJECT_INFO: dict[str, Any] = {
    "Loader": _entry("Loader", {"ckpt_name": [["a.safetensors", "sub/b.safetensors"], {}]}, ["MODEL", "VAE"]),
    "Noise": _entry(
        "Noise",
        {
            "model": ["MODEL"],
            "seed": ["INT", {"default": 0, "min": 0, "max": 2**64 - 1, **CONTROL}],
            "steps": ["INT", {"default": 20, "min": 1, "max": 100}],
            "sampler": [["euler", "ddim"], {}],
        },
        ["LATENT"],
    ),
    "Decode": _entry("Decode", {"samples": ["LATENT"], "vae": ["VAE"]}, ["IMAGE"]),
    "Blur": _entry(
        "Blur", {"image": ["IMAGE"], "radius": ["INT", {"default": 3, "min": 1, "max": 31}]}, ["IMAGE"]
    ),
    "Mix": _entry("Mix", {"a": ["IMAGE"], "b": ["IMAGE"], "by": ["FLOAT", {"default": 0.5}]}, ["IMAGE"]),
    "Split": _entry("Split", {"image": ["IMAGE"]}, ["MASK", "IMAGE"]),
    "LoadImage": _entry("LoadImage", {"image": [["x.png"], {"image_upload": True}]}, ["IMAGE", "MASK"]),
    "SaveImage": _entry(
        "SaveImage", {"images": ["IMAGE"], "filename_prefix": ["STRING", {"default": "c"}]}, [], output=True
    ),
    "Pick": _entry(
        "Pick",
        {
            "how": [
                "COMFY_DYNAMICCOMBO_V3",
                {
                    "options": [
                        {"key": "scale", "inputs": {"required": {"factor": ["FLOAT", {"default": 2.0}]}}},
                        {
                            "key": "size",
                            "inputs": {
                                "required": {"width": ["INT", {"default": 64}], "like": ["IMAGE", {}]},
                                "optional": {"height": ["INT", {"default": 48}]},
                            },
                        },
                    ]
                },
            ],
            "seed": ["INT", {"default": 0}],
            "image": [
                "COMFY_MATCHTYPE_V3",
                {"template": {"template_id": "t", "allowed_types": "IMAGE,MASK"}},
            ],
        },
        ["COMFY_MATCHTYPE_V3"],
    ),
    "Batch": _entry(
        "Batch",
        {
            "images": [
                "COMFY_AUTOGROW_V3",
                {
                    "template": {
                        "input": {"required": {"image": ["IMAGE", {}]}},
                        "prefix": "image",
                        "min": 2,
                        "max": 4,
                    }
                },
            ]
        },
        ["IMAGE"],
    ),
}


class Sheet:
    """A drawing under construction: the top of a file, or the inside of a subgraph."""

    def __init__(self, **extra: Any) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.links: list[Any] = []
        self.extra = extra

    def node(
        self,
        node_id: int | str,
        kind: str,
        values: Any = None,
        *,
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        **more: Any,
    ) -> Sheet:
        """``inputs`` are ``name:TYPE``, or ``name:TYPE:w`` where the input is a widget too."""
        slots = []
        for text in inputs:
            name, kind_of, *widget = text.split(":")
            slot: dict[str, Any] = {"name": name, "type": kind_of, "link": None}
            slots.append(slot | ({"widget": {"name": name}} if widget else {}))
        drawn = {
            "id": node_id,
            "type": kind,
            "mode": 0,
            "inputs": slots,
            "outputs": [{"name": kind_of, "type": kind_of, "links": []} for kind_of in outputs],
            "properties": {},
        }
        if values is not None:
            drawn["widgets_values"] = values
        self.nodes.append(drawn | more)
        return self

    def wire(self, origin: int | str, origin_slot: int, target: int | str, name: str | int) -> Sheet:
        """From an output to an input of that name; the edges of a subgraph are -10 and -20."""
        number = len(self.links) + 1
        slot = name if isinstance(name, int) else self._attach(target, name, number)
        for node in self.nodes:
            if node["id"] == origin:
                node["outputs"][origin_slot]["links"].append(number)
        self.links.append([number, origin, origin_slot, target, slot, "*"])
        return self

    def _attach(self, target: int | str, name: str, number: int) -> int:
        inputs = next(node["inputs"] for node in self.nodes if node["id"] == target)
        slot = next(index for index, one in enumerate(inputs) if one["name"] == name)
        inputs[slot]["link"] = number
        return slot

    def file(self, *subgraphs: dict[str, Any], as_objects: bool = False) -> dict[str, Any]:
        """The whole, as schema 0.4, or with ``as_objects`` as schema 1 has it."""
        links = [_as_object(link) for link in self.links] if as_objects else self.links
        data: dict[str, Any] = {
            "nodes": self.nodes,
            "links": links,
            "groups": [],
            "last_node_id": 99,
            "version": 1 if as_objects else 0.4,
            **self.extra,
        }
        return data | ({"definitions": {"subgraphs": list(subgraphs)}} if subgraphs else {})

    def subgraph(self, uid: str, inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, Any]:
        def slots(texts: Sequence[str], *, leaving: bool) -> list[dict[str, Any]]:
            found = []
            for number, text in enumerate(texts):
                name, kind = text.split(":")
                edge = (-20, 3) if leaving else (-10, 1)
                ids = [
                    link[0] for link in self.links if (link[edge[1]], link[edge[1] + 1]) == (edge[0], number)
                ]
                found.append({"id": f"{uid}-{leaving}-{number}", "name": name, "type": kind, "linkIds": ids})
            return found

        return {
            "id": uid,
            "name": f"Subgraph {uid[:4]}",
            "nodes": self.nodes,
            "links": [_as_object(link) for link in self.links],
            "inputNode": {"id": -10},
            "outputNode": {"id": -20},
            "inputs": slots(inputs, leaving=False),
            "outputs": slots(outputs, leaving=True),
        }


def _as_object(link: list[Any]) -> dict[str, Any]:
    return dict(
        zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True)
    )

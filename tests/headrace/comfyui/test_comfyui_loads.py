"""When ComfyUI's loads are asked for, and how much: without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from headrace.comfyui.host.loads import Loads


class Model:
    """Weights; ``on_device``: bytes of them."""

    def __init__(self, size: int) -> None:
        self.size, self.on_device = size, 0


class Patcher:
    def __init__(self, model: Model, *, offload: str = "cpu") -> None:
        self.model = model
        self.load_device, self.offload_device = "cuda", offload

    def model_size(self) -> int:
        return self.model.size

    def loaded_size(self) -> int:
        return self.model.on_device


class Rig:
    """A device on which ``fits`` bytes of each model fit, and what is asked."""

    def __init__(self) -> None:
        self.fits = 1000
        self.asked: list[int] = []
        self.told = 0
        self.loads = Loads(keep=60.0)
        self.memory = SimpleNamespace(load_models_gpu=self.load)
        self.loads.wrap_loading(self.memory, "cuda")
        self.loads.connect(self.say, self.tell)

    def load(self, models: list[Patcher], memory_required: int = 0) -> str:
        for patcher in models:
            patcher.model.on_device = min(patcher.model.size, self.fits)
        return "done"

    def say(self, body: Mapping[str, Any]) -> None:
        assert self.loads.is_loading
        self.asked.append(body["size"])

    def tell(self) -> None:
        self.told += 1


def test_what_is_missing_on_the_device_is_asked_for_once() -> None:
    rig, model = Rig(), Model(100)
    assert not rig.loads.in_use(Patcher(model))
    # A clone shares the weights.
    assert rig.memory.load_models_gpu({Patcher(model), Patcher(model)}, memory_required=5) == "done"
    assert (rig.asked, rig.told, rig.loads.is_loading) == ([100], 2, False)
    assert rig.loads.in_use(Patcher(model))
    rig.memory.load_models_gpu([Patcher(model), Patcher(Model(30))])
    assert rig.asked == [100, 30]
    model.on_device = 40
    rig.memory.load_models_gpu([Patcher(model)])
    assert rig.asked == [100, 30, 60]


def test_what_comfyui_loads_in_part_is_not_asked_for_with_each_frame() -> None:
    rig, patcher = Rig(), Patcher(Model(100))
    rig.fits = 70
    for _ in range(3):
        rig.memory.load_models_gpu([patcher])
    assert rig.asked == [100]
    patcher.model.on_device = 0
    rig.memory.load_models_gpu([patcher])
    assert rig.asked == [100, 70]


def test_what_is_kept_where_it_works_is_not_asked_for_nor_what_is_of_another_kind() -> None:
    rig = Rig()
    rig.memory.load_models_gpu([Patcher(Model(100), offload="cuda")])
    odd: Any = SimpleNamespace(load_device="cuda", offload_device="cpu", model=Model(10))
    rig.memory.load_models_gpu([odd])
    assert rig.asked == []


def test_files_are_asked_for_where_the_device_is_the_machines_memory(tmp_path: Any) -> None:
    rig, utils = Rig(), SimpleNamespace(load_torch_file=lambda ckpt, safe_load=False: "weights")
    device = SimpleNamespace(type="cpu")
    rig.loads.wrap_reading(utils, lambda: device)
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"1234")
    assert utils.load_torch_file(str(file), safe_load=True) == "weights"
    assert rig.asked == [4]
    device.type = "cuda"
    utils.load_torch_file(str(file))
    assert rig.asked == [4]

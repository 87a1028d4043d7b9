"""Pictures from texts and pictures: shared weights, seeds, batches, schedulers, what fails half way."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_here import Heard, job_for, store_of
from pictures_here import Asking, pictures, upload, with_own_models
from safetensors.torch import save_file

from headrace.batch.contract import Cancelled, Progress
from headrace.batch.errors import UnsupportedMedia
from headrace.batch.fields import Scheduler
from headrace.batch.pipelines import diffusion, lightning
from headrace.batch.pipelines.image_to_image import ImageToImage, workable
from headrace.batch.pipelines.images import MARK, mark
from headrace.batch.pipelines.pictures import png
from headrace.batch.pipelines.schedulers import SCHEDULERS
from headrace.batch.pipelines.text_to_image import TextToImage, split_prompt
from headrace.models.tiny import random_weights
from headrace.models.weights import shared_bytes
from stream.errors import InvalidInput, TooLarge


@pytest.fixture(scope="module")
def asking(request: pytest.FixtureRequest) -> Asking:
    return Asking(store_of(request.config))


def same(one: Any, other: Any) -> bool:
    return bool(one.blobs == other.blobs)


# -- what is made --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["demo:tiny-sd", "demo:tiny-sdxl", "demo:tiny-flux"])
def test_every_family_makes_pictures_from_text_and_changes_them_with_the_picture_it_gets(
    asking: Asking, model: str
) -> None:
    made = asking.text(model, height=64, width=96)
    (picture,) = pictures(made)
    assert picture.shape == (64, 96, 3)
    assert made.body == {
        "images": [{"blob": "0.png", "seed": 3, "nsfw": False}],
        "weights": "random",
        "safety": "unchecked",
    }
    assert not same(made, asking.text(model, prompt="a dog", height=64, width=96))
    one = asking.image(model, upload(61, 70, seed=1))
    other = asking.image(model, upload(61, 70, seed=2))
    assert pictures(one)[0].shape == (61, 70, 3)
    assert not same(one, other)
    assert same(one, asking.image(model, upload(61, 70, seed=1)))


def test_instruct_pix2pix_listens_to_its_image_guidance(asking: Asking) -> None:
    one = asking.image("demo:tiny-pix2pix", image_guidance_scale=1.0)
    other = asking.image("demo:tiny-pix2pix", image_guidance_scale=3.0)
    assert not same(one, other)
    assert same(one, asking.image("demo:tiny-pix2pix", image_guidance_scale=1.0, strength=0.1))


def test_pictures_of_random_weights_are_marked_and_others_are_not() -> None:
    for height, width in ((64, 64), (512, 768), (16, 2000), (9, 9)):
        plain = np.zeros((height, width, 3), np.uint8)
        marked = mark(plain)
        assert marked.shape == plain.shape
        assert not plain.any()
        assert marked.any()
        assert not marked[: height * 3 // 4].any() or height < 128
    assert MARK


def test_all_pictures_of_one_request_get_their_own_seed_and_are_what_each_is_alone(asking: Asking) -> None:
    for ask in (asking.text, asking.image):
        together = ask(seed=0, num_images_per_prompt=3)
        assert [image["seed"] for image in together.body["images"]] == [0, 1, 2]
        for seed, picture in enumerate(pictures(together)):
            (alone,) = pictures(ask(seed=seed))
            assert np.abs(picture.astype(int) - alone).max() <= 1
    assert not same(asking.text(seed=0), asking.text(seed=1))


def test_seed_zero_is_a_seed_and_none_is_a_random_one(asking: Asking) -> None:
    assert same(asking.text(seed=0), asking.text(seed=0))
    seeds = {asking.text(seed=None).body["images"][0]["seed"] for _ in range(3)}
    assert len(seeds) == 3


@given(st.lists(st.text(alphabet="ab |", max_size=6), max_size=8).map("|".join))
def test_prompts_split_at_bars_into_at_most_four_parts_none_of_them_empty(prompt: str) -> None:
    parts = split_prompt(prompt)
    assert len(parts) <= 4
    assert all(part.strip() == part != "" for part in parts)
    assert bool(parts) == bool(prompt.replace("|", " ").strip() or prompt.count("|") > 3)


def test_parts_of_a_prompt_reach_the_encoders_that_there_are(asking: Asking) -> None:
    assert not same(asking.text("demo:tiny-sdxl", prompt="a|b"), asking.text("demo:tiny-sdxl", prompt="a"))
    assert same(asking.text(prompt="a | b|c"), asking.text(prompt="a, b, c"))
    with pytest.raises(InvalidInput, match="Prompt must be provided") as caught:
        asking.text(prompt=" | ")
    assert caught.value.field == "prompt"


# -- what cannot be made -------------------------------------------------------------------------------


def test_errors_name_the_field_and_its_value(asking: Asking) -> None:
    for model, field, value in (
        ("demo:tiny-sd", "height", 60),
        ("demo:tiny-sdxl", "width", 100),
        ("demo:tiny-flux", "width", 72),
    ):
        with pytest.raises(InvalidInput, match=f"{field} is {value}") as caught:
            asking.text(model, **{field: value})
        assert caught.value.field == field
    with pytest.raises(InvalidInput, match="'best'") as caught:
        asking.text(scheduler="best")
    assert caught.value.field == "scheduler"
    for pipeline, model in ((TextToImage(), "demo:tiny-svd"), (ImageToImage(), "demo:tiny-blip")):
        with pytest.raises(InvalidInput, match=model) as caught:
            asking.ask(pipeline, model, {"prompt": "x"}, upload())
        assert caught.value.field == "model_id"
    with pytest.raises(UnsupportedMedia):
        asking.image(blobs={"image": b"no picture"})
    with pytest.raises(TooLarge, match="5000 x 8"):
        asking.image(blobs=upload(8, 5000))


def test_values_that_a_model_cannot_use_are_clamped_and_told(asking: Asking, tmp_path: Path) -> None:
    (told,) = asking.image(strength=0.1).body["adjusted"]
    assert (told["field"], told["asked"], told["used"]) == ("num_inference_steps", 3, 11)
    (told,) = asking.image("demo:tiny-flux").body["adjusted"]
    assert (told["field"], told["asked"], told["used"]) == ("strength", 0.8, 0.6667)
    turbo = Asking(with_own_models(asking.store, tmp_path))
    folder = turbo.store.roots.models / "stabilityai" / "sdxl-turbo"
    shutil.copytree(random_weights("tiny-sdxl", asking.store.roots.cache), folder)
    clamped = {item["field"]: (item["asked"], item["used"]) for item in turbo.text(
        "stabilityai/sdxl-turbo", num_inference_steps=50, guidance_scale=7.5
    ).body["adjusted"]}  # fmt: skip
    assert clamped == {"num_inference_steps": (50, 4), "guidance_scale": (7.5, 0.0)}


@given(st.floats(0, 1), st.integers(1, 200), st.booleans())
def test_every_strength_and_number_of_steps_leaves_room_for_picture_and_text(
    asked: float, steps: int, flow: bool
) -> None:
    strength, used = workable(asked, steps, most=max(8, steps), flow=flow)
    assert 0 <= strength <= 1
    assert steps <= used <= max(8, steps)
    if flow:
        # As the pipelines of Flux and SD3 count, and those of SD and SDXL.
        assert asked == 1 or int(max(used - min(used * strength, used), 0)) >= 1
        assert strength <= asked
    else:
        assert int(used * strength) >= 1
        assert strength >= asked
    if 1 <= int(asked * steps) < steps - 1:
        assert (strength, used) == (asked, steps)


def test_sdxl_lightning_is_the_base_model_with_its_own_unet_and_uses_the_picture(
    asking: Asking, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    own = Asking(with_own_models(asking.store, tmp_path))
    base = own.store.roots.models / lightning.BASE
    shutil.copytree(random_weights("tiny-sdxl", asking.store.roots.cache), base)
    unet = load_file(base / "unet/diffusion_pytorch_model.safetensors")
    file = own.store.roots.models / lightning.REPOSITORY / "sdxl_lightning_2step_unet.safetensors"
    file.parent.mkdir(parents=True)
    save_file({name: (tensor * 0.9).half() for name, tensor in unet.items()}, file)
    model = "ByteDance/SDXL-Lightning-2step"
    made = own.text(model, num_inference_steps=50, guidance_scale=7.5)
    assert made.body["weights"] == "real"
    assert {item["used"] for item in made.body["adjusted"]} == {0, 2}
    assert not same(made, own.text(lightning.BASE, num_inference_steps=2, guidance_scale=0))
    one, other = (own.image(model, upload(seed=seed)) for seed in (1, 2))
    assert not same(one, other)
    with diffusion.acquire(job_for(own.store, "text-to-image", model, {}), own.models) as lease:
        mapped, own = shared_bytes(list(lease.model.parts["unet"].parameters()))
        assert mapped
        assert not own


# -- one checkpoint, many requests ---------------------------------------------------------------------


class Baton(Heard):
    """Lets two jobs go on one step at a time in turn, and writes down who did."""

    order: list[int]

    def __init__(self, number: int, shared: threading.Condition, state: dict[str, Any]) -> None:
        super().__init__()
        self.number, self.shared, self.state = number, shared, state

    def progress(self, progress: Progress) -> None:
        if progress.phase == "running":
            self.state["order"].append(self.number)
            self.hand_over()

    def hand_over(self) -> None:
        with self.shared:
            self.state["turn"] = 1 - self.number
            self.shared.notify_all()
            self.wait()

    def wait(self) -> None:
        free = self.shared.wait_for(
            lambda: self.state["turn"] == self.number or 1 - self.number in self.state["done"], 60
        )
        assert free

    def leave(self) -> None:
        with self.shared:
            self.state["done"].add(self.number)
            self.shared.notify_all()


def test_interleaved_requests_with_different_schedulers_equal_the_same_alone_bit_for_bit(
    asking: Asking,
) -> None:
    wishes: list[dict[str, Any]] = [
        {"scheduler": "euler-ancestral", "num_inference_steps": 4, "seed": 1},
        {
            "scheduler": "dpm++",
            "num_inference_steps": 5,
            "seed": 2,
            "prompt": "a dog",
            "num_images_per_prompt": 2,
        },
    ]
    alone = [asking.text(**wish) for wish in wishes]
    state: dict[str, Any] = {"turn": 0, "done": set(), "order": []}
    shared = threading.Condition()
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        torch.set_num_threads(1)
        baton = Baton(number, shared, state)
        with shared:
            baton.wait()
        try:
            results[number] = asking.text(listener=baton, **wishes[number])
        finally:
            baton.leave()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert state["order"][:6] == [0, 1, 0, 1, 0, 1]
    assert [same(results[number], alone[number]) for number in range(2)] == [True, True]
    assert not same(alone[0], asking.text(**{**wishes[0], "scheduler": "ddim"}))


def test_all_pictures_from_a_picture_together_are_bounded(asking: Asking) -> None:
    with pytest.raises(TooLarge, match="of all pictures together"):
        asking.image(blobs={"image": png(np.zeros((3000, 3000, 3), np.uint8))}, num_images_per_prompt=16)


def test_a_file_that_is_no_checkpoint_is_refused_in_words(asking: Asking, tmp_path: Path) -> None:
    own = Asking(with_own_models(asking.store, tmp_path))
    own.store.roots.models.mkdir(parents=True, exist_ok=True)
    save_file({"model.diffusion_model.x": torch.zeros(1)}, own.store.roots.models / "mine.safetensors")
    with pytest.raises(InvalidInput, match="no part that is known") as caught:
        own.text("mine.safetensors")
    assert caught.value.field == "model_id"


def test_all_endpoints_share_one_entry_and_nobody_changes_its_tensors(asking: Asking) -> None:
    model = "demo:tiny-sdxl"
    asking.image(model)
    with diffusion.acquire(job_for(asking.store, "text-to-image", model, {}), asking.models) as lease:
        parts = lease.model.parts
        modules = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
        before = [(t.data_ptr(), t.dtype) for module in modules for t in module.parameters()]
        asking.text(model, scheduler="heun", num_images_per_prompt=2)
        asking.image(model, num_images_per_prompt=2)
        assert before == [(t.data_ptr(), t.dtype) for module in modules for t in module.parameters()]
        assert before
        assert shared_bytes([t for module in modules for t in module.parameters()])[1] == 0
    assert len([e for e in asking.models.entries() if e.key.ref == model]) == 1


def test_models_that_are_loaded_at_the_same_time_have_all_their_tensors(asking: Asking) -> None:
    cold = Asking(asking.store)
    leases: list[Any] = []

    def load(model: str) -> None:
        leases.append(diffusion.acquire(job_for(cold.store, "text-to-image", model, {}), cold.models))

    names = ["tiny-sd", "tiny-sdxl", "tiny-flux", "tiny-pix2pix"]
    threads = [threading.Thread(target=load, args=(f"demo:{name}",)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(leases) == len(names)
    for lease in leases:
        modules = [part for part in lease.model.parts.values() if isinstance(part, torch.nn.Module)]
        assert not any(t.is_meta for module in modules for t in (*module.parameters(), *module.buffers()))
        lease.release()


class Failing(Heard):
    """Raises at a step, once."""

    def __init__(self, error: BaseException, at: float) -> None:
        super().__init__()
        self.error: BaseException | None = error
        self.at = at

    def progress(self, progress: Progress) -> None:
        super().progress(progress)
        if progress.phase == "running" and progress.step >= self.at and self.error is not None:
            error, self.error = self.error, None
            raise error


def test_a_pipeline_that_fails_in_mid_step_leaves_nothing_behind(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Any]] = []
    view = diffusion.Checkpoint.view

    def watched(*args: Any, **kwargs: Any) -> Any:
        pipe = view(*args, **kwargs)
        made.append(weakref.ref(pipe))
        return pipe

    monkeypatch.setattr(diffusion.Checkpoint, "view", watched)
    before = asking.text()
    with pytest.raises(RuntimeError, match="the device went away"):
        asking.text(listener=Failing(RuntimeError("the device went away"), 2))
    gc.collect()
    assert [one() for one in made] == [None, None]
    assert all(entry.leases == 0 for entry in asking.models.entries())
    assert same(asking.text(), before)


def test_progress_is_told_step_by_step_and_a_cancelled_job_ends_at_the_next(asking: Asking) -> None:
    heard = Heard()
    asking.text(listener=heard, num_inference_steps=4, scheduler="ddim")
    steps = [(told.step, told.of) for told in heard.told if told.phase == "running"]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    job = job_for(asking.store, "text-to-image", "demo:tiny-sd", {"prompt": "x", "height": 64, "width": 64})

    class Leaving(Heard):
        def progress(self, progress: Progress) -> None:
            super().progress(progress)
            if progress.phase == "running":
                job.cancel("the client left")

    job._listener = leaving = Leaving()
    with pytest.raises(Cancelled, match="the client left"):
        TextToImage().run(job, asking.models)
    assert len([told for told in leaving.told if told.phase == "running"]) == 1
    assert all(entry.leases == 0 for entry in asking.models.entries())


def test_where_there_is_no_memory_for_a_batch_its_pictures_are_made_one_by_one(asking: Asking) -> None:
    heard = Failing(RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2)
    made = asking.text(listener=heard, num_images_per_prompt=2, num_inference_steps=2, scheduler="ddim")
    assert [told.step for told in heard.told if told.phase == "running"] == [2, 1, 2, 3, 4]
    together = pictures(asking.text(num_images_per_prompt=2, num_inference_steps=2, scheduler="ddim"))
    for one, other in zip(pictures(made), together, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_requests_may_name_every_scheduler_that_there_is() -> None:
    names, _ = get_args(get_args(Scheduler)[0])
    assert set(get_args(names)) == set(SCHEDULERS)

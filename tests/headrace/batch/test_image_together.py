"""Pictures of several requests that are made together: equal to each alone, and kept apart otherwise."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from models_here import Heard, job_for, store_of
from pictures_here import SMALL, Asking, noise, pictures, upload

from headrace.batch.contract import BatchPipeline, Cancelled, Job, Progress, Result
from headrace.batch.pipelines import diffusion_together, safety
from headrace.batch.pipelines.image_to_image import ImageToImage
from headrace.batch.pipelines.pictures import png
from headrace.batch.pipelines.text_to_image import TextToImage
from headrace.batch.turns import DeviceTurns

SD = "demo:tiny-sd"


class Crowd(Asking):
    """Requests that wait for the device together, and how many pictures each call of the pipeline made."""

    def __init__(self, config: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(store_of(config))
        self.turns = DeviceTurns()
        self.calls: list[int] = []
        self.inside = False
        self.left_inside: list[bool] = []
        """Of those that were given up, whether pictures were still made when they had let go of the model."""
        self.fail: Any = lambda arguments: None
        real = diffusion_together.call

        def counted(pipe: Any, arguments: Any, step: Any) -> Any:
            self.calls.append(len(arguments["generator"]))
            self.fail(arguments)
            self.inside = True
            try:
                return real(pipe, arguments, step)
            finally:
                self.inside = False

        monkeypatch.setattr(diffusion_together, "call", counted)

    def job(self, wish: dict[str, Any], listener: Heard | None = None) -> tuple[BatchPipeline, Job]:
        pipeline = ImageToImage() if "upload" in wish else TextToImage()
        inputs = {"prompt": "a cat", **SMALL, **wish}
        blobs, model = inputs.pop("upload", None), inputs.pop("model", SD)
        job = job_for(self.store, pipeline.name, model, inputs, blobs, listener=listener, turns=self.turns)
        return pipeline, job

    def run(self, *jobs: tuple[BatchPipeline, Job]) -> list[Result | BaseException]:
        """All of them, begun in their order while the device is taken."""
        with ThreadPoolExecutor(len(jobs)) as pool:
            with self.turns.hold(Job("0", "", "", {})):
                work = []
                for number, (pipeline, job) in enumerate(jobs):
                    work.append(pool.submit(self._one, pipeline, job))
                    self._wait_for(number + 1)
            return [each.exception() or each.result() for each in work]

    def _one(self, pipeline: BatchPipeline, job: Job) -> Result:
        torch.set_num_threads(1)
        try:
            with torch.no_grad():
                return pipeline.run(job, self.models)
        except Cancelled:
            self.left_inside.append(self.inside)
            raise

    def _wait_for(self, number: int) -> None:
        end = threading.Event()
        for _ in range(3000):
            (entry,) = self.models.entries() or [None]
            if entry is not None and self.waiting() == number:
                return
            end.wait(0.01)
        raise AssertionError(f"{self.waiting()} wait")

    def waiting(self) -> int:
        loaded = [slot.loaded for slot in self.models._slots.values()]
        return sum(len(one.model.studio._left()) for one in loaded if one is not None)


@pytest.fixture
def crowd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Crowd:
    return Crowd(request.config, monkeypatch)


def near(one: Any, other: Any) -> bool:
    return all(
        np.abs(mine.astype(int) - theirs).max() <= 1
        for mine, theirs in zip(pictures(one), pictures(other), strict=True)
    )


def test_requests_that_are_alike_are_made_at_once_and_each_is_what_it_is_alone(crowd: Crowd) -> None:
    wishes: list[dict[str, Any]] = [
        {"seed": 5, "prompt": "a dog", "num_images_per_prompt": 2},
        {"seed": 0},
        {"seed": 5, "scheduler": "ddim"},
        {"seed": 9, "prompt": "a longer text about a mill by a river"},
    ]
    together = crowd.run(*map(crowd.job, wishes))
    assert crowd.calls == [4, 1]
    for wish, made in zip(wishes, together, strict=True):
        (alone,) = crowd.run(crowd.job(wish))
        assert near(made, alone)
        assert isinstance(made, Result)
        assert [image["seed"] for image in made.body["images"]] == [
            wish["seed"] + k for k in range(len(made.blobs))
        ]
    assert not near(together[1], together[2])


def test_pictures_from_pictures_go_together_where_these_have_one_size(crowd: Crowd) -> None:
    wishes: list[dict[str, Any]] = [
        {"upload": upload(seed=1), "strength": 0.7, "seed": 1},
        {"upload": upload(seed=2), "strength": 0.7, "seed": 2, "prompt": ""},
        {"upload": {"image": png(noise(64, 64))}, "strength": 0.7},
    ]
    together = crowd.run(*map(crowd.job, wishes))
    assert crowd.calls == [2, 1]
    for wish, made in zip(wishes, together, strict=True):
        (alone,) = crowd.run(crowd.job(wish))
        assert near(made, alone)


@pytest.mark.parametrize("model", ["demo:tiny-sdxl", "demo:tiny-flux", "demo:tiny-pix2pix"])
def test_every_family_makes_them_together_as_alone(crowd: Crowd, model: str) -> None:
    of: dict[str, Any] = {"model": model, "num_inference_steps": 2, "strength": 0.6}
    wishes = [{**of, "upload": upload(seed=seed), "seed": seed, "prompt": "a" * seed} for seed in (1, 2)]
    if model != "demo:tiny-pix2pix":
        wishes += [
            {**of, "seed": 3, "prompt": "a mill"},
            {**of, "seed": 4, "prompt": "a long text of a river"},
        ]
    together = crowd.run(*map(crowd.job, wishes))
    assert crowd.calls == ([1, 1] if model == "demo:tiny-pix2pix" else [2, 2])
    for wish, made in zip(wishes, together, strict=True):
        (alone,) = crowd.run(crowd.job(wish))
        assert near(made, alone)


def test_who_leaves_does_not_stop_the_others_and_each_hears_of_its_own_progress(crowd: Crowd) -> None:
    stays = Heard()
    left: list[Job] = []

    class Leaving(Heard):
        def progress(self, progress: Progress) -> None:
            super().progress(progress)
            if progress.phase == "running":
                left[0].cancel("the client left")

    leaving = Leaving()
    jobs = [crowd.job({"seed": 1}, leaving), crowd.job({"seed": 2, "num_images_per_prompt": 2}, stays)]
    left.append(jobs[0][1])
    gone, made = crowd.run(*jobs)
    assert isinstance(gone, Cancelled)
    assert crowd.calls == [3]
    steps = [(told.step, told.of) for told in stays.told if told.phase == "running"]
    # Three steps asked for; the model's scheduler takes one of them in two.
    assert steps == [(2, 8), (4, 8), (6, 8), (8, 8)]
    # With the others' pictures its own were made to the end: the model was in use by it, and it said so.
    running = [told.of for told in leaving.told if told.phase == "running"]
    assert running == [4, 0, 0, 0]
    assert crowd.left_inside == [False]
    (alone,) = crowd.run(crowd.job({"seed": 2, "num_images_per_prompt": 2}))
    assert near(made, alone)
    assert all(entry.leases == 0 for entry in crowd.models.entries())


def test_a_request_that_fails_fails_alone(crowd: Crowd) -> None:
    def fail(arguments: dict[str, Any]) -> None:
        if "poison" in arguments["prompt"]:
            raise ValueError("this text cannot be read")

    crowd.fail = fail
    bad, good = crowd.run(crowd.job({"prompt": "poison"}), crowd.job({"seed": 4}))
    assert isinstance(bad, ValueError)
    assert crowd.calls == [2, 1, 1]
    assert isinstance(good, Result)


def test_those_that_failed_together_have_all_their_pictures_in_the_end(crowd: Crowd) -> None:
    def fail(arguments: dict[str, Any]) -> None:
        if len(crowd.calls) == 1:
            raise ValueError("not together")

    crowd.fail = fail
    of = {"num_inference_steps": 1}
    jobs = [crowd.job({**of, "seed": 1, "num_images_per_prompt": 6})]
    jobs.append(crowd.job({**of, "seed": 30, "num_images_per_prompt": 4}))
    _, made = crowd.run(*jobs)
    assert crowd.calls == [8, 6, 2, 2]
    (alone,) = crowd.run(crowd.job({**of, "seed": 30, "num_images_per_prompt": 4}))
    assert near(made, alone)


def test_a_thread_that_could_not_take_the_device_tells_who_waits(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> int:
        raise RuntimeError("the device is lost")

    with monkeypatch.context() as broken:
        broken.setattr(diffusion_together, "at_once", lost)
        (failed,) = crowd.run(crowd.job({}))
    assert isinstance(failed, RuntimeError)
    assert isinstance(crowd.run(crowd.job({}))[0], Result)


def test_where_memory_is_short_they_are_made_fewer_at_once(crowd: Crowd) -> None:
    def fail(arguments: dict[str, Any]) -> None:
        if len(arguments["generator"]) > 2:
            raise MemoryError

    crowd.fail = fail
    made = crowd.run(*(crowd.job({"seed": seed}) for seed in range(3)))
    assert crowd.calls == [3, 1, 1, 1]
    assert all(isinstance(one, Result) for one in made)


def test_each_picture_is_looked_at_for_its_own_request(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        safety.Safety, "look", lambda self, shown: (seen.append(self.state), (shown, [False]))[1]
    )
    crowd.run(crowd.job({"safety_check": False}), crowd.job({"seed": 1}))
    assert crowd.calls == [2]
    assert sorted(seen) == [safety.OFF, safety.UNCHECKED]

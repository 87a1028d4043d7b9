"""The safety checker over live frames: the same answers as over pictures, black frames, live."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from headrace.batch.pipelines.safety import CHECKED, MODEL, Safety
from headrace.diffusion.safety import LiveSafety, find
from headrace.models.errors import ModelNotFound
from headrace.models.roots import Roots
from headrace.models.store import ModelStore
from tests.headrace.diffusion.test_diffusion_processor import frame, loaded, result
from tests.headrace.tiny_safety import make_checker


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    models = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setenv("HEADRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HEADRACE_MODELS_FOLDER", str(models))
        yield models
    torch.set_num_threads(threads)


async def test_without_a_checker_no_frame_is_shown_as_checked() -> None:
    with pytest.raises(ModelNotFound, match=MODEL) as caught:
        await loaded(use_safety_checker=True)
    assert caught.value.field == "use_safety_checker"


async def test_what_is_flagged_is_black_from_the_next_frame_on(folder: Path) -> None:
    make_checker(folder / MODEL, -2.0)
    processor = await loaded(t_index_list=[32])
    assert (await result(processor, frame(1, 72, 64))).std() > 0
    await processor.prepare_params({"use_safety_checker": True})
    await processor.update_params({"use_safety_checker": True})
    assert not (await result(processor, frame(2, 72, 64))).any()
    await processor.update_params({"use_safety_checker": False})
    assert (await result(processor, frame(3, 72, 64))).any()
    await processor.on_stream_stop()


def test_answers_are_those_over_pictures(folder: Path) -> None:
    """Half of some pictures are flagged, by a threshold in the widest gap between them."""
    make_checker(folder / MODEL, 0.0)
    held = find(ModelStore(Roots.from_environment()))
    checker = held.model
    random = np.random.default_rng(0)
    grain = [random.integers(0, 256, (3, 4, 3), dtype=np.uint8) for _ in range(8)]
    shown = [np.kron(one, np.ones((80, 90, 1), np.uint8)) for one in grain]
    scores = []
    checker.concept_embeds_weights = torch.nn.Parameter(torch.zeros(17), requires_grad=False)

    def live(picture: np.ndarray) -> bool:
        given = torch.from_numpy(picture).float().div(255).clamp(min=0.01)[None]
        return not LiveSafety(checker)(given).any()

    for picture in shown:
        low, high = -1.0, 1.0
        for _ in range(12):
            middle = (low + high) / 2
            checker.concept_embeds_weights.fill_(middle)
            low, high = (middle, high) if live(picture) else (low, middle)
        scores.append(low)
    ordered = sorted(scores)
    gap, at = max((after - before, before) for before, after in itertools.pairwise(ordered))
    assert gap > 1e-3
    checker.concept_embeds_weights.fill_(at + gap / 2)
    flags = [live(picture) for picture in shown]
    assert any(flags)
    assert not all(flags)
    assert Safety(CHECKED, checker).look(shown)[1] == flags
    held.release()

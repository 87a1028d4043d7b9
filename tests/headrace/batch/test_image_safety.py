"""The safety checker: there or not, flagging, withholding."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from models_here import store_of
from pictures_here import Asking, pictures, upload, with_own_models

from headrace.batch.pipelines import safety
from headrace.batch.pipelines.image_to_video import ImageToVideo
from tests.headrace.tiny_safety import make_checker


def with_checker(request: pytest.FixtureRequest, folder: Path, threshold: float) -> Asking:
    asking = Asking(with_own_models(store_of(request.config), folder))
    make_checker(asking.store.roots.models / safety.MODEL, threshold)
    return asking


def test_pictures_are_flagged_shown_or_withheld_as_asked(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    asking = with_checker(request, tmp_path, -2.0)
    off = asking.text(safety_check=False)
    assert (off.body["safety"], off.body["images"][0]["nsfw"]) == ("off", False)
    flagged = asking.text(num_images_per_prompt=2)
    assert flagged.body["safety"] == "checked"
    assert [image["nsfw"] for image in flagged.body["images"]] == [True, True]
    assert np.abs(pictures(flagged)[0].astype(int) - pictures(off)[0]).max() <= 1
    withheld = asking.text(withhold=True)
    assert withheld.body["images"][0]["nsfw"] is True
    # All but the mark of random weights is black.
    assert not pictures(withheld)[0][:56].any()
    entry = next(entry for entry in asking.models.entries() if entry.key.ref == safety.MODEL)
    assert entry.leases == 0


def test_a_checker_that_finds_nothing_leaves_pictures_as_they_are(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    asking = with_checker(request, tmp_path, 2.0)
    made = asking.text(withhold=True)
    assert (made.body["safety"], made.body["images"][0]["nsfw"]) == ("checked", False)
    assert made.blobs == asking.text(safety_check=False).blobs


def test_a_flagged_video_is_flagged_as_a_whole(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    asking = with_checker(request, tmp_path, -2.0)
    wish = {"height": 64, "width": 64, "num_frames": 2, "num_inference_steps": 1, "seed": 0, "frames": True}
    made = asking.ask(ImageToVideo(), "demo:tiny-svd", wish, upload())
    assert [one["nsfw"] for one in (*made.body["images"], *made.body["frames"])] == [True] * 3
    held = asking.ask(ImageToVideo(), "demo:tiny-svd", {**wish, "withhold": True}, upload())
    frames = copy.deepcopy(held)
    frames.body["images"] = held.body["frames"]
    assert not any(frame[:56].any() for frame in pictures(frames))

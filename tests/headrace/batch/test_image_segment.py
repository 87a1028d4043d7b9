"""Segment Anything 2: prompts in pixels, masks in the picture's size, compact encodings."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from models_here import store_of
from pictures_here import Asking, noise, upload
from PIL import Image

from headrace.batch.contract import Result
from headrace.batch.errors import UnsupportedMedia
from headrace.batch.pipelines.segment_anything import SegmentAnything, pixels_of, prompts_of
from headrace.batch.pipelines.segment_masks import MAX_NUMBERS, as_json, as_png, check_numbers, run_lengths
from stream.errors import InvalidInput, TooLarge

Mask = npt.NDArray[np.bool_]
CPU = torch.device("cpu")
HEIGHT, WIDTH = 30, 50


@pytest.fixture(scope="module")
def asking(request: pytest.FixtureRequest) -> Asking:
    return Asking(store_of(request.config))


def segment(asking: Asking, **inputs: Any) -> Result:
    return asking.ask(SegmentAnything(), "demo:tiny-sam2", inputs, upload(HEIGHT, WIDTH))


def decode(coded: dict[str, Any]) -> Mask:
    """COCO's run lengths, read as their description says."""
    runs: list[int] = []
    value = shift = 0
    for character in coded["counts"].encode():
        bits = character - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    flat = np.repeat([number % 2 == 1 for number in range(len(runs))], runs)
    mask: Mask = flat.reshape(coded["size"], order="F")
    return mask


# -- masks ---------------------------------------------------------------------------------------------


@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_run_lengths_and_files_hold_the_mask(mask: Mask) -> None:
    assert np.array_equal(decode(run_lengths(mask)), mask)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(as_png(mask)))), mask)
    assert json.loads(as_json(mask)) == mask.tolist()


@given(arrays.arrays(np.float32, (3, 4), elements=st.floats(width=32)))
@example(np.array([[4e-5, -4e-5, 1e-30, 0.0]], np.float32))
def test_logits_in_json_are_valid_and_give_the_same_mask(logits: npt.NDArray[np.float32]) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    read = np.array(json.loads(as_json(logits), parse_constant=refuse))
    assert np.array_equal(read > 0, logits > 0)


def test_run_lengths_are_those_of_coco() -> None:
    # One run of 100 zeros: 0b00100 with more to come, then 3.
    assert run_lengths(np.zeros((10, 10), bool)) == {"size": [10, 10], "counts": "T3"}
    assert run_lengths(np.ones((2, 2), bool)) == {"size": [2, 2], "counts": "04"}


def test_json_is_bounded_and_names_what_is_not() -> None:
    check_numbers(MAX_NUMBERS)
    with pytest.raises(TooLarge, match="'rle' or 'png'") as caught:
        check_numbers(MAX_NUMBERS + 1)
    assert caught.value.field == "mask_format"


def test_masks_are_sorted_have_the_pictures_size_and_agree_in_every_form(asking: Asking) -> None:
    prompt = {"point_coords": [[10, 10], [40, 5]], "point_labels": [1, 0], "box": [2, 3, 30, 28]}
    made = segment(asking, **prompt)
    scores = made.body["scores"]
    assert scores == sorted(scores, reverse=True)
    logits = np.array(json.loads(made.blobs["masks.json"]))
    small = np.array(json.loads(made.blobs["logits.json"]))
    assert (logits.shape, small.shape) == ((3, HEIGHT, WIDTH), (3, 256, 256))
    flat = segment(asking, **prompt, return_logits=False)
    inside = np.array(json.loads(flat.blobs["masks.json"]))
    assert inside.dtype == bool
    assert np.array_equal(inside, logits > 0)
    runs = segment(asking, **prompt, mask_format="rle")
    assert np.array_equal([decode(one) for one in runs.body["masks"]], inside)
    files = segment(asking, **prompt, mask_format="png")
    read = [np.asarray(Image.open(io.BytesIO(files.blobs[one["blob"]]))) for one in files.body["masks"]]
    assert np.array_equal(read, inside)
    assert made.body["weights"] == "random"


def test_every_kind_of_prompt_counts_and_one_mask_can_be_asked_for(asking: Asking) -> None:
    def scores(**inputs: Any) -> list[float]:
        return list(segment(asking, mask_format="rle", **inputs).body["scores"])

    nothing = scores()
    point = scores(point_coords=[[10, 10]], point_labels=[1])
    assert len({*map(tuple, (nothing, point, scores(point_coords=[[10, 10]], point_labels=[0])))}) == 3
    assert scores(box=[1, 1, 20, 20]) not in (nothing, point)
    rough = np.random.default_rng(0).normal(size=(1, 256, 256)).tolist()
    assert scores(mask_input=rough) != nothing
    assert len(scores(multimask_output=False)) == 1
    shares = scores(point_coords=[[10 / WIDTH, 10 / HEIGHT]], point_labels=[1], normalize_coords=False)
    assert shares == pytest.approx(point, abs=1e-4)


def test_coordinates_and_pixels_are_scaled_to_the_square_that_the_model_sees() -> None:
    made = prompts_of(
        {"point_coords": [[50, 100]], "point_labels": [1], "box": [0, 0, 200, 100]}, 200, 100, CPU
    )
    assert made["input_points"].tolist() == [[[[256.0, 1024.0]]]]
    assert made["input_boxes"].tolist() == [[[0.0, 0.0, 1024.0, 1024.0]]]
    seen = pixels_of(noise(30, 50), CPU)
    assert seen.shape == (1, 3, 1024, 1024)
    grey = pixels_of(np.full((5, 7, 3), 124, np.uint8), CPU)
    assert grey[0, 0].std() < 1e-4
    assert abs(float(grey[0, 0, 0, 0]) - (124 / 255 - 0.485) / 0.229) < 1e-4


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"point_coords": [[1, 2]]}, "point_labels"),
        ({"point_coords": [[1, 2, 3]], "point_labels": [1]}, "point_coords"),
        ({"box": [1, 2, 3]}, "box"),
        ({"box": [1, 2, 3, float("inf")]}, "box"),
        ({"mask_input": [[1]]}, "mask_input"),
        ({"mask_format": "gif"}, "mask_format"),
    ],
)
def test_prompts_that_do_not_fit_are_told_by_field(
    asking: Asking, inputs: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        segment(asking, **inputs)
    assert caught.value.field == field
    assert all(entry.leases == 0 for entry in asking.models.entries())


def test_pictures_and_models_of_other_kinds_are_refused(asking: Asking) -> None:
    with pytest.raises(UnsupportedMedia):
        asking.ask(SegmentAnything(), "demo:tiny-sam2", {}, {"image": b"?"})
    with pytest.raises(InvalidInput, match="no Segment Anything"):
        asking.ask(SegmentAnything(), "demo:tiny-blip", {}, upload())

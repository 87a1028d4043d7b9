"""Masks of what points, a box or a rough mask show: Segment Anything 2.

The library's own image processor needs torchvision, so pictures and coordinates are prepared here: the model
sees a square of 1024 pixels (stretched, as it was trained), and everything is scaled with it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from headrace.batch.contract import Job, Result
from headrace.batch.pipelines.images import uploaded
from headrace.batch.pipelines.pictures import Pixels
from headrace.batch.pipelines.segment_masks import Logits, as_json, as_png, check_numbers, run_lengths
from headrace.models import loading, memory
from headrace.models.cache import Lease, Loaded, LoadProgress, ModelCache
from headrace.models.refs import ModelKey
from headrace.models.tiny import ensure_built
from stream.errors import InvalidInput

SIDE = 1024
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pictures, which the encoder was trained on."""
_CLIP = 32.0
"""Bound of the small masks, which may come back as ``mask_input``."""
FORMATS = ("json", "rle", "png")


class SegmentAnything:
    """``/segment-anything-2``: see `headrace.batch.contract.BatchPipeline`.

    The blob ``image``; inputs: ``point_coords`` [[x, y], ...] with ``point_labels`` (1 inside, 0 outside),
    ``box`` [x0, y0, x1, y1], ``mask_input`` [1, 256, 256], ``multimask_output`` (three masks),
    ``return_logits`` (JSON only), ``normalize_coords`` (false: coordinates are shares of the sides),
    ``mask_format``. The body has ``masks``, ``scores`` and, as JSON, ``logits`` [masks, 256, 256], the best
    first.
    """

    name: ClassVar[str] = "segment-anything-2"

    def run(self, job: Job, models: ModelCache) -> Result:
        inputs = job.inputs
        form = inputs.get("mask_format") or "json"
        if form not in FORMATS:
            raise InvalidInput(
                f"mask_format is {form!r}; there are {', '.join(FORMATS)}", field="mask_format"
            )
        picture = uploaded(job)
        height, width = picture.shape[:2]
        several = bool(_or(inputs.get("multimask_output"), True))
        if form == "json":
            check_numbers(height * width * (3 if several else 1))
        found, weights = _masks(job, models, picture, several)
        return _answer(*found, form, bool(_or(inputs.get("return_logits"), True)), weights)

    def warm(self, job: Job, models: ModelCache) -> None:
        _acquire(job, models).release()


def _masks(
    job: Job, models: ModelCache, picture: Pixels, several: bool
) -> tuple[tuple[Logits, npt.NDArray[np.float32], Logits], str]:
    """Masks as large as the picture, scores and small masks, best first; and the kind of weights."""
    height, width = picture.shape[:2]
    with _acquire(job, models) as lease:
        device = lease.model.device
        prompts = prompts_of(job.inputs, width, height, device)
        with job.turn(), torch.no_grad():
            made = lease.model(pixel_values=pixels_of(picture, device), multimask_output=several, **prompts)
            small, scores = made.pred_masks[0, 0].float(), made.iou_scores[0, 0].float()
            order = scores.argsort(descending=True, stable=True)
            small, scores = small[order], scores[order]
            masks = torch.nn.functional.interpolate(
                small[None], (height, width), mode="bilinear", align_corners=False
            )[0]
            found = (masks.cpu().numpy(), scores.cpu().numpy(), small.clamp(-_CLIP, _CLIP).cpu().numpy())
            job.progress(1, 1)
        return found, lease.weights


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


# -- into the model ------------------------------------------------------------------------------------


def pixels_of(picture: Pixels, device: torch.device) -> torch.Tensor:
    """[1, 3, 1024, 1024], normalised."""
    pixels = torch.from_numpy(picture).to(device).permute(2, 0, 1)[None].float().div_(255)
    square = torch.nn.functional.interpolate(
        pixels, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True
    )
    mean, deviation = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (_MEAN, _DEVIATION))
    return (square - mean) / deviation


def prompts_of(
    inputs: dict[str, Any], width: int, height: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Points, box and mask as the model takes them: coordinates in pixels of its square.

    Raises `InvalidInput` for what does not fit together.
    """
    in_pixels = bool(_or(inputs.get("normalize_coords"), True))
    scale = torch.tensor([SIDE / width, SIDE / height] if in_pixels else [SIDE, SIDE], device=device)
    made: dict[str, torch.Tensor] = {}
    points, labels = inputs.get("point_coords"), inputs.get("point_labels")
    if len(points or ()) != len(labels or ()):
        raise InvalidInput(
            f"point_labels has {len(labels or ())} items for the {len(points or ())} of point_coords",
            field="point_labels",
        )
    if points:
        made["input_points"] = _numbers("point_coords", points, (len(points), 2), device)[None, None] * scale
        made["input_labels"] = torch.tensor(labels, dtype=torch.int32, device=device)[None, None]
    if inputs.get("box") is not None:
        corners = _numbers("box", inputs["box"], (4,), device)
        made["input_boxes"] = (corners.view(2, 2) * scale).view(1, 1, 4)
    if inputs.get("mask_input") is not None:
        made["input_masks"] = _numbers("mask_input", inputs["mask_input"], (1, 256, 256), device)[None]
    return made


def _numbers(name: str, value: Any, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    try:
        array = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} is no list of numbers: {error}", field=name) from None
    if array.shape != shape or not np.isfinite(array).all():
        raise InvalidInput(
            f"{name} has the shape {list(array.shape)}; it must be {list(shape)}, of finite numbers",
            field=name,
        )
    return torch.from_numpy(array).to(device)


# -- out of it -----------------------------------------------------------------------------------------


def _answer(
    masks: Logits, scores: npt.NDArray[np.float32], small: Logits, form: str, as_logits: bool, weights: str
) -> Result:
    body: dict[str, Any] = {"scores": [round(float(score), 6) for score in scores], "weights": weights}
    inside = masks > 0
    if form == "rle":
        body["masks"] = [run_lengths(mask) for mask in inside]
        return Result(body)
    if form == "png":
        blobs = {f"mask{number}.png": as_png(mask) for number, mask in enumerate(inside)}
        body["masks"] = [{"blob": name} for name in blobs]
        return Result(body, blobs)
    body |= {"masks": {"blob": "masks.json"}, "logits": {"blob": "logits.json"}}
    return Result(
        body, {"masks.json": as_json(masks if as_logits else inside), "logits.json": as_json(small)}
    )


# -- loading -------------------------------------------------------------------------------------------


def _acquire(job: Job, models: ModelCache) -> Lease:
    assert job.store is not None
    store, device = job.store, job.device
    found = store.find(job.model)
    if found.kind != "transformers":
        raise InvalidInput(f"model {job.model} is no Segment Anything 2 ({found.kind})", field="model_id")
    # Half precision has no room for coordinates of up to 1024 pixels, and the model is small.
    dtype = torch.float32
    key = ModelKey(job.model, found.revision, loading.name_of(dtype), device, "sam2")

    def load(progress: LoadProgress) -> Loaded:
        from transformers import Sam2Model

        built = ensure_built(found, store)
        if _type_of(built.path) not in ("sam2", "sam2_video"):
            raise InvalidInput(f"model {job.model} is no Segment Anything 2", field="model_id")
        loaded = loading.load_transformers(
            built, Sam2Model, cache=store.roots.cache, device=device, dtype=dtype, progress=progress
        )
        return Loaded(loaded.model, memory.parts_of(loaded.model, name=str(key)), loaded.weights)

    size = partial(loading.expected_bytes, found, dtype)
    return models.acquire(key, load, size=size, cancel=job.check, on_progress=job.loading)


def _type_of(folder: Any) -> str:
    import json

    return str(json.loads((folder / "config.json").read_text()).get("model_type", ""))

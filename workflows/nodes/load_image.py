"""`LoadImage`: a reference picture from the operator's input folder."""

from __future__ import annotations

from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from workflows.model_files import FOLDERS, INPUT_FOLDER, file_in
from workflows.nodes.image import MAX_PIXELS
from workflows.nodes.stream import InputTypes

if TYPE_CHECKING:
    import torch
    from PIL import Image

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_MAX_LISTED = 10_000
_MAX_SEEN = 100_000
_MASK_SIDE = 64


class LoadImage:
    """IMAGE (B x H x W x 3, 0..1) and MASK (1 - alpha, B x H x W; 64 x 64 zeros without alpha) of a file.

    The file is named relative to `folder`, which it cannot leave.
    """

    CATEGORY = "image"
    DESCRIPTION = "Loads a picture from the input folder."
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"

    folder: ClassVar[Path | None] = None

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        # Without a folder there is none for any kind of file.
        folders = {} if cls.folder is None else {INPUT_FOLDER: str(cls.folder)}
        options = {"image_upload": True, FOLDERS: folders}
        return {"required": {"image": (_pictures_in(cls.folder), options)}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:  # noqa: N802
        try:
            cls.path_of(image)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:  # noqa: N802
        stat = cls.path_of(image).stat()
        return f"{stat.st_mtime_ns}:{stat.st_size}"

    @classmethod
    def path_of(cls, name: str) -> Path:
        """The file that ``name`` means. Raises `ValueError` when there is none inside the folder."""
        if cls.folder is None:
            raise ValueError(f"no input folder is set, so the picture {name!r} cannot be loaded")
        path = file_in(cls.folder, str(name).removesuffix(" [input]"))
        if path is None:
            raise ValueError(f"there is no picture {name!r} in the input folder")
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{name!r} is not a picture of a known kind ({', '.join(sorted(SUFFIXES))})")
        return path

    def load_image(self, image: str) -> tuple[torch.Tensor, torch.Tensor]:
        import torch
        from PIL import Image, ImageSequence

        pictures: list[torch.Tensor] = []
        masks: list[torch.Tensor] = []
        with Image.open(self.path_of(image)) as file:
            if file.width * file.height * getattr(file, "n_frames", 1) > MAX_PIXELS:
                raise ValueError(f"{image} has more than {MAX_PIXELS} pixels")
            for frame in ImageSequence.Iterator(file):
                picture, mask = _read(frame)
                if pictures and picture.shape != pictures[0].shape:
                    continue
                pictures.append(picture)
                masks.append(mask)
        return torch.stack(pictures), torch.stack(masks)


def _read(frame: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    import torch
    from PIL import ImageOps

    frame = ImageOps.exif_transpose(frame)
    if frame.mode in ("I", "I;16"):
        # Sixteen bits of grey; Pillow would cut them off at 255.
        frame = frame.point(lambda value: value * (1 / 256)).convert("L")
    has_alpha = "A" in frame.getbands() or "transparency" in frame.info
    rgba = np.asarray(frame.convert("RGBA" if has_alpha else "RGB"), dtype=np.float32) / 255
    picture = torch.from_numpy(np.ascontiguousarray(rgba[..., :3]))
    if not has_alpha:
        return picture, torch.zeros(_MASK_SIDE, _MASK_SIDE)
    return picture, 1 - torch.from_numpy(np.ascontiguousarray(rgba[..., 3]))


def _pictures_in(folder: Path | None) -> list[str]:
    if folder is None or not folder.is_dir():
        return []
    names = (
        path.relative_to(folder).as_posix()
        for path in islice(folder.rglob("*"), _MAX_SEEN)
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    return sorted(islice(names, _MAX_LISTED))


@lru_cache(maxsize=64)
def bound_to(folder: Path | None) -> Any:
    """A `LoadImage` class that reads from ``folder``; the same for all sessions, which share what it
    loads."""
    return type("LoadImage", (LoadImage,), {"folder": folder})

"""Uploaded pictures to pixels, and pixels to PNG files."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

from headrace.batch.errors import UnsupportedMedia
from stream.errors import HeadraceError, TooLarge

Pixels = npt.NDArray[np.uint8]
"""[height, width, 3], RGB."""

MAX_PIXELS = 32_000_000
"""Of an uploaded picture; checked before it is decoded."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""Pillow's names of what is taken. Others (EPS) are programs that another program runs."""


def read_picture(data: memoryview | bytes, field: str) -> Pixels:
    """The picture as it is to be looked at: turned as its EXIF data say, RGB, white where it is transparent.

    Raises `UnsupportedMedia` for what is no picture and `TooLarge` beyond `MAX_PIXELS`.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        Image.init()
        formats = [name for name in FORMATS if name in Image.OPEN]
        with Image.open(io.BytesIO(data), formats=formats) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise TooLarge(
                    f"{field} is {width} x {height}; {MAX_PIXELS} pixels are the limit", field=field
                )
            turned = ImageOps.exif_transpose(picture)
            if turned.mode.startswith("I"):
                # 16 bits of grey, of which a conversion would keep all above 255 as white.
                turned = Image.fromarray((np.asarray(turned).clip(0, 65535) >> 8).astype(np.uint8))
            if turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info:
                whole = turned.convert("RGBA")
                turned = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole)
            return np.array(turned.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise TooLarge(f"{field}: {error}; {MAX_PIXELS} pixels are the limit", field=field) from None
    except (HeadraceError, MemoryError):
        raise
    except UnidentifiedImageError:
        known = ", ".join(formats)
        raise UnsupportedMedia(
            f"{field} is not a picture that can be read; these are: {known}", field=field
        ) from None
    except Exception as error:  # noqa: BLE001 (decoders raise nearly anything for broken files)
        reason = str(error).partition("\n")[0][:200]
        raise UnsupportedMedia(f"{field} is not a picture that can be read: {reason}", field=field) from None


def png(pixels: Pixels) -> bytes:
    """A PNG file; compressed lightly, because it is on its way already."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=3)
    return file.getvalue()

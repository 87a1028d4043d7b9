"""Pictures to an MP4 file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from headrace.batch.pipelines.pictures import Pixels

QUALITY = 18
"""x264's constant rate factor: hardly told from the original."""
_INDEX_FIRST = {"movflags": "+faststart"}


def mp4(pictures: Sequence[Pixels], rate: int, threads: int = 1) -> bytes:
    """H.264 (4:2:0, BT.709, limited range) with ``rate`` pictures a second and its index first.

    All pictures have one size; odd sides lose nothing but gain a repeated line, as the format has even ones.
    """
    import av
    from av.video.reformatter import ColorRange, Colorspace

    height, width = pictures[0].shape[:2]
    height, width = height + height % 2, width + width % 2
    # A file of memory alone that has a name: the index is moved to the front by reading it once more.
    with (
        os.fdopen(os.memfd_create("video"), "rb") as file,
        av.open(f"/proc/self/fd/{file.fileno()}", "w", format="mp4", options=_INDEX_FIRST) as container,
    ):
        stream = container.add_stream("libx264", rate=Fraction(rate), options={"crf": str(QUALITY)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.thread_count = threads
        context.color_range = ColorRange.MPEG
        # BT.709 (H.273): what players take for pictures of this size when nobody says.
        context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1
        for picture in pictures:
            even = np.pad(
                picture, ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0)), "edge"
            )
            frame = av.VideoFrame.from_ndarray(even, format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        container.close()
        return file.read()

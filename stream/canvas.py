"""From what is to be shown to the picture that every rendition is made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from stream.codecs.convert import Converter
from stream.frames import Matrix, Picture, Timeline
from stream.overlay import Notice, OverlayPainter

FALLBACK_SIZE = (512, 512)


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture to encode at ``pts`` (output timeline); without ``picture`` the last one, or a ``notice``.

    ``source`` is the timestamp of the frame that it was made from, as the source counted (1/90000 s).
    ``painted``: whether ``picture`` is a notice already.
    """

    pts: int
    picture: Picture | None = None
    notice: Notice | None = None
    size: tuple[int, int] | None = None
    timeline: Timeline = field(default_factory=Timeline)
    source: int | None = None
    painted: bool = False

    @property
    def is_result(self) -> bool:
        return self.picture is not None

    @property
    def overlay(self) -> bool:
        return self.notice is not None or self.painted

    @property
    def repeat(self) -> bool:
        return self.picture is None and self.notice is None


class Canvas:
    """Holds the last result, paints notices on it, and keeps size and colours steady; for one thread.

    The first result settles matrix and range until the size changes; ``fixed_size``: the first picture's size
    holds to the end (a file's track cannot change it), and others are fitted between black bars.
    """

    def __init__(self, *, fixed_size: bool) -> None:
        self._fixed_size = fixed_size
        self._size: tuple[int, int] | None = None
        self._colours: tuple[Matrix, bool] | None = None
        self._last: Picture | None = None
        self._converter = Converter()
        self._painter = OverlayPainter()

    def draw(self, shown: Shown) -> Picture | None:
        """The picture as YUV 4:2:0; None when there is nothing yet that could be repeated."""
        if shown.notice is not None:
            width, height = self._size or shown.size or FALLBACK_SIZE
            return self._settled(self._painter.paint(self._last, width, height, shown.notice), keep=False)
        if shown.picture is None:
            return self._last
        self._last = self._settled(shown.picture, keep=True)
        return self._last

    def clear(self) -> None:
        """Forget the picture."""
        self._last = None

    def _settled(self, picture: Picture, *, keep: bool) -> Picture:
        size = (picture.width, picture.height)
        if self._size is not None and size != self._size:
            if self._fixed_size:
                picture = self._converter.scale(picture, *self._size, crop=False)
            else:
                self._size, self._colours, self._last = size, None, None
        self._size = self._size or size
        colours = self._colours or _colours_of(picture)
        if keep:
            # A notice's colours are those of whatever it was painted on.
            self._colours = colours
        return self._converter.to_yuv420p(picture, colours[0], colours[1])


def _colours_of(picture: Picture) -> tuple[Matrix, bool]:
    """Matrix and range of the YUV that is made of it."""
    return ("bt709", False) if picture.format == "rgb24" else (picture.matrix, picture.full_range)


class Scaler:
    """One picture in the sizes that its renditions ask for, each made once; for one thread."""

    def __init__(self) -> None:
        self._converter = Converter()

    def sizes_of(self, picture: Picture) -> Callable[[tuple[int, int]], Picture]:
        """What gives the picture in a size; what differs in proportion by rounding is cut off."""
        made = {(picture.width, picture.height): picture}

        def in_size(size: tuple[int, int]) -> Picture:
            if size not in made:
                made[size] = self._converter.scale(picture, *size)
            return made[size]

        return in_size

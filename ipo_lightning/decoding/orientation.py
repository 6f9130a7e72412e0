"""How frames are to be turned and mirrored, by what a file says of the camera that took it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from av import VideoFrame
from av.sidedata.sidedata import Type
from numpy.typing import NDArray

from ipo_lightning.errors import InputError


class Orientation(NamedTuple):
    """What puts a frame upright: its axes exchanged first, then mirrored."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def upright(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A frame (H, W, 3) as it is shown: (H, W, 3), or (W, H, 3) where it lay on its side."""
        if self.transpose:
            frame = frame.swapaxes(0, 1)
        return frame[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


AS_STORED = Orientation()
CLOCKWISE = {
    0: AS_STORED,
    90: Orientation(transpose=True, flip_x=True),
    180: Orientation(flip_x=True, flip_y=True),
    270: Orientation(transpose=True, flip_y=True),
}
"""By degrees, as the tag ``rotate`` has them."""


def orientation_of(frame: VideoFrame, tags: Mapping[str, str], path: Path) -> Orientation:
    """How a file is to be turned: by its display matrix, else by its tag ``rotate``.

    Args:
        frame: the first one; FFmpeg hands it the matrix of the container or of the codec.
        tags: of the stream.

    Raises:
        InputError: it is to be turned by another angle than quarter turns.
    """
    side_data: Any = frame.side_data
    matrix = side_data.get(Type.DISPLAYMATRIX)
    if matrix is not None:
        return _of_matrix(np.frombuffer(bytes(matrix), np.int32), path)
    tag = next((value for name, value in tags.items() if name.lower() == "rotate"), "0")
    try:
        degrees = float(tag)
    except ValueError:
        return AS_STORED
    if degrees % 360 not in CLOCKWISE:
        raise _slanted(path)
    return CLOCKWISE[round(degrees % 360)]


def _of_matrix(matrix: NDArray[np.int32], path: Path) -> Orientation:
    """Of (a, b, u, c, d, v, x, y, w): a pixel (x, y) is shown at (a x + c y, b x + d y).

    How much a matrix scales is not followed.
    """
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
    least = max(map(abs, (a, b, c, d))) / 100
    if not least:
        return AS_STORED  # all zero, which players pass over
    if abs(b) < least and abs(c) < least and min(abs(a), abs(d)) > least:
        return Orientation(False, a < 0, d < 0)
    if abs(a) < least and abs(d) < least and min(abs(b), abs(c)) > least:
        return Orientation(True, c < 0, b < 0)
    raise _slanted(path)


def _slanted(path: Path) -> InputError:
    return InputError(
        f"video {path}: it asks to be turned by another angle than quarter turns; turn its pixels "
        "(ffmpeg -i FILE NEW.mp4 does)"
    )

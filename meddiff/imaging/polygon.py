"""Which pixels of a plane lie inside closed polygons, by the even-odd rule, at a bounded cost."""

from collections.abc import Sequence

import numpy as np
from matplotlib.path import Path as Outline

BAND = 16  # columns of pixels that are tested against the edges near them only
MAX_TESTS = 2**35  # of a pixel against an edge, under a minute; a large structure set takes a tenth of it


class Filler:
    """Fills polygons on planes of one size, and stops where all of them together take more than MAX_TESTS."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape  # pixels (I, J)
        self.left = MAX_TESTS

    def even_odd(self, polygons: Sequence[np.ndarray]) -> np.ndarray:
        """Whether each pixel's centre is inside an odd number of the polygons, (I, J) bool.

        A polygon is (n, 2) float64 in indices, closed by itself; what of it lies beyond the plane is cut off. A centre on an
        edge counts for one of the two sides, the same one for all edges of that direction. ValueError past MAX_TESTS.
        """
        self._spend(self.shape[0] * self.shape[1])
        mask = np.zeros(self.shape, bool)
        for polygon in polygons:
            low = np.clip(np.ceil(polygon.min(0)), 0, self.shape).astype(int)
            high = np.clip(np.floor(polygon.max(0)) + 1, 0, self.shape).astype(int)
            for start in range(low[1], high[1], BAND):
                stop = min(start + BAND, int(high[1]))
                near = _near(polygon, start, stop - 1)
                centres = np.mgrid[low[0] : high[0], start:stop].reshape(2, -1).T.astype(np.float64)
                self._spend(len(near) * (len(centres) + BAND) + len(polygon))
                mask[low[0] : high[0], start:stop] ^= Outline(near).contains_points(centres).reshape(-1, stop - start)
        return mask

    def _spend(self, tests: int) -> None:
        self.left -= tests
        if self.left < 0:
            raise ValueError(f"filling its contours takes more than {MAX_TESTS} tests of a voxel against an edge")


def _near(polygon: np.ndarray, first: int, last: int) -> np.ndarray:
    """The polygon without the vertices that no edge into columns `first` to `last` has; inside the band it is the same."""
    side = np.sign(polygon[:, 1] - np.clip(polygon[:, 1], first, last))
    return polygon[(side == 0) | (side != np.roll(side, 1)) | (side != np.roll(side, -1))]

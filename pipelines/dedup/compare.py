"""The second comparison of two pictures with similar hashes: they are aligned, and their overlap is correlated.

The crop that the hash suggests is refined to the best affine fit. Two correlations are then taken over the overlap: of
the grey values, and of their fine structure (what is left without the low frequencies that the hash saw). Pictures that
merely have light and dark in the same places agree in the first but not in the second.

Source: Evangelidis and Psarakis, "Parametric Image Alignment Using Enhanced Correlation Coefficient Maximization",
2008.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.dedup.hashes import Picture, View

SIDE = 64
ROUNDS = 40
PRECISION = 1e-4
LEAST_OVERLAP = 0.5
BLUR = 3.0  # pixels of SIDE: coarser structure is not fine structure
LEAST_STRUCTURE = 1.0  # standard deviation below which a picture is too flat to compare
DEFAULT_THRESHOLD = 0.8


class Likeness(NamedTuple):
    """Correlations in −1 … 1, of grey values and of fine structure."""

    grey: float
    fine: float

    @property
    def score(self) -> float:
        """The smaller of the two, which is compared with the threshold."""
        return min(self.grey, self.fine)


NONE = Likeness(-1.0, -1.0)


def shrunk(picture: Picture) -> Picture:
    """Resizes a picture to the size at which pictures are stored and compared."""
    return np.asarray(cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def likeness(part: Picture, full: Picture, view: View, *, mirrored: bool) -> Likeness:
    """How similar a picture is to a crop of another one.

    Args:
        part: grey (64, 64); see ``shrunk``.
        full: grey (64, 64), of which ``part`` may show a crop.
        view: the crop that it seems to be, before mirroring.
        mirrored: ``part`` shows the crop mirrored.
    """
    if mirrored:
        part = part[:, ::-1]
    template, source = np.ascontiguousarray(part, dtype=np.float32), full.astype(np.float32)
    guess = np.array(
        [
            [view.right - view.left, 0.0, view.left * SIDE],
            [0.0, view.bottom - view.top, view.top * SIDE],
        ],
        dtype=np.float32,
    )
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ROUNDS, PRECISION)
    everywhere = np.full((SIDE, SIDE), 255, dtype=np.uint8)
    try:
        _, fit = cv2.findTransformECC(template, source, guess.copy(), cv2.MOTION_AFFINE, stop, everywhere, 3)
    except cv2.error:  # it did not converge: keep the initial guess
        fit = guess
    return max(_measured(template, source, np.asarray(one, dtype=np.float32)) for one in (fit, guess))


def _measured(template: NDArray[np.float32], source: NDArray[np.float32], fit: NDArray[np.float32]) -> Likeness:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = np.asarray(
        cv2.warpAffine(source, fit, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE), dtype=np.float32
    )
    ones = np.ones((SIDE, SIDE), dtype=np.float32)
    seen = cv2.warpAffine(ones, fit, (SIDE, SIDE), flags=flags, borderValue=(0.0,)) > 0.5
    if seen.mean() < LEAST_OVERLAP:
        return NONE
    grey = _correlation(template[seen], moved[seen])
    fine = [image - np.asarray(cv2.GaussianBlur(image, (0, 0), BLUR), dtype=np.float32) for image in (template, moved)]
    deviations = [float(image[seen].std()) for image in fine]
    if max(deviations) < LEAST_STRUCTURE:
        return Likeness(grey, grey)
    return Likeness(grey, _correlation(fine[0][seen], fine[1][seen]))


def _correlation(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    left, right = left - left.mean(), right - right.mean()
    size = float(np.sqrt((left * left).sum() * (right * right).sum()))
    return float((left * right).sum()) / size if size > 0 else -1.0

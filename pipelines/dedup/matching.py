"""From prints to pairs: exact copies, candidates by hash, and the detailed comparison of each candidate.

The two pictures of a candidate are aligned, and their overlap is correlated. The crop that the hash suggests is refined
to the best affine fit. Two correlations are then taken over the overlap: of the grey values, and of their fine
structure (the picture without the low frequencies that the hash saw). Pictures that merely have light and dark in the
same places agree in the first but not in the second. Pictures that agree in both must also have the same colours,
unless one of them has none, as a grey copy.

Source: Evangelidis and Psarakis, "Parametric Image Alignment Using Enhanced Correlation Coefficient Maximization",
2008.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.dedup.prints import COARSE_VIEWS, SIDE, VIEWS, Prints, Thumbnail, View
from pipelines.dedup.search import near_pairs
from pipelines.runs.processes import Progress

ROUNDS = 40
PRECISION = 1e-4
LEAST_OVERLAP = 0.5
BLUR = 3.0  # pixels of SIDE: coarser structure is not fine structure
LEAST_STRUCTURE = 1.0  # standard deviation below which a picture is too flat to compare
DEFAULT_THRESHOLD = 0.8
NO_COLOUR = 128  # the level of Cr and Cb in a grey picture
MOST_OF_GREY = 3  # levels of Cr and Cb that a grey picture may have, since files are rounded
WEAK_COLOUR = 4.0  # levels: the distance of weaker colours is a share of this, since it may be noise
MOST_COLOUR = 0.5  # distance above which two pictures differ in colour: copies have up to 0.4, other hues 0.6 and more
RADIUS = 10
VIEWS_TRIED = 2  # of a candidate, the nearest ones


class Likeness(NamedTuple):
    """How two pictures agree where they overlap.

    Attributes:
        grey: correlation of the grey values, −1 … 1.
        fine: correlation of the fine structure, −1 … 1.
        colour: distance of their colours as a share of the stronger ones, 0 … 2; 0 if one of them has no colours.
    """

    grey: float
    fine: float
    colour: float

    @property
    def score(self) -> float:
        """The smaller of the two, which is compared with the threshold."""
        return min(self.grey, self.fine)


NONE = Likeness(-1.0, -1.0, 0.0)


def likeness(part: Thumbnail, full: Thumbnail, view: View, *, mirrored: bool) -> Likeness:
    """How similar a picture is to a crop of another one.

    Args:
        part: the picture.
        full: the one of which ``part`` may show a crop.
        view: the crop that it seems to be, before mirroring.
        mirrored: ``part`` shows the crop mirrored.
    """
    if mirrored:
        part = Thumbnail(part.grey[:, ::-1], part.colours[:, ::-1])
    template, source = np.ascontiguousarray(part.grey, dtype=np.float32), full.grey.astype(np.float32)
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
    return max(_measured(part, full, np.asarray(one, dtype=np.float32)) for one in (fit, guess))


def _measured(part: Thumbnail, full: Thumbnail, fit: NDArray[np.float32]) -> Likeness:
    template = part.grey.astype(np.float32)
    moved = _moved(full.grey.astype(np.float32), fit)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    ones = np.ones((SIDE, SIDE), dtype=np.float32)
    seen = cv2.warpAffine(ones, fit, (SIDE, SIDE), flags=flags, borderValue=(0.0,)) > 0.5
    if seen.mean() < LEAST_OVERLAP:
        return NONE
    grey, colour = _correlation(template[seen], moved[seen]), _colour_distance(part, full, fit, seen)
    fine = [image - np.asarray(cv2.GaussianBlur(image, (0, 0), BLUR), dtype=np.float32) for image in (template, moved)]
    deviations = [float(image[seen].std()) for image in fine]
    if max(deviations) < LEAST_STRUCTURE:
        return Likeness(grey, grey, colour)
    return Likeness(grey, _correlation(fine[0][seen], fine[1][seen]), colour)


def _moved(picture: NDArray[np.float32], fit: NDArray[np.float32]) -> NDArray[np.float32]:
    """A picture of 64 × 64 as the affine map places it over the other one."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(picture, fit, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, dtype=np.float32)


def _colour_distance(part: Thumbnail, full: Thumbnail, fit: NDArray[np.float32], seen: NDArray[np.bool_]) -> float:
    """See ``Likeness.colour``; over the overlap, bool (64, 64), since one picture may be a crop."""
    pair = [one.colours.astype(np.float32) - NO_COLOUR for one in (part, full)]
    if min(float(np.abs(colours).max()) for colours in pair) <= MOST_OF_GREY:
        return 0.0
    own, other = (np.asarray(cv2.resize(one, (SIDE, SIDE)), dtype=np.float32) for one in pair)
    own, other = own[seen], _moved(other, fit)[seen]
    stronger = np.maximum(np.linalg.norm(own, axis=-1), np.linalg.norm(other, axis=-1))
    return float(np.linalg.norm(own - other, axis=-1).mean() / max(stronger.mean(), WEAK_COLOUR))


def _correlation(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    left, right = left - left.mean(), right - right.mean()
    size = float(np.sqrt((left * left).sum() * (right * right).sum()))
    return float((left * right).sum()) / size if size > 0 else -1.0


@dataclass(frozen=True)
class Candidate:
    """Two images to compare: one may show a crop of the other."""

    upstream: int
    test: int
    view: View
    mirrored: bool
    test_is_part: bool


@dataclass(frozen=True)
class Match:
    """An upstream image that shows a test image.

    Attributes:
        upstream: its place among the images that were looked at.
        test: the test image's place.
        score: similarity; 1 for an exact copy.
        how: "exact copy", or what the near-duplicate is.
    """

    upstream: int
    test: int
    score: float
    how: str


class TestSide:
    """The test images, prepared for search.

    Args:
        prints: of the test sets, concatenated; hashes of ``VIEWS`` and their mirror images.
    """

    __test__ = False  # no test class

    def __init__(self, prints: Prints) -> None:
        self.prints = prints
        self._first_of: dict[bytes, int] = {}
        for index, row in enumerate(prints.content):
            self._first_of.setdefault(row.tobytes(), index)
        usable = np.flatnonzero(prints.usable)
        self.view_hashes = prints.hashes[usable].reshape(-1)
        self.view_owner = np.repeat(usable, prints.hashes.shape[1])
        self.view_number = np.tile(np.arange(prints.hashes.shape[1]), len(usable))
        self.is_whole = self.view_number % len(VIEWS) == 0

    def exact(self, content: NDArray[np.uint64]) -> Iterator[Match]:
        """Upstream images with the pixels of a test image, or the bytes if they cannot be decoded."""
        for index, row in enumerate(content):
            test = self._first_of.get(row.tobytes())
            if test is not None:
                yield Match(index, test, 1.0, "exact copy")

    def candidates(self, upstream: Prints, radius: int = RADIUS) -> list[Candidate]:
        """Pairs with similar hashes, each with its nearest views."""
        usable = np.flatnonzero(upstream.usable)
        found: list[NDArray[np.int64]] = []
        for query, stored, far in near_pairs(upstream.hashes[usable, 0], self.view_hashes, radius):
            rows = [usable[query], self.view_owner[stored], far, self.view_number[stored], np.zeros_like(query)]
            found.append(np.stack([row.astype(np.int64) for row in rows], axis=1))
        num_coarse = len(COARSE_VIEWS)
        wholes = np.flatnonzero(self.is_whole)
        crops = upstream.hashes[usable, 1:].reshape(-1)
        for query, stored, far in near_pairs(crops, self.view_hashes[wholes], radius):
            place = wholes[stored]
            view = query % (num_coarse - 1) + 1 + num_coarse * (self.view_number[place] // len(VIEWS))
            rows = [usable[query // (num_coarse - 1)], self.view_owner[place], far, view, np.ones_like(query)]
            found.append(np.stack([row.astype(np.int64) for row in rows], axis=1))
        if not found:
            return []
        rows = np.unique(np.concatenate(found), axis=0)
        rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
        new = np.concatenate([[True], np.any(rows[1:, :2] != rows[:-1, :2], axis=1)])
        starts = np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))
        return [_candidate(*row) for row in rows[np.arange(len(rows)) - starts < VIEWS_TRIED].tolist()]


def _candidate(upstream: int, test: int, _: int, view: int, test_is_part: int) -> Candidate:
    views = COARSE_VIEWS if test_is_part else VIEWS
    return Candidate(upstream, test, views[view % len(views)], view >= len(views), bool(test_is_part))


@dataclass(frozen=True)
class Looking:
    """The arguments that all comparisons share. Only the pictures of candidates are compared."""

    threshold: float


Look = tuple[Candidate, Thumbnail, Thumbnail]


def look(shared: Looking, looks: list[Look], progress: Progress) -> list[Match]:
    """Compares the pictures of candidates (upstream, test); returns the confirmed ones."""
    matches = []
    for candidate, upstream, test in looks:
        part, full = (test, upstream) if candidate.test_is_part else (upstream, test)
        found = likeness(part, full, candidate.view, mirrored=candidate.mirrored)
        if found.score >= shared.threshold and found.colour <= MOST_COLOUR:
            matches.append(Match(candidate.upstream, candidate.test, found.score, _in_words(candidate)))
        progress(1)
    return matches


def _in_words(candidate: Candidate) -> str:
    side = candidate.view.right - candidate.view.left
    crop = "" if side > 0.95 else "the test image is a crop of it" if candidate.test_is_part else "cropped"
    details = ", ".join(filter(None, [crop, "mirrored" if candidate.mirrored else ""]))
    return f"near-duplicate ({details})" if details else "near-duplicate"

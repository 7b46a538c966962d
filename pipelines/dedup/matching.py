"""From prints to pairs: exact copies, candidates by hash, and the detailed comparison of each candidate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.dedup.compare import likeness
from pipelines.dedup.hashes import COARSE_VIEWS, VIEWS, View
from pipelines.dedup.prints import Prints
from pipelines.dedup.search import near_pairs
from pipelines.runs.pool import Progress

RADIUS = 10
VIEWS_TRIED = 2  # of a candidate, the nearest ones


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
        """Upstream images with the bytes of a test image."""
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


Look = tuple[Candidate, NDArray[np.uint8], NDArray[np.uint8]]


def look(shared: Looking, looks: list[Look], progress: Progress) -> list[Match]:
    """Compares the pictures of candidates (upstream, test); returns the confirmed ones."""
    matches = []
    for candidate, upstream, test in looks:
        part, full = (test, upstream) if candidate.test_is_part else (upstream, test)
        found = likeness(part, full, candidate.view, mirrored=candidate.mirrored)
        if found.score >= shared.threshold:
            matches.append(Match(candidate.upstream, candidate.test, found.score, _in_words(candidate)))
        progress(1)
    return matches


def _in_words(candidate: Candidate) -> str:
    side = candidate.view.right - candidate.view.left
    crop = "" if side > 0.95 else "the test image is a crop of it" if candidate.test_is_part else "cropped"
    details = ", ".join(filter(None, [crop, "mirrored" if candidate.mirrored else ""]))
    return f"near-duplicate ({details})" if details else "near-duplicate"

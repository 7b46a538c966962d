"""Numbers → matplotlib figures, in the size in which a paper prints them. One column per checkpoint.

Legend: N patches of a grid (h, w) · P patch side · A heads · L blocks.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Array = NDArray[Any]

GAP = 1  # pixels between the tiles of a mosaic
FILTER_COLUMNS = 7
MAX_HEADS = 16
TEXT_WIDTH = 6.75  # inches: both columns of a conference paper
COLUMN_WIDTH = 3.25  # of one column
PHOTO_COLUMNS = 4  # photos and maps beside each other, if there are few checkpoints
CHARACTERS_PER_INCH = 13  # of a title
DPI = 300
matplotlib.rcParams["svg.hashsalt"] = "vit"  # the same data gives the same file
matplotlib.rcParams.update({
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "figure.titlesize": 9, "legend.fontsize": 8,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.linewidth": 0.6, "savefig.pad_inches": 0.02,
})  # fmt: skip


class Shown(NamedTuple):
    """A photo in its own resolution, and the same lit by attention; the names of its class and of the prediction."""

    photo: Array
    lit: Array
    truth: str
    predicted: str


def mosaic(tiles: Array, columns: int, background: float = 1.0) -> Array:
    """Tiles (n, h, w, ·) in rows of ``columns``, with gaps between them."""
    count, height, width = tiles.shape[:3]
    rows = -(-count // columns)
    sheet = np.full(
        (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, *tiles.shape[3:]), background, dtype=np.float32
    )
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * (height + GAP), (index % columns) * (width + GAP)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def _columns(labels: Sequence[str], width: float, aspect: float, room: float = 0.5) -> tuple[Figure, list[Any]]:
    """A row of axes.

    Args:
        labels: a title for each.
        width: of the figure, in inches; each of the axes takes at most a column of a paper.
        aspect: height of the axes over their width.
        room: for titles and labels, in inches.
    """
    width = min(width, COLUMN_WIDTH * len(labels))
    size = (width, aspect * width / len(labels) + room)
    figure, axes = plt.subplots(1, len(labels), figsize=size, squeeze=False, layout="constrained")
    for axis, label in zip(axes[0], labels, strict=True):
        axis.set_title(label)
    return figure, list(axes[0])


def draw_filters(filters: Mapping[str, Array], width: float = TEXT_WIDTH) -> Figure:
    """RGB filters of the patch embedding: the first principal components, the strongest at the top left."""
    figure, axes = _columns(list(filters), width, 0.6)
    for axis, tiles in zip(axes, filters.values(), strict=True):
        axis.imshow(mosaic(tiles, FILTER_COLUMNS), interpolation="nearest")
        axis.set_axis_off()
    figure.suptitle("RGB embedding filters (principal components)")
    return figure


def draw_similarity(similarities: Mapping[str, Array], width: float = TEXT_WIDTH) -> Figure:
    """A map for each patch, at its position: the similarity of its position embedding to every other one."""
    figure, axes = _columns(list(similarities), width, 0.85)
    image: Any = None
    for axis, maps in zip(axes, similarities.values(), strict=True):
        rows, columns = maps.shape[:2]
        sheet = mosaic(maps.reshape(rows * columns, *maps.shape[2:]), columns, background=np.nan)
        image = axis.imshow(sheet, vmin=-1, vmax=1, cmap="viridis", interpolation="nearest")
        height, width = maps.shape[2:]
        axis.set_xticks([(width + GAP) * index + (width - 1) / 2 for index in (0, columns - 1)], ["1", str(columns)])
        axis.set_yticks([(height + GAP) * index + (height - 1) / 2 for index in (0, rows - 1)], ["1", str(rows)])
        axis.set_xlabel("input patch column")
        axis.set_ylabel("input patch row")
    figure.colorbar(image, ax=axes, label="cosine similarity", shrink=0.8)
    figure.suptitle("Position embedding similarity")
    return figure


def draw_distance(distances: Mapping[str, Array], width: float = TEXT_WIDTH) -> Figure:
    """A dot for each head: mean attention distance in pixels by depth."""
    figure, axes = _columns(list(distances), width, 0.75)
    highest = max(float(values.max()) for values in distances.values())
    for axis, values in zip(axes, distances.values(), strict=True):
        depth, heads = values.shape
        axis.scatter(np.repeat(np.arange(depth), heads), values.ravel(), s=9, c=np.tile(np.arange(heads), depth))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylim(0, 1.05 * highest)
        axis.set_xlabel("network depth (block)")
        axis.set_ylabel("mean attention distance (pixels)")
        axis.grid(alpha=0.3)
    figure.suptitle("Attention distance, a dot for each head")
    return figure


def draw_rollout(shown: Mapping[str, Sequence[Shown]], width: float = TEXT_WIDTH) -> Figure:
    """Each photo with its class, and next to it for each checkpoint the photo lit by attention, with the prediction.

    Args:
        shown: label of a checkpoint → its photos, the same ones for each.
        width: of the figure, in inches.
    """
    photos, columns = next(iter(shown.values())), 1 + len(shown)
    per_row = max(1, PHOTO_COLUMNS // columns)
    figure, axes = _grid([photos[start : start + per_row] for start in range(0, len(photos), per_row)], columns, width)
    for index, one in enumerate(photos):
        places = axes[index // per_row][index % per_row * columns :]
        _show(places[0], one.photo, "input" if index < per_row else "", one.truth and f"label: {one.truth}")
        for place, (label, several) in zip(places[1:], shown.items(), strict=False):
            best = several[index].predicted
            _show(place, several[index].lit, label if index < per_row else "", best and f"predicted: {best}")
    figure.suptitle("Attention rollout")
    return figure


def _show(axis: Any, image: Array, *title: str) -> None:
    """An image below its title, in lines that fit."""
    most = max(10, round(axis.figure.get_figwidth() / axis.get_gridspec().ncols * CHARACTERS_PER_INCH))
    axis.imshow(image)
    axis.set_title("\n".join(textwrap.fill(line, most) for line in title if line))


def draw_heads(photos: Sequence[Shown], maps: Array, label: str, width: float = TEXT_WIDTH) -> Figure:
    """Each photo, and where each head of the last block looks."""
    heads = min(maps.shape[1], MAX_HEADS)
    figure, axes = _grid([[one] for one in photos], heads + 1, width)
    for row, one in enumerate(photos):
        axes[row][0].imshow(one.photo)
        height, width_px = one.photo.shape[:2]
        for head in range(heads):
            extent = (0, width_px, height, 0)
            axes[row][head + 1].imshow(maps[row, head], cmap="magma", interpolation="bilinear", extent=extent)
    for column, title in enumerate(["input", *(f"{head + 1}" for head in range(heads))]):
        axes[0][column].set_title(title)
    figure.suptitle(f"Attention of the heads of the last block: {label}")
    return figure


def _grid(rows: Sequence[Sequence[Shown]], columns: int, width: float) -> tuple[Figure, Any]:
    """Axes without frames: ``columns`` for each photo of a row, which is as high as its highest photo."""
    shapes = [max(one.photo.shape[0] / one.photo.shape[1] for one in row) for row in rows]
    columns *= max(map(len, rows))
    room = 0.4  # inches for the titles of a row
    side = (width - 0.05 * columns) / columns
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(width, sum(side * shape + room for shape in shapes) + room),
        height_ratios=shapes,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.ravel():
        axis.set_axis_off()
    return figure, axes


def draw_curves(
    curves: Mapping[str, Mapping[float, Sequence[float]]], xlabel: str, ylabel: str, *, log_x: bool = True
) -> Figure:
    """A curve for each name: the mean of the values at each x, with their sample standard deviation as bars.

    Args:
        curves: name → x → values, one for each seed.
        xlabel, ylabel: of the axes.
        log_x: a logarithmic x axis, with a tick at each x.
    """
    figure, axis = plt.subplots(figsize=(5.0, 3.4), layout="constrained")
    for name, points in curves.items():
        places = sorted(points)
        means = [float(np.mean(points[x])) for x in places]
        spreads = [float(np.std(points[x], ddof=1)) if len(points[x]) > 1 else 0.0 for x in places]
        axis.errorbar(places, means, yerr=spreads, marker="o", capsize=3, label=name)
    if log_x:
        places = sorted({x for points in curves.values() for x in points})
        axis.set_xscale("log")
        axis.set_xticks(places, [f"{x:,.0f}" for x in places])
        axis.minorticks_off()
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def encode(figure: Figure, suffix: str) -> bytes:
    """The figure as a PNG or an SVG file; closes nothing."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if suffix == "svg" else None
    figure.savefig(buffer, format=suffix, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def close(figure: Figure) -> None:
    """Frees a figure."""
    plt.close(figure)

"""Numbers → matplotlib figures. One column per checkpoint, so that several are side by side.

Legend: N patches of a grid (h, w) · P patch side · A heads · L blocks.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

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
DPI = 150
matplotlib.rcParams["svg.hashsalt"] = "vit"  # the same data gives the same file


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


def _columns(labels: Sequence[str], height: float = 3.4) -> tuple[Figure, list[Any]]:
    figure, axes = plt.subplots(
        1, len(labels), figsize=(3.4 * len(labels) + 0.6, height), squeeze=False, layout="constrained"
    )
    for axis, label in zip(axes[0], labels, strict=True):
        axis.set_title(label, fontsize=9)
    return figure, list(axes[0])


def draw_filters(filters: Mapping[str, Array]) -> Figure:
    """RGB filters of the patch embedding: the first principal components, the strongest at the top left."""
    figure, axes = _columns(list(filters), height=2.6)
    for axis, tiles in zip(axes, filters.values(), strict=True):
        axis.imshow(mosaic(tiles, FILTER_COLUMNS), interpolation="nearest")
        axis.set_axis_off()
    figure.suptitle("RGB embedding filters (principal components)", fontsize=10)
    return figure


def draw_similarity(similarities: Mapping[str, Array]) -> Figure:
    """A map for each patch, at its position: the similarity of its position embedding to every other one."""
    figure, axes = _columns(list(similarities))
    image: Any = None
    for axis, maps in zip(axes, similarities.values(), strict=True):
        rows, columns = maps.shape[:2]
        sheet = mosaic(maps.reshape(rows * columns, *maps.shape[2:]), columns, background=np.nan)
        image = axis.imshow(sheet, vmin=-1, vmax=1, cmap="viridis", interpolation="nearest")
        height, width = maps.shape[2:]
        axis.set_xticks([(width + GAP) * index + (width - 1) / 2 for index in (0, columns - 1)], ["1", str(columns)])
        axis.set_yticks([(height + GAP) * index + (height - 1) / 2 for index in (0, rows - 1)], ["1", str(rows)])
        axis.set_xlabel("input patch column", fontsize=8)
        axis.set_ylabel("input patch row", fontsize=8)
    figure.colorbar(image, ax=axes, label="cosine similarity", shrink=0.8)
    figure.suptitle("Position embedding similarity", fontsize=10)
    return figure


def draw_distance(distances: Mapping[str, Array]) -> Figure:
    """A dot for each head: mean attention distance in pixels by depth."""
    figure, axes = _columns(list(distances))
    highest = max(float(values.max()) for values in distances.values())
    for axis, values in zip(axes, distances.values(), strict=True):
        depth, heads = values.shape
        axis.scatter(np.repeat(np.arange(depth), heads), values.ravel(), s=9, c=np.tile(np.arange(heads), depth))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylim(0, 1.05 * highest)
        axis.set_xlabel("network depth (block)", fontsize=8)
        axis.set_ylabel("mean attention distance (pixels)", fontsize=8)
        axis.grid(alpha=0.3)
    figure.suptitle("Attention distance, a dot for each head", fontsize=10)
    return figure


def draw_rollout(pixels: Sequence[Array], maps: Mapping[str, Array]) -> Figure:
    """Each image, and next to it for each checkpoint the image lit where attention reaches it."""
    rows, columns = len(pixels), 1 + len(maps)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.9 * columns, 1.9 * rows + 0.4), squeeze=False, layout="constrained"
    )
    for row, image in enumerate(pixels):
        axes[row][0].imshow(image)
        for column, values in enumerate(maps.values(), start=1):
            axes[row][column].imshow(_lit(image, values[row]))
    for column, title in enumerate(["input", *maps]):
        axes[0][column].set_title(title, fontsize=9)
    for axis in axes.ravel():
        axis.set_axis_off()
    figure.suptitle("Attention rollout", fontsize=10)
    return figure


def draw_heads(pixels: Sequence[Array], maps: Array, label: str) -> Figure:
    """Each image, and where each head of the last block looks."""
    rows, heads = len(pixels), min(maps.shape[1], MAX_HEADS)
    figure, axes = plt.subplots(
        rows, heads + 1, figsize=(1.1 * (heads + 1), 1.1 * rows + 0.5), squeeze=False, layout="constrained"
    )
    for row, image in enumerate(pixels):
        axes[row][0].imshow(image)
        for head in range(heads):
            axes[row][head + 1].imshow(maps[row, head], cmap="magma", interpolation="nearest")
    for column, title in enumerate(["input", *(f"head {head + 1}" for head in range(heads))]):
        axes[0][column].set_title(title, fontsize=7)
    for axis in axes.ravel():
        axis.set_axis_off()
    figure.suptitle(f"Attention of the last block: {label}", fontsize=10)
    return figure


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


def _lit(image: Array, attention: Array) -> Array:
    """The image, dark where there is little attention."""
    scaled = attention / max(float(attention.max()), 1e-12)
    height, width = image.shape[:2]
    # Nearest neighbours: one number per patch lights all of its pixels.
    rows = np.minimum(np.arange(height) * scaled.shape[0] // height, scaled.shape[0] - 1)
    columns = np.minimum(np.arange(width) * scaled.shape[1] // width, scaled.shape[1] - 1)
    light = 0.15 + 0.85 * scaled[np.ix_(rows, columns)]
    return np.clip(image / 255 * light[..., None], 0, 1)


def encode(figure: Figure, suffix: str) -> bytes:
    """The figure as a PNG or an SVG file; closes nothing."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if suffix == "svg" else None
    figure.savefig(buffer, format=suffix, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def close(figure: Figure) -> None:
    """Frees a figure."""
    plt.close(figure)

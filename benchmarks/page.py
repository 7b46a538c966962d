"""The page of the benchmarks, from their last results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

INTRODUCTION = """\
# Benchmarks

What the docs claim of speed, memory and recall, measured by one command each. This page is written by

```sh
make bench
make bench BENCH="--only engine memory"
make bench BENCH="--photos DIR"
```

after each benchmark; what was not run again keeps its figures and its date. Libraries that are compared take turns in \
every round, and the median of the rounds counts, so that a slow minute of the machine hits all; ratios mean more than \
rates where the load average at the start was not near 0.
"""
Rows = Iterator[tuple[str, ...]]


@dataclass(frozen=True)
class Section:
    """How a benchmark is shown: what it is for, the heads of its table and how its rows come from its result."""

    about: str
    heads: tuple[str, ...]
    rows: Callable[[Mapping[str, Any]], Rows]


def train_step(result: Mapping[str, Any]) -> Rows:
    """A row for each library and precision."""
    for precision in ("fp32", "bf16"):
        for name, row in result.get(precision, {}).get("libraries", {}).items():
            rate, share, kept = row["images_per_s"], row["gemm_fraction"], row["kept_mib"]
            yield (precision, name.replace("_", " "), f"{rate:.2f}", f"{share:.1%}", f"{kept:,.1f}")
        if (ratio := result.get(f"ratio_fastest_peer_{precision}")) is not None:
            yield precision, "**ours over the fastest other**", f"**{ratio:.3f}**", "", ""


def engine(result: Mapping[str, Any]) -> Rows:
    """A row for each figure."""
    low, high = result["overhead_quartiles"]
    yield (
        "our step over the bare DeepSpeed loop's, median (quartiles)",
        f"**{result['overhead']:.3f}** ({low:.3f}, {high:.3f})",
    )
    yield "our step, the bare loop's", f"{result['step_s']:.3f} s, {result['bare_step_s']:.3f} s"
    yield "a save stops the training, written in the background", f"{result['checkpoint_stall_async_s']:.3f} s"
    yield "a save stops the training, standing still", f"{result['checkpoint_stall_sync_s']:.3f} s"
    yield "state of a rank", f"{result['state_mib_per_rank']:,.0f} MiB"
    yield "a checkpoint is checked, loaded and verified in", f"{result['resume_s']:.2f} s"


def memory(result: Mapping[str, Any]) -> Rows:
    """A row for each policy."""
    for policy, row in result["policies"].items():
        kept, said = row["kept_mib_per_image"], row["analytic_mib_per_image"]
        yield policy, f"{kept:,.1f}", f"{said:,.1f}", f"{row['seconds']:.2f}", f"{row['recomputed_share']:.0%}"


def loader(result: Mapping[str, Any]) -> Rows:
    """A row for each loader, size of the photos and number of workers."""
    for case, rows in result.items():
        size, _, workers = case.rpartition("_")
        if size not in ("original", "256"):
            continue
        for name, row in rows.items():
            yield (
                size,
                workers,
                name.replace("_", " "),
                f"{row['images_per_cpu_s']:,.0f}",
                f"{row['images_per_s']:,.0f}",
            )
    for name, title in (
        ("ratio_fastest_peer", "ours over the fastest other"),
        ("ratio_stock_webdataset", "ours over stock webdataset"),
    ):
        if name in result:
            yield "original", "1", f"**{title}**", f"**{result[name]:.2f}**", ""
    for name, reason in result.get("missing", {}).items():
        yield "", "", name.replace("_", " "), f"not measured: {reason}", ""


def dedup(result: Mapping[str, Any]) -> Rows:
    """A row for each change, and what was found beside the planted."""
    for change, share in result["recall"].items():
        yield change, f"{share:.1%}"
    yield f"other images, of {result['num_others']:,}, that were called a copy", str(result["others_found"])
    yield "test images, each planted once per change", str(result["num_test"])


def nothing(result: Mapping[str, Any]) -> Rows:
    """It writes a page of its own."""
    yield from ()


SECTIONS: dict[str, Section] = {
    "engine": Section(
        "Cost of our loop, a save and a resume beside the bare DeepSpeed loop ([checkpoints](checkpoints.md)).",
        ("", "measured"),
        engine,
    ),
    "train_step": Section(
        "One step of our ViT against timm, torchvision and Hugging Face ([models](models.md)). The share is of the "
        "machine's own matrix product of the MLP's shape.",
        ("precision", "library", "images/s", "share of the product", "MiB kept for backward"),
        train_step,
    ),
    "memory": Section(
        "Activations that each checkpointing policy keeps, beside the cost model's estimate ([models](models.md)).",
        ("policy", "MiB kept an image", "cost model", "s/step", "computed again"),
        memory,
    ),
    "loader": Section(
        "Our loader against those that people use, on the same JPEG bytes ([speed](data_speed.md)).",
        ("photos", "workers", "loader", "images per CPU-second", "images/s"),
        loader,
    ),
    "dedup": Section(
        "Copies of test images, planted among others, that are found ([de-duplicate](dedup.md)).",
        ("change", "found"),
        dedup,
    ),
    "transfer": Section(
        "Pretrain, transfer, compare, at a small scale; its tables have a page of their own.", (), nothing
    ),
}


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, with a section for each benchmark that has a result."""
    parts = [INTRODUCTION]
    for name, found in results.items():
        section = SECTIONS[name]
        rows = list(section.rows(found["result"])) if found["result"] else []
        parts.append(f"## {name}\n\n{section.about}\n")
        if found.get("quick"):
            parts.append("**At a small size, which says only that it runs.**\n")
        if rows:
            parts.append(
                "\n".join([_line(section.heads), _line(["---"] * len(section.heads)), *map(_line, rows)]) + "\n"
            )
        versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
        when = f"{found['date']}, {found['seconds']:.0f} s, load average {found['load_average']} at the start"
        parts.append(f"`{found['command']}` · {when} · {found['machine']} · {versions}\n")
    return "\n".join(parts)


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"

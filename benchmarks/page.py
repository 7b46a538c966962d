"""Renders docs/benchmarks.md from the last results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

INTRODUCTION = """\
# Benchmarks

The speed, memory and recall that the docs claim, each measured by one command. This page is written by

```sh
make bench
make bench BENCH="--only engine memory"
make bench BENCH="--photos DIR"
```

after each benchmark. A benchmark that is not rerun keeps its figures and their date. Compared libraries run \
interleaved, and the median of the rounds is reported, so that a slow minute of the machine affects all of them. \
Trust ratios more than rates where the load average at the start was not near 0.
"""
Rows = Iterator[tuple[str, ...]]


@dataclass(frozen=True)
class Section:
    """How a benchmark is shown: its purpose, the table's headings, and a function from its result to rows."""

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
            yield precision, "**ours / fastest other library**", f"**{ratio:.3f}**", "", ""


def optimizers(result: Mapping[str, Any]) -> Rows:
    """A row for each optimiser and library."""
    for name, libraries in result["optimizers"].items():
        for library, row in libraries.items():
            yield f"`{name}`", library, f"{row['ms']:.1f}", f"{row['slowest_ms']:,.1f}", f"{row['state_mib']:,.1f}"


def engine(result: Mapping[str, Any]) -> Rows:
    """A row for each figure."""
    low, high = result["overhead_quartiles"]
    yield (
        "step time relative to the bare DeepSpeed loop, median (quartiles)",
        f"**{result['overhead']:.3f}** ({low:.3f}, {high:.3f})",
    )
    yield "step time of our loop, of the bare loop", f"{result['step_s']:.3f} s, {result['bare_step_s']:.3f} s"
    yield "training stopped by a save in the background", f"{result['checkpoint_stall_async_s']:.3f} s"
    yield "training stopped by a blocking save", f"{result['checkpoint_stall_sync_s']:.3f} s"
    yield "state per rank", f"{result['state_mib_per_rank']:,.0f} MiB"
    yield "time to check, load and verify a checkpoint", f"{result['resume_s']:.2f} s"


def memory(result: Mapping[str, Any]) -> Rows:
    """A row for each policy."""
    for policy, row in result["policies"].items():
        kept, said = row["kept_mib_per_image"], row["analytic_mib_per_image"]
        yield policy, f"{kept:,.1f}", f"{said:,.1f}", f"{row['seconds']:.2f}", f"{row['recomputed_share']:.0%}"


def loader(result: Mapping[str, Any]) -> Rows:
    """A row for each loader, size of the photos and number of workers."""
    for case, rows in result.items():
        size, _, workers = case.rpartition("_")
        if size not in ("original", "256", "small", "large"):
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
        ("ratio_fastest_peer", "ours / fastest other library"),
        ("ratio_stock_webdataset", "ours / stock webdataset"),
    ):
        if name in result:
            yield "original", "1", f"**{title}**", f"**{result[name]:.2f}**", ""
    for size, description in result.get("photos", {}).items():
        yield size, "", description, "", ""
    for name, reason in result.get("missing", {}).items():
        yield "", "", name.replace("_", " "), f"not measured: {reason}", ""


def dedup(result: Mapping[str, Any]) -> Rows:
    """A row for each change, and the false positives."""
    for change, share in result["recall"].items():
        yield change, f"{share:.1%}"
    yield f"false positives among {result['num_others']:,} other images", str(result["others_found"])
    yield "test images, each planted once per change", str(result["num_test"])


def restart(result: Mapping[str, Any]) -> Rows:
    """A row for each figure, with a column for each of the two ways."""
    ways = list(result["variants"].values())

    def row(title: str, cell: Callable[[Mapping[str, Any]], str]) -> tuple[str, ...]:
        return (title, *(cell(way) for way in ways))

    yield row("faults, of them lost nodes", lambda way: f"{way['faults']}, {way['of_nodes']}")
    yield row("faults that came late, since it did not train yet", lambda way: str(way["late"]))
    yield row("**mean time lost by a fault**", lambda way: f"**{way['lost_s']:.1f} s**")
    yield row(
        "least and most time lost", lambda way: f"{min(way['lost_s_by_fault'])} s, {max(way['lost_s_by_fault'])} s"
    )
    yield row("mean time in the queue", lambda way: f"{way['parts'].get('queue', 0) / way['faults']:.1f} s")
    yield row("mean training repeated", lambda way: f"{way['parts'].get('repeated', 0) / way['faults']:.1f} s")
    yield row("goodput under these faults", lambda way: f"{way['goodput']:.1%}")
    yield row("steps, repeated steps", lambda way: f"{way['steps']:,}, {way['repeated_steps']:,}")
    yield row("every loss and batch as without faults", lambda way: "to the last bit" if way["bit_identical"] else "no")
    yield "**time lost in the allocation / requeued**", f"**{result['ratio']:.2f}**", ""
    began, ended = result["load_averages"]
    yield "load average at the start and the end", f"{began}, {ended}", ""


def nothing(result: Mapping[str, Any]) -> Rows:
    """No rows: this benchmark writes its own page."""
    yield from ()


SECTIONS: dict[str, Section] = {
    "engine": Section(
        "Step time of our loop compared with a bare DeepSpeed loop, and the cost of a save and a resume "
        "([checkpoints](checkpoints.md)).",
        ("", "measured"),
        engine,
    ),
    "train_step": Section(
        "One training step of our ViT, timm's, torchvision's and Hugging Face's ([models](models.md)). The GEMM rate "
        "is this machine's rate for a matrix product of the MLP's shape.",
        ("precision", "library", "images/s", "fraction of GEMM rate", "MiB kept for backward"),
        train_step,
    ),
    "optimizers": Section(
        "One update by each [optimiser](optimisation.md), ours and the libraries', on one device.",
        ("optimiser", "library", "ms per update", "slowest update", "MiB of state"),
        optimizers,
    ),
    "memory": Section(
        "Activations that each checkpointing policy keeps, compared with the cost model's estimate "
        "([models](models.md)).",
        ("policy", "MiB kept per image", "cost model", "s/step", "recomputed"),
        memory,
    ),
    "loader": Section(
        "Our loader and other common loaders on the same JPEG bytes ([speed](data_speed.md)).",
        ("photos", "workers", "loader", "images per CPU-second", "images/s"),
        loader,
    ),
    "dedup": Section(
        "The share of copies of test images, planted among other images, that was found ([de-duplicate](dedup.md)).",
        ("change", "found"),
        dedup,
    ),
    "plan": Section(
        "The plan compared with published trainings; the tables are on its page ([plan](plan.md)).", (), nothing
    ),
    "transfer": Section("Pretraining and transfer at a small scale; the tables are on another page.", (), nothing),
    "restart": Section(
        "Time that a fault costs a job on Slurm, in its allocation and with `RESTART_IN_PLACE=off` "
        "([restarts](restart.md)). A Slurm with four nodes on this machine, two CPU ranks, and from one seeded list a "
        "rank or a node killed every 30 s, or half that time after training has begun again. The job in the allocation "
        "has two spare nodes and fast checkpoints every 5 steps; both save to the shared disk every 10 s. The node "
        "of the batch shell is spared, and a killed node boots after 20 s. All nodes are idle, so the time in the "
        "queue is only Slurm's own wait before a requeued job may start (120 s by default). Numbers of failures that "
        "exclude a node are not limited; all other settings are the defaults.",
        ("", "in the allocation", "requeued"),
        restart,
    ),
    "conformance": Section("Data loaders under the same laws; the tables are on another page.", (), nothing),
    "foundation": Section("A released foundation model, probed and fine-tuned; likewise.", (), nothing),
}


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, with a section for each benchmark that has a result."""
    parts = [INTRODUCTION]
    for name, found in results.items():
        section = SECTIONS[name]
        rows = list(section.rows(found["result"])) if found["result"] else []
        parts.append(f"## {name}\n\n{section.about}\n")
        if found.get("quick"):
            parts.append("**Measured at a small size, which shows only that it runs.**\n")
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

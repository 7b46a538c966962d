"""``python -m pipelines demo``: a complete run on embedded real data, in minutes on a CPU.

Packs digits 0-4 and pretrains on them, kills the run half-way and restarts it; then fine-tunes the result at twice the
resolution on digits 5-9, which it has never seen, next to the same training from scratch.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines.runs.processes import Job, entry_script, free_port, last_value
from pipelines.terminal.arguments import stage_parser
from pipelines.terminal.output import LazyBar
from pretrain.command_line import Parser
from pretrain.config.loader import load_experiment
from pretrain.config.tree import override
from pretrain.errors import SetupError
from pretrain.shipped_files import located
from pretrain.telemetry.metrics import read_metrics

EXAMPLES = "example: python -m pipelines demo --out runs/demo"
PRETRAIN, FINETUNE = located("recipe:pretrain/demo_digits"), located("recipe:finetune/demo_digits")
PACKS = (
    ("data/demo/upstream", ["--classes", "0-4", "--holdout", "0.2"]),
    ("data/demo/downstream", ["--classes", "5-9", "--holdout", "0.5", "--per-class", "10"]),
)


def main(argv: Sequence[str]) -> int:
    """The stage: prints a small table at the end."""
    arguments = parser().parse_args(argv)
    started = time.monotonic()
    console, out = Console(highlight=False, soft_wrap=True), Path(arguments.out)
    for old in out.glob("demo_digits*"):
        shutil.rmtree(old)
    for folder, options in PACKS:
        console.print(f"[bold]pack[/]      python -m pipelines pack digits --out {folder} {' '.join(options)}")
        _run([sys.executable, "-m", "pipelines", "pack", "digits", "--out", folder, *options])
    run = pretrain(console, out)
    scores = finetune(console, out, run, arguments.seeds)
    _table(console, run, scores, time.monotonic() - started)
    return 0


def pretrain(console: Console, out: Path) -> Path:
    """Pretrains, killing the run half-way; returns the run folder."""
    run, num_steps = out / "demo_digits", load_experiment(PRETRAIN).experiment.num_steps
    script = [entry_script("pretrain/run.py"), "--config", PRETRAIN, override("output_dir", str(out))]
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    console.print(f"[bold]pretrain[/]  deepspeed --num_gpus 2 {' '.join(script)}")
    with LazyBar("pretrain", num_steps, "steps") as bar:
        if not Job([*command, *script], run).wait(bar, stop_at=num_steps * 11 // 20):
            killed_at = max(read_metrics(run / "metrics.jsonl"))
            console.print(f"          killed with kill -9 after step {killed_at}; now the same command again")
        Job([*command, *script], run).wait(bar)
    resumed = read_metrics(run / "metrics.jsonl", "resume")
    console.print(f"          resumed at step {max(resumed, default=0)} and went on to {num_steps}")
    return run


def finetune(console: Console, out: Path, run: Path, num_seeds: int) -> dict[str, list[float]]:
    """Fine-tunes from the pretrained weights and from scratch; returns the accuracies of both."""
    num_steps = load_experiment(FINETUNE).experiment.num_steps
    starts = {"transfer": ["--from", str(run)], "scratch": []}
    console.print(f"[bold]finetune[/]  python pipelines/finetune.py --config {FINETUNE} --from {run}")
    console.print("          and the same from scratch, each with several seeds")
    scores: dict[str, list[float]] = {kind: [] for kind in starts}
    with LazyBar("finetune", num_steps * num_seeds * len(starts), "steps") as bar:
        for seed in range(num_seeds):
            jobs = {}
            for kind, start in starts.items():
                name = f"demo_digits_{kind}_{seed}"
                script = [entry_script("pipelines/finetune.py"), "--config", FINETUNE, *start]
                settings = [override("output_dir", str(out)), f"name={name}", f"seed={seed}"]
                jobs[kind] = Job([sys.executable, *script, *settings], out / name)
            for index, (kind, job) in enumerate(jobs.items()):  # two at a time: one core each
                job.wait(bar, num_steps * (len(starts) * seed + index))
                scores[kind].append(last_value(job.run, "val/top1"))
    return scores


def _table(console: Console, run: Path, scores: dict[str, list[float]], seconds: float) -> None:
    train = read_metrics(run / "metrics.jsonl")
    rate = statistics.median(line["images_per_s"] for line in train.values())
    table = Table("", "top-1", title="digits 0-4 → digits 5-9")
    table.add_row("upstream, held-out images", f"{100 * last_value(run, 'val/top1'):.1f} %")
    for kind, values in scores.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        table.add_row(f"{kind} ({len(values)} seeds)", f"{100 * statistics.mean(values):.1f} ± {100 * spread:.1f} %")
    console.print(table)
    console.print(f"pretraining ran at {rate:,.0f} images/s on 2 ranks; the demo took {seconds:.0f} s")
    console.print(f"run folder: {run}   look at it: tensorboard --logdir {run.parent}")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    if done.returncode:
        raise SetupError(f"{' '.join(command)} left with {done.returncode}:\n{done.stdout}")


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser("demo", "Packs, pretrains and fine-tunes on embedded images: a smoke test.", EXAMPLES)
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="folder for the runs (default: runs/demo)")
    parser.add_argument("--seeds", type=int, default=3, help="fine-tunings of each kind (default: 3)")
    return parser

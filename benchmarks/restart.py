"""The cost of a fault to a job on Slurm: restarted in its allocation, and requeued, under the same faults.

    tests/slurm/with_slurm.sh python -m benchmarks.restart                       # about half an hour
    tests/slurm/with_slurm.sh python -m benchmarks.restart --minutes 2 --requeues 1

A Slurm of several nodes runs on this machine (tests/slurm/cluster.py), and on two of them the ranks of a small ViT. A
rank or a node, drawn from a seeded list, is killed every ``--period`` seconds. The job keeps its allocation, with spare
nodes and fast checkpoints; then the first faults of the list are repeated with ``RESTART_IN_PLACE=off``. Every loss and
every checksum of a batch must be that of an undisturbed run, to the last bit: the number of ranks stays the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.goodput.cli import render
from pipelines.runs.goodput import Account
from pipelines.runs.run_record import RunRecord
from pipelines.slurm import starts
from pipelines.terminal.arguments import program_parser
from pretrain.command_line import Parser
from pretrain.engine.run_folder import FIRST_STEP, read_events
from pretrain.records import read_lines
from pretrain.telemetry.metrics import LINE, read_metrics
from tests.command import ROOT, Commands
from tests.integration.conftest import PACKS
from tests.integration.small_run import curve
from tests.slurm.cluster import Cluster, missing
from tests.slurm.conftest import SITE, pretrain, rank_pids

RANKS = 2  # each on a node of its own
DOWN_S = 20.0  # a node that was killed boots after this
END_S = 900.0  # for a restart, with the queue
DATA = "data/demo/upstream"
SETTINGS = ("duration=1000000 steps", "model.variant=nano/2", "evaluation.every=null", "optim.schedule.warmup=30 steps")
FAST = "checkpoint.fast={every: 5 steps, folder: /dev/shm, peers: 1}"
ENVIRONMENT = {"MAX_NODE_FAILURES": "1000000"}  # with four nodes, the default would soon leave none


@dataclass(frozen=True)
class Fault:
    """The end of one rank, or of a node with all that runs on it; ``place`` in 0-1 chooses among those there are."""

    kind: str
    place: float

    @classmethod
    def drawn(cls, seed: int) -> Iterator[Fault]:
        """The list of a seed, which has no end."""
        generator = random.Random(seed)
        while True:
            yield cls(generator.choice(("rank", "node")), generator.random())


@dataclass(frozen=True)
class Variant:
    """How a job deals with faults: its nodes, its settings and its environment."""

    name: str
    num_nodes: int
    settings: tuple[str, ...]
    env: Mapping[str, str]


class Disturbed:
    """A job under faults.

    Args:
        cluster: runs it.
        folder: for its run folder.
        variant: see the class.
        period_s: seconds between two faults.
    """

    def __init__(self, cluster: Cluster, folder: Path, variant: Variant, period_s: float) -> None:
        self.cluster, self.folder, self.run, self.period_s = cluster, folder, folder / "run", period_s
        self.down: dict[str, float] = {}  # node → when it boots
        self.num_late = 0  # faults that had to wait until the job trained again
        words = (*SETTINGS, f"checkpoint.every={period_s / 3:g} seconds", *variant.settings)
        env = {**ENVIRONMENT, **variant.env}
        self.job = pretrain(cluster, folder, *words, nodes=str(variant.num_nodes), env=env)

    def suffer(self, faults: Iterator[Fault], *, minutes: float, most: int) -> int:
        """Applies faults until the time is over or there were enough; returns how many, once the job trains again."""
        end, previous = None, 0.0
        for number in range(most):
            trains_since = self._training(number)
            end = end or trains_since + 60 * minutes
            due = previous + self.period_s
            at = max(due, trains_since + self.period_s / 2)
            if at > end:
                return number
            self.num_late += number > 0 and at > due
            self._wait_until(at)
            self._strike(next(faults), number + 1)
            previous = time.time()
        self._training(most)
        return most

    def stop(self) -> None:
        """Lets it train for a while, and cancels it."""
        self._wait_until(time.time() + self.period_s / 2)
        self.cluster.run("scancel", self.job)
        self.cluster.wait(self.job)

    def _strike(self, fault: Fault, number: int) -> None:
        nodes = starts.starts(self.run)[-1].nodes[:RANKS]
        if fault.kind == "rank":
            pids = sorted(rank_pids(self.folder))
            os.kill(pids[int(fault.place * len(pids))], signal.SIGKILL)
            what = "a rank"
        else:  # the first node runs the batch shell: with it the job itself is lost, and Slurm requeues it
            what = nodes[1 + int(fault.place * (len(nodes) - 1))]
            self.down[what] = time.time() + DOWN_S
            self.cluster.kill_node(what)
        say(f"fault {number}: {what} killed")

    def _training(self, restarts: int) -> float:
        """Waits until the job trains after so many restarts; returns when it began to."""

        def events() -> list[dict[str, Any]]:
            self._boot()
            history = self.run / "history.jsonl"
            found = [event for event in read_events(history) if event["kind"] == FIRST_STEP] if history.exists() else []
            return found[restarts:]

        what = f"training after {restarts} restarts"
        return float(self.cluster.until(events, what, self.job, timeout_s=END_S, every_s=0.5)[0]["time"])

    def _wait_until(self, moment: float) -> None:
        while (left := moment - time.time()) > 0:
            self._boot()
            time.sleep(min(left, 0.5))

    def _boot(self) -> None:
        for node in [node for node, at in self.down.items() if time.time() >= at]:
            self.cluster.boot_node(node)
            del self.down[node]


def measure(cluster: Cluster, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both variants and the undisturbed run; the result for the page."""
    spare = options.nodes - RANKS
    kept = Variant("in the allocation", options.nodes, (FAST,), {"SPARE_NODES": str(spare)})
    queued = Variant("requeued", RANKS, (), {"RESTART_IN_PLACE": "off"})
    found, runs = {}, {}
    limits = ((kept, options.minutes, options.faults), (queued, float("inf"), options.requeues))
    for variant, minutes, most in limits:
        say(f"==== {variant.name}")
        folder_of = folder / variant.name.replace(" ", "_")
        job = Disturbed(cluster, folder_of, variant, options.period)
        number = job.suffer(Fault.drawn(options.seed), minutes=minutes, most=most)
        job.stop()
        cluster.cancel_all()
        runs[variant.name] = job.run
        found[variant.name] = {"late": job.num_late, **account(job.run, number)}
    say("==== undisturbed")
    steps = {name: max(read_metrics(run / "metrics.jsonl")) for name, run in runs.items()}
    straight = undisturbed(cluster, folder / "undisturbed", max(steps.values()))
    for name, run in runs.items():
        found[name] |= compare(run, straight)
    cost = [found[variant.name]["lost_s"] for variant in (kept, queued)]
    return {"ratio": round(cost[0] / cost[1], 4), "variants": found}


def account(run: Path, number: int) -> dict[str, Any]:
    """Prints the goodput of a run; what its faults cost, in seconds."""
    record = RunRecord.read(run)
    whole = Account.of(record)
    print(render(run.parent.name, whole, None), flush=True)
    costs = [one.cost.ms / 1000 for one in whole.incidents][:number]
    assert len(costs) == number, f"{number} faults, {len(costs)} incidents"
    parts = {part: round(cost.ms / 1000, 1) for part, cost in whole.totals.items()}
    ends = [entry for entry in starts.read(run) if isinstance(entry, starts.End) and entry.failure is not None]
    nodes = [entry.failure is not None and entry.failure.rank is None for entry in ends[:number]]
    return {
        "faults": number,
        "of_nodes": sum(nodes),
        "lost_s": round(statistics.mean(costs), 2),
        "lost_s_by_fault": [round(cost, 1) for cost in costs],
        "goodput": round(whole.goodput, 4),
        "seconds": whole.wall_ms / 1000,
        "parts": parts,
        "jobs_requeued": len({(entry.job_id, entry.restart_count) for entry in ends if entry.decision == "requeue"}),
    }


def undisturbed(cluster: Cluster, folder: Path, steps: int) -> dict[int, tuple]:
    """The curve of a job that nothing happens to, up to a step."""
    job = pretrain(cluster, folder, *SETTINGS, "checkpoint.every=15 minutes", nodes=str(RANKS), env=ENVIRONMENT)
    metrics = folder / "run/metrics.jsonl"

    def done() -> bool:
        return max(read_metrics(metrics), default=0) >= steps

    cluster.until(done, f"step {steps}", job, timeout_s=7200, every_s=2.0)
    cluster.run("scancel", job)
    cluster.wait(job)
    return curve(folder / "run")


def compare(run: Path, straight: Mapping[int, tuple]) -> dict[str, Any]:
    """How a run's steps differ from the undisturbed ones; also those that were repeated and do not count."""
    lines = [line for line in read_lines(run / "metrics.jsonl", LINE).values if line["kind"] == "train"]
    steps = {line["step"] for line in lines}
    assert steps == set(range(1, max(steps) + 1)), "every step is recorded"
    different = {
        line["step"]
        for line in lines
        if (line["loss"], line["grad_norm"], line["lr"], line["batch_digest"]) != straight[line["step"]]
    }
    assert not different, f"{len(different)} steps differ from the undisturbed run, the first is {min(different)}"
    worlds = {start.ranks for start in starts.starts(run)}
    assert worlds == {RANKS}, f"the number of ranks has changed: {worlds}"
    return {"steps": max(steps), "repeated_steps": len(lines) - len(steps), "bit_identical": True}


def say(text: str) -> None:
    """Prints progress with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def pack() -> None:
    """Packs the digits that the job trains on, if they are not there."""
    commands = Commands()
    words = ["python", "-m", "pipelines", "pack", "digits", "--out", str(ROOT / DATA), *PACKS[DATA]]
    commands.run(*words, check=True)
    commands.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the account of each run, then JSON."""
    options = _parser().parse_args(argv)
    if options.tiny:
        options.period, options.faults, options.requeues, options.requeue_s = 6.0, 2, 1, 5
    if (reason := missing()) is not None:
        print(json.dumps({"benchmark": "restart", "skipped": reason}))
        return 0
    pack()
    folder = Path(tempfile.mkdtemp(prefix="restart-")) if options.out is None else options.out.resolve()
    (folder / "slurm").mkdir(parents=True)
    loads = [os.getloadavg()[0]]
    cluster = Cluster(folder / "slurm", requeue_s=options.requeue_s, num_nodes=options.nodes)
    try:
        cluster.site.write_text(SITE.replace("${PREFLIGHT:-light}", "${PREFLIGHT:-full}"))
        found = measure(cluster, folder, options)
    finally:
        cluster.close()
        if options.out is None:
            shutil.rmtree(folder)
    loads.append(os.getloadavg()[0])
    settings = {name: getattr(options, name) for name in ("nodes", "period", "seed", "requeue_s")}
    loads = [round(load, 1) for load in loads]
    print(json.dumps({"benchmark": "restart", **settings, "ranks": RANKS, "load_averages": loads, **found}))
    return 0


def _parser() -> Parser:
    parser = program_parser("python -m benchmarks.restart", __doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of faults, in the allocation")
    parser.add_argument("--period", type=float, default=30.0, metavar="S", help="seconds between two faults")
    parser.add_argument("--nodes", type=int, default=4, help=f"of the cluster: {RANKS} train, the others are spare")
    parser.add_argument("--faults", type=int, default=1000, help="at most, in the allocation")
    parser.add_argument("--requeues", type=int, default=4, help="faults that end with a requeue")
    parser.add_argument("--requeue-s", type=int, default=120, help="a requeued job waits; Slurm's default is 120")
    parser.add_argument("--seed", type=int, default=0, help="of the list of faults")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the run folders and logs in this new folder")
    parser.add_argument("--tiny", action="store_true", help="two faults and one requeue, to test that it runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())

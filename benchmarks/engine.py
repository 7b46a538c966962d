"""Cost of the engine: our loop compared with a bare DeepSpeed loop, a checkpoint, and a resume.

    python -m benchmarks.engine                                        # one rank on this machine's device
    torchrun --nproc_per_node 2 benchmarks/engine.py --zero-stage 2    # several

Both loops train one model in one DeepSpeed engine on one batch, alternating step by step, so that a change of the
machine's speed affects both. Our step is timed from one request for a batch to the next, and does everything that a
run does: the all-gather of the step, the guard, metrics.jsonl, the watchdog. Ends with one line of JSON: ``overhead``
is the median ratio of our step to the bare one before it, ``checkpoint_stall_sync_s`` and ``checkpoint_stall_async_s``
how long a save interrupts training, and ``resume_s`` how long it takes to check, load and verify a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # a launcher puts this file's folder first on the path; the project's root belongs there
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from pipelines.terminal.arguments import program_parser
from pretrain.assembly.trainer import schedule_of
from pretrain.config.schema.experiment import Experiment
from pretrain.data.storage.tally import Tally
from pretrain.distributed import startup
from pretrain.distributed.collectives import broadcast_object
from pretrain.distributed.rank import Rank, detect
from pretrain.distributed.watchdog import Watchdog
from pretrain.engine.backend import Backend
from pretrain.engine.backends import build_backend
from pretrain.engine.checkpoint import Checkpointer
from pretrain.engine.checkpoint_folder import newest_valid
from pretrain.engine.loading import Reading
from pretrain.engine.loop import Trainer
from pretrain.engine.retention import Retention
from pretrain.engine.rollback import Guard
from pretrain.engine.run_folder import RunFolder
from pretrain.engine.saving import Origin, SavePolicy
from pretrain.engine.session import Session
from pretrain.engine.state import Cadence, TrainState
from pretrain.models.families.registry import build_model, init_weights
from pretrain.models.interop import save_weights
from pretrain.models.metadata import WeightsMetadata
from pretrain.objectives.protocol import MicroBatch
from pretrain.objectives.registry import Context, build_objective
from pretrain.telemetry.console import Reporter
from pretrain.telemetry.metrics import JsonlSink
from pretrain.telemetry.telemetry import Telemetry, Work

HALF = (0.5, 0.5, 0.5)
CLASSES = 1000


def experiment_of(options: argparse.Namespace, world: int) -> Experiment:
    """The settings of both loops."""
    return Experiment.model_validate(
        {
            "name": "engine",
            "duration": f"{options.steps} steps",
            "global_batch_size": options.batch * world,
            "precision": options.precision,
            "model": {"variant": options.variant, "img_size": options.img_size, "head_init": "normal"},
            "data": {"shards": "none", "num_samples": 1_000_000, "num_classes": CLASSES},
            "optim": {"lr": 1e-4, "weight_decay": 0.1, "clip_grad": 1.0, "schedule": {"name": "constant"}},
            "cluster": {"zero_stage": options.zero_stage, "micro_batch_size": options.batch},
        }
    )


class Turns:
    """The same batch again and again for our loop; before each, the bare loop takes a step in the same engine.

    Attributes:
        pairs: seconds of a step of the bare loop, and of ours right after it.
    """

    def __init__(self, batch: MicroBatch, steps: int, device: torch.device, backend: Backend, objective: Any) -> None:
        self.batch, self.steps, self._device = batch, steps, device
        self._engine, self.objective = backend._engine, objective  # type: ignore[attr-defined]
        self.pairs: list[tuple[float, float]] = []

    def __call__(self, state: TrainState | None = None) -> Generator[MicroBatch, None, None]:
        """One round. Our last step, which saves, has no successor and is not timed."""
        for _ in range(self.steps):
            began = self._now()
            self._bare_step()
            between = self._now()
            yield self.batch
            self.pairs.append((between - began, self._now() - between))

    def _bare_step(self) -> None:
        """The step of DeepSpeed's documentation: forward, backward, step."""
        loss = self.objective(self._engine, self.batch)
        self._engine.backward(loss)
        self._engine.step()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def build_ours(experiment: Experiment, session: Session, backend: Backend, turns: Turns) -> Trainer:
    """A trainer as ``pretrain.assembly`` makes it, but on one batch that is there already."""
    objective, rank = turns.objective, session.rank

    @torch.no_grad()
    def probe() -> Reading:
        backend.train(False)
        loss = float(objective(backend.forward, turns.batch))
        backend.train(True)
        return Reading(loss, (0,), "the batch of the benchmark")

    about = WeightsMetadata.of(experiment.model, CLASSES, HALF, HALF)
    session.reporter.start("engine", turns.steps, 0)
    checkpointer = Checkpointer(
        session=session, backend=backend, write_weights=lambda path, tensors: save_weights(path, tensors, about),
        probe=probe, schedule=schedule_of(experiment), origin=Origin("", "", "", experiment.precision),
        policy=SavePolicy(Retention(1)), own_average=experiment.optim.own_average,
    )  # fmt: skip
    work = Work(batch_size=experiment.global_batch_size, world=rank.world, num_samples=1_000_000)
    sinks = [JsonlSink(session.folder.metrics)] if rank.is_main else []
    return Trainer(
        session=session, backend=backend, objective=objective, batches=turns, schedule=schedule_of(experiment),
        evaluate=dict, seed_step=lambda step, micro_step: None, tally=Tally(0), checkpointer=checkpointer,
        telemetry=Telemetry(sinks, session.reporter, log_every=10, work=work),
        cadence=Cadence(turns.steps, experiment.batches), guard=Guard(20, 0),
    )  # fmt: skip


def time_saves(trainer: Trainer, repeats: int) -> dict[str, float]:
    """Median seconds that a save interrupts the training, and that it takes in total."""
    stalls: dict[bool, list[float]] = {False: [], True: []}
    whole: list[float] = []
    for index in range(repeats):
        for asynchronous in (False, True):
            checkpointer = trainer.checkpointer
            checkpointer.policy = replace(checkpointer.policy, asynchronous=asynchronous)
            began = time.perf_counter()
            trainer.save(TrainState(step=index + 1))
            stalls[asynchronous].append(time.perf_counter() - began)
            checkpointer.finish_save()
            whole.append(time.perf_counter() - began)
    return {
        "checkpoint_stall_sync_s": statistics.median(stalls[False]),
        "checkpoint_stall_async_s": statistics.median(stalls[True]),
        "checkpoint_write_s": statistics.median(whole),
    }


def time_resume(trainer: Trainer, repeats: int) -> float:
    """Median seconds from the choice of a checkpoint (its hashes) to the verified state."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        found = newest_valid(trainer.checkpointer.folder, print)
        assert found is not None
        trainer.checkpointer.load(*found)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def run(options: argparse.Namespace, rank: Rank, device: torch.device, base: Path) -> dict[str, Any]:
    """Both loops interleaved, then saves and resumes of ours."""
    experiment = experiment_of(options, rank.world)
    images = torch.randn(options.batch, 3, options.img_size, options.img_size, device=device)
    labels = torch.randint(CLASSES, (options.batch, 1), device=device)
    batch = MicroBatch(images, labels, slots=torch.arange(options.batch))
    model = build_model(experiment.model, CLASSES)
    init_weights(model, 0)
    backend = build_backend(experiment, model, rank, device, "deepspeed", (options.batch, 1))
    folder = RunFolder(base / "run")
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    objective = build_objective(experiment.objective, CLASSES, Context(seed=0, mean=HALF, std=HALF))
    turns = Turns(batch, options.steps, device, backend, objective)
    with Watchdog(rank, {}) as watchdog:
        watchdog.beat(f"benchmark-{os.getpid()}")
        watchdog.publish_in(folder.heartbeats)
        session = Session.of(rank, device, folder, watchdog=watchdog)
        session = replace(session, reporter=Reporter(False))  # the report is the only output
        trainer = build_ours(experiment, session, backend, turns)
        for _ in range(options.rounds):
            trainer.fit(TrainState())
    bare, ours = zip(*turns.pairs[options.steps - 1 :], strict=True)  # after a round of warm-up
    ratios = [own / other for other, own in zip(bare, ours, strict=True)]
    report: dict[str, Any] = {
        "step_s": statistics.median(ours),
        "bare_step_s": statistics.median(bare),
        "overhead": statistics.median(ratios),
        "overhead_quartiles": [statistics.quantiles(ratios)[place] for place in (0, 2)],
        "steps_timed": len(ratios),
    }
    report |= time_saves(trainer, options.rounds)
    report["resume_s"] = time_resume(trainer, options.rounds)
    state_bytes = sum(view.nbytes for piece in backend.slices() for view in piece.owned_states().values())
    return report | {"state_mib_per_rank": state_bytes / 2**20}


def main() -> None:
    """Prints one line of JSON on rank 0."""
    parser = program_parser("python -m benchmarks.engine", __doc__)
    parser.add_argument("--variant", default="S/16")
    parser.add_argument("--img-size", type=int, default=None, help="96 on a CPU, 224 on a GPU")
    parser.add_argument("--batch", type=int, default=None, help="images per rank and step: 8 on a CPU, 128 on a GPU")
    parser.add_argument("--precision", default=None, help="fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6, help="the first one warms up")
    parser.add_argument("--steps", type=int, default=16, help="of each loop in a round")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rank = detect()
    device = startup.start(rank, timeout_s=600)
    on_gpu = device.type == "cuda"
    options.img_size = options.img_size or (224 if on_gpu else 96)
    options.batch = options.batch or (128 if on_gpu else 8)
    options.precision = options.precision or ("bf16" if on_gpu else "fp32")
    with tempfile.TemporaryDirectory() as own:
        report = run(options, rank, device, Path(broadcast_object(own)))
    if rank.is_main:
        print(json.dumps({"benchmark": "engine", **vars(options), "device": device.type, "world": rank.world} | report))
    startup.leave()


if __name__ == "__main__":
    main()

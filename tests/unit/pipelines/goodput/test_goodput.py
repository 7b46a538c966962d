"""The account of a run's time equals that of a clock which knows the truth, to the millisecond, whatever happens."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipelines.__main__ import main
from pipelines.runs.goodput import Account
from pipelines.runs.goodput_tables import attempt_rows
from pipelines.runs.run_record import RunRecord
from pipelines.slurm import starts
from pretrain.engine.crashes import Crash, report_crash
from pretrain.engine.run_folder import RunFolder
from tests.unit.pipelines.run_folders import write_run

EPOCH_MS = 1_700_000_000_000
RANKS, GPUS = 4, 8  # half of the GPUs that a job holds are idle


@dataclass
class World:
    """A clock that is moved by hand: what it passes is the truth, and the files are what a run would have written.

    Attributes:
        truth: [part, milliseconds, step] in order; a later load relabels the training that it threw away.
    """

    run: Path
    now: int = EPOCH_MS
    step: int = 0
    start: int = 0
    job: tuple[str, int] = ("local", 0)
    seen: int | None = None
    truth: list[list[Any]] = field(default_factory=list)
    since: dict[str, int] = field(default_factory=dict)

    def pass_time(self, part: str, ms: int, *, is_on_sheet: bool = True) -> None:
        self.now += ms
        self.truth.append([part, ms, self.step])
        if is_on_sheet and ms:
            self.since[part] = self.since.get(part, 0) + ms

    def line(self, kind: str = "spent", **details: Any) -> None:
        content = {"kind": kind, "start": self.start, "step": self.step, "ms": self.since, **details}
        self.since = {}
        with open(RunFolder(self.run).timesheet, "a") as file:
            file.write(json.dumps(content) + "\n")

    def begin(self, startup: int, load: int, from_step: int, *, early: int = 0) -> None:
        """A start whose process began ``early`` milliseconds sooner, by the kernel's clock."""
        began, self.start = self.now - early, self.start + 1
        about = {"job_id": self.job[0], "restart_count": self.job[1], "world_size": RANKS, "host": "n1"}
        self.step = 0
        self.line("begin", began_ms=began, seen_before_ms=self.seen, **about)
        self.pass_time("startup", startup)
        self.pass_time("load", load)
        self.step = from_step
        self.line(from_step=from_step)
        self.throw_away(from_step)

    def throw_away(self, after: int) -> None:
        for entry in self.truth:
            if entry[0] in ("step", "data", "evaluate", "save", "skipped") and entry[2] > after:
                entry[0] = "repeated"

    def train(self, data: int, step: int, *, part: str = "step") -> None:
        self.step += 1
        self.pass_time("data", data)
        self.pass_time(part, step)
        self.line()

    def other(self, part: str, ms: int) -> None:
        self.pass_time(part, ms)
        self.line()

    def end(self, outcome: str, reason: str, shutdown: int) -> None:
        self.pass_time("shutdown", shutdown)
        self.line("end", outcome=outcome, reason=reason)
        self.seen = self.now

    def die(self, unrecorded: int) -> None:
        """Killed so long after its last line; the next start reads when the last heartbeat was."""
        self.since = {}
        self.pass_time("lost", unrecorded, is_on_sheet=False)
        self.seen = self.now

    def slurm_start(self, job: tuple[str, int], before_training: int) -> None:
        nodes = ("n1", "n2")
        entry = starts.Start(*job, nodes, GPUS, RANKS, self.step, "", self.now / 1000)
        starts.append(self.run, entry)
        self.job = job
        self.pass_time("startup", before_training, is_on_sheet=False)

    def slurm_end(self, outcome: str, reason: str, part: str, ms: int, failure: starts.Failure | None = None) -> None:
        self.pass_time(part, ms, is_on_sheet=False)
        entry = starts.End(*self.job, self.step, 1, outcome, "requeue", reason, self.now / 1000, failure)
        starts.append(self.run, entry)

    @property
    def totals(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for part, ms, _ in self.truth:
            found[part] += ms
        return Counter({part: ms for part, ms in found.items() if ms})


def account_of(world: World) -> Account:
    return Account.of(RunRecord.read(world.run))


def assert_true(world: World, account: Account) -> None:
    assert {part: cost.ms for part, cost in account.totals.items()} == dict(world.totals)
    assert account.wall_ms == world.now - EPOCH_MS == sum(cost.ms for cost in account.totals.values())


@pytest.mark.parametrize("seed", range(40))
def test_any_history_of_faults(tmp_path: Path, seed: int) -> None:
    dice, world = random.Random(seed), World(tmp_path)

    def ms() -> int:
        return dice.randrange(1, 100_000)

    checkpoint = 0
    for attempt in range(dice.randrange(1, 7)):
        if attempt:
            world.pass_time("queue", ms(), is_on_sheet=False)
        world.begin(ms(), ms(), from_step=checkpoint)
        for _ in range(dice.randrange(0, 12)):
            kind = dice.choice(["train", "train", "train", "skip", "save", "evaluate", "compile", "rollback"])
            if kind == "train":
                world.train(ms(), ms())
            elif kind == "skip":
                world.train(ms(), ms(), part="skipped")
            elif kind == "rollback" and world.step > checkpoint:
                world.pass_time("load", ms())
                world.line(back_to=checkpoint)
                world.step = checkpoint
                world.throw_away(checkpoint)
            elif kind != "rollback":
                world.other(kind, ms())
                checkpoint = world.step if kind == "save" else checkpoint
        dice.choice([lambda: world.die(ms()), lambda: world.end("requeue", "signal SIGTERM", ms())])()
    if world.truth[-1][0] == "lost":  # nobody has read the last heartbeat of a run that was not started again
        report_crash(world.run, world.start, Crash("hang", 3, "n2", 1, "data", "phase data", world.now))
    assert_true(world, account_of(world))


def test_jobs_of_slurm(tmp_path: Path) -> None:
    """A kill with a restart in the queue, a node that the preflight refuses, two starts inside one job."""
    world = World(tmp_path)
    world.slurm_start(("7", 0), 4_000)
    world.begin(20_000, 0, from_step=0)
    world.train(1_000, 9_000)
    world.other("save", 500)
    world.train(1_000, 9_000)
    world.die(3_000)
    killed = starts.Failure("n2", 3, 2, "Killed", True, 0.0, 0.0)
    world.slurm_end("crash", str(killed), "lost", 2_000, killed)
    world.pass_time("queue", 60_000, is_on_sheet=False)
    world.slurm_start(("7", 1), 30_000)  # the preflight finds a node unfit
    world.slurm_end("crash", "the preflight found n2 unfit", "startup", 0)
    world.pass_time("queue", 50_000, is_on_sheet=False)
    world.slurm_start(("7", 2), 5_000)
    world.begin(15_000, 2_000, from_step=1)
    world.other("compile", 7_000)
    world.train(500, 9_000)
    world.other("save", 500)
    world.end("requeue", "stopped on request (signal SIGUSR1)", 250)
    world.pass_time("between", 6_000, is_on_sheet=False)
    world.begin(10_000, 1_000, from_step=2)
    world.train(0, 9_000)
    world.end("complete", "all steps done", 100)
    world.slurm_end("complete", "all steps done", "shutdown", 400)
    account = account_of(world)
    assert_true(world, account)
    found = {(one.kind, one.attempt): (one.cause, one.cost.ms) for one in account.incidents}
    assert [one.where for one in account.incidents] == ["rank 3 on n2", "", ""]
    assert found == {
        # step 2 and its wait, 5 s until Slurm had noticed, the queue, and the preflight of the next start
        ("crash", 0): ("Killed", 10_000 + 5_000 + 60_000 + 30_000),
        ("crash", 1): ("the preflight found n2 unfit", 50_000 + 5_000 + 15_000 + 2_000 + 7_000),
        ("requeue", 2): ("stopped on request (signal SIGUSR1)", 6_000 + 10_000 + 1_000),
    }
    in_jobs = sum(ms for part, ms in world.totals.items() if part != "queue")
    of_ranks = RANKS * (in_jobs - 6_000) + GPUS * 6_000
    assert sum(cost.gpu_ms for cost in account.totals.values()) == of_ranks
    assert sum(account.idle_gpu_ms) == (GPUS - RANKS) * (in_jobs - 6_000)
    rows = attempt_rows(account, price=2.0)
    assert sum(float(row[-2]) for row in rows) == pytest.approx(of_ranks / 3_600_000, abs=0.0002), "GPU-hours"
    assert sum(float(row[-1]) for row in rows) == pytest.approx(2 * of_ranks / 3_600_000, abs=0.02), "money"


def test_restarts_in_the_allocation(tmp_path: Path) -> None:
    """The processes begin milliseconds after the job's line, by a clock of the kernel that is less exact than that."""
    world, lost = World(tmp_path), starts.Failure("n2", None, 1, "the node does not answer", True, 0.0, 0.0)
    world.slurm_start(("7", 0), 4_000)
    world.begin(20_000, 0, from_step=0)
    world.train(1_000, 9_000)
    world.die(3_000)
    report_crash(world.run, 1, Crash("crash", 0, "n1", 1, "step", "RuntimeError: closed by peer", world.now))
    world.slurm_end("crash", str(lost), "lost", 2_000, lost)
    world.slurm_start(("7", 1), 0)
    world.begin(20_000, 0, from_step=0, early=60)
    world.train(1_000, 9_000)
    world.end("complete", "all steps done", 100)
    world.slurm_end("complete", "all steps done", "shutdown", 400)
    account = account_of(world)
    assert [(one.where, one.cause) for one in account.incidents] == [("n2", "the node does not answer")]
    assert len(account.attempts) == 2 and "unexplained" not in account.totals


def test_a_hang_names_the_rank_and_clocks_that_differ_are_reported(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.begin(1_000, 0, from_step=0)
    world.train(0, 1_000)
    report_crash(tmp_path, 1, Crash("hang", 5, "n2", 1, "step", "phase step for 60 s", world.now + 70_000))
    world.die(70_000)
    world.pass_time("unexplained", -5_000, is_on_sheet=False)  # the next node's clock is behind
    world.begin(1_000, 500, from_step=0)
    world.train(0, 1_000)
    world.end("complete", "all steps done", 10)
    account = account_of(world)
    assert_true(world, account)
    (hang,) = account.incidents
    assert (hang.kind, hang.where, hang.cause) == ("hang", "rank 5 on n2", "phase step for 60 s")
    assert hang.cost.ms == 1_000 + 70_000 - 5_000 + 1_000 + 500


def test_a_rollback_costs_its_load_and_the_steps_before_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.begin(1_000, 0, from_step=0)
    world.train(10, 1_000)
    world.other("save", 100)
    world.train(20, 2_000)
    for _ in range(2):
        world.train(30, 3_000, part="skipped")
    world.pass_time("load", 700)
    world.line(back_to=1)
    world.throw_away(1)
    world.step = 1
    world.train(40, 4_000)
    world.train(50, 5_000, part="skipped")
    world.end("complete", "all steps done", 10)
    account = account_of(world)
    assert_true(world, account)
    assert [(one.kind, one.step, one.cost.ms) for one in account.incidents] == [
        ("skipped update", 3, 5_000),
        ("rollback", 4, 700 + 2_020 + 2 * 3_030),
    ]


def test_money_and_values_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path)
    world.begin(1_800_000, 0, from_step=0)
    world.train(0, 5_400_000)
    world.die(0)
    world.pass_time("queue", 3_600_000, is_on_sheet=False)
    world.begin(0, 0, from_step=0)
    world.train(0, 5_400_000)
    world.end("complete", "all steps done", 0)
    assert main(["goodput", str(tmp_path), "--price-per-gpu-hour", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["wall_s"] == 4.5 * 3600 and found["goodput"] == pytest.approx(1 / 3)
    assert found["parts"]["step"] == {"seconds": 5400.0, "gpu_hours": 6.0, "money": 12.0}
    assert found["parts"]["queue"] == {"seconds": 3600.0, "gpu_hours": 0.0, "money": 0.0}
    assert [(one["kind"], one["money"]) for one in found["incidents"]] == [("crash", 12.0)]
    assert main(["goodput", str(tmp_path), "--price-per-gpu-hour", "2"]) == 0
    shown = capsys.readouterr().out
    assert "33.3 % of 4 h 30 min in productive steps; 2 starts" in shown
    assert "together                       16,200.000  100.0 %    14.0000  28.00" in shown


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "old")
    RunFolder(run).timesheet.unlink()
    assert main(["goodput", str(run)]) == 2 and "has no usable timesheet.jsonl" in capsys.readouterr().err
    for price in ("0", "-1", "nan", "inf"):
        assert main(["goodput", str(run), "--price-per-gpu-hour", price]) == 2
        assert "must be more than 0" in capsys.readouterr().err
    world = World(tmp_path / "damaged")
    world.run.mkdir()
    world.begin(1, 0, from_step=0)
    world.train(0, 1)
    sheet = RunFolder(world.run).timesheet
    sheet.write_text(sheet.read_text() + '{"kind": "spent", "start": 1, "step": 2, "ms": {"coffee": 5}}\n')
    (world.run / "log.txt").touch()
    assert main(["goodput", str(world.run)]) == 0
    assert "timesheet.jsonl has 1 damaged line" in capsys.readouterr().err

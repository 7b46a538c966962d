"""The job: arguments → config → build → fit. The launchers (deepspeed, torchrun, srun, python) all start this file.

deepspeed --num_gpus 2 pretrain/run.py --config configs/pretrain/demo_digits.yaml optim.lr=3e-4
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if __name__ == "__main__":  # a launcher puts this file's folder first on the path; the project's root belongs there
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pretrain.command_line import INTERRUPTED, Parser, reader_left
from pretrain.distributed.processes import launchers
from pretrain.distributed.watchdog import Watchdog
from pretrain.engine.session import Session, StopRequest
from pretrain.errors import PeerError, SetupError, UserError
from pretrain.names import tell

if TYPE_CHECKING:
    from pretrain.config.loader import Resolved
    from pretrain.config.schema.run import Head
    from pretrain.distributed.rank import Rank
    from pretrain.engine.run_folder import Verdict

EXAMPLE = "example: deepspeed --num_gpus 2 pretrain/run.py --config configs/pretrain/demo_digits.yaml optim.lr=3e-4"


def parse_arguments(
    argv: Sequence[str] | None, *, prog: str, example: str, takes_weights: bool = False
) -> argparse.Namespace:
    """The arguments of both entry files."""
    parser = training_parser(prog, example, takes_weights=takes_weights)
    arguments = parser.parse_intermixed_args(argv)
    if arguments.require_data and not arguments.check:
        parser.error("--require-data belongs to --check (a run always needs its data)")
    if arguments.simulate is not None and (arguments.check or arguments.print_config):
        parser.error("--simulate, --check and --print-config each print one thing; choose one")
    if arguments.simulate is None and arguments.simulate_rank:
        parser.error("--simulate-rank belongs to --simulate")
    if arguments.simulate is not None and arguments.simulate < 1:
        parser.error("--simulate takes a number of ranks, at least 1")
    return arguments


def training_parser(prog: str, example: str = "", *, takes_weights: bool = False) -> Parser:
    """The command line of both entry files."""
    parser = Parser(prog=prog, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="YAML of the experiment; recipe:NAME for a shipped one"
    )
    parser.add_argument("--cluster", metavar="FILE", help="cluster YAML (default: auto-detect)")
    if takes_weights:
        parser.add_argument("--from", dest="source", metavar="RUN_OR_WEIGHTS", help="run folder or safetensors file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over the file's: optim.lr=3e-4")
    parser.add_argument(
        "--check", action="store_true", help="validate everything that can be checked before a run, and exit"
    )
    parser.add_argument("--require-data", action="store_true", help="with --check: absent data is an error")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config, and exit")
    parser.add_argument("--simulate", type=int, metavar="N", help="estimate one rank of an N-GPU job, and exit")
    parser.add_argument("--simulate-rank", type=int, default=0, metavar="R", help="with --simulate: which rank")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser


@dataclass(frozen=True)
class Entry:
    """The meaning of ``auto`` in an entry file: the backend, and the head of a model that starts from given weights."""

    backend: str
    head: Head

    def resolve(self, resolved: Resolved) -> Entry:
        """The same, with the choices of the config where it makes any."""
        experiment = resolved.experiment
        head = self.head if experiment.init.head == "auto" else experiment.init.head
        return Entry(experiment.cluster.backend_in(self.backend), head)


def parser() -> Parser:
    """The command line of pretraining."""
    return training_parser("pretrain/run.py")


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Pretraining: DeepSpeed, and given weights keep their head.

    Args:
        argv: the arguments; None: of this process.
        prog: the words before them; None: this file.
    """
    example = EXAMPLE if prog is None else f"example: {prog} --config recipe:vit_b16_i1k --check"
    arguments = parse_arguments(argv, prog=prog or "pretrain/run.py", example=example)
    return execute(arguments, arguments.overrides, Entry("deepspeed", "keep"))


def execute(arguments: argparse.Namespace, overrides: Sequence[str], entry: Entry) -> int:
    """Checks, prints or runs what the command line asks for; returns the exit code."""
    from pretrain.check.derived import load_complete
    from pretrain.check.experiment import check
    from pretrain.distributed.rank import detect

    stop_request = StopRequest()
    stop_request.watch_launchers(launchers())
    if not (arguments.check or arguments.print_config or arguments.simulate):
        stop_request.install()
    try:
        rank = detect()
        resolved = load_complete(arguments.config, cluster=arguments.cluster, overrides=overrides, head=entry.head)
        entry = entry.resolve(resolved)
        if arguments.print_config:
            tell(resolved.to_yaml(), end="", flush=True)
            return 0
        if arguments.check:
            needs_data = arguments.require_data
            lines = check(resolved, world=None, require_data=needs_data, backend=entry.backend, head=entry.head)
            tell("\n".join(lines), flush=True)
            return 0
        if arguments.simulate:
            from pretrain.check.simulate import simulate

            simulation = simulate(resolved, arguments.simulate, arguments.simulate_rank, backend=entry.backend)
            tell("\n".join(simulation.lines([source.shards for source in resolved.experiment.data.sources])))
            return 0
        with Watchdog(rank, resolved.experiment.cluster.phase_limits_s.model_dump()) as watchdog:
            return run(resolved, rank, stop_request, entry, watchdog)
    except UserError as error:
        return fail(error)
    except BrokenPipeError:  # the reader, such as head, has heard enough
        return reader_left()
    except KeyboardInterrupt:
        return INTERRUPTED


def fail(error: UserError) -> int:
    """Prints the error, on the rank that has it: its peers only know that it failed."""
    if not isinstance(error, PeerError):
        tell(f"error: {error}", file=sys.stderr, flush=True)
    return error.exit_code


def run(resolved: Resolved, rank: Rank, stop_request: StopRequest, entry: Entry, watchdog: Watchdog) -> int:
    """One job from the checks to the verdict; returns the exit code. Collective: yes."""
    from pretrain.check.experiment import check
    from pretrain.distributed.rank import job
    from pretrain.engine.run_folder import FATAL, RunFolder, Verdict

    try:
        check(resolved, world=rank.world, require_data=True, backend=entry.backend)
    except UserError as error:  # every rank finds the same error; one prints it
        return fail(error) if rank.is_main else error.exit_code
    import pretrain.assembly.trainer  # noqa: F401 # before the ranks meet, so that none waits for another's imports
    from pretrain.distributed import startup
    from pretrain.distributed.collectives import barrier

    experiment = resolved.experiment
    folder = RunFolder(Path(experiment.output_dir) / experiment.name)
    timeout_s, wanted = experiment.cluster.collective_timeout_s, experiment.cluster.wanted_device
    device = startup.start(rank, timeout_s=timeout_s, device=wanted, watchdog=watchdog)
    folder.open(rank, job())
    watchdog.publish_in(folder.heartbeats)
    verdict: Verdict | None = None
    try:
        verdict = recorded(resolved, Session.of(rank, device, folder, stop_request, watchdog), entry)
    except UserError as error:
        verdict = Verdict(FATAL, str(error), 0)
        return fail(error)
    finally:  # without a verdict (a bug) exit.json is not written, which means a crash
        watchdog.stop_publishing()
        is_fatal = verdict is not None and verdict.outcome == FATAL
        written = folder.close(verdict, job(), writes=rank.is_main or is_fatal)
    barrier()  # a launcher ends all ranks when one leaves with a code: nobody leaves before the verdict is written
    assert verdict is not None and written is not None
    if written is not verdict:
        return fail(SetupError(written.reason))
    return verdict.exit_code


def recorded(resolved: Resolved, session: Session, entry: Entry) -> Verdict:
    """Trains, with the times of this start and its end in the run folder. Collective: yes."""
    from pretrain.distributed.rank import job
    from pretrain.engine.crashes import CRASH, Crash, in_one_line, report_crash
    from pretrain.engine.run_folder import FATAL

    folder, timesheet, watchdog, rank = session.folder, session.timesheet, session.watchdog, session.rank

    def report(place: tuple[int, str], what: Exception | str) -> None:
        report_crash(folder.path, folder.attempt, Crash.of(rank, place, what))

    watchdog.record = report
    timesheet.begin(folder.attempt, rank, job(), folder.seen_before)
    try:
        verdict = train(resolved, session, entry)
    except UserError as error:
        timesheet.end(FATAL, str(error))
        raise
    except Exception as error:  # a bug, or a peer that died
        report(watchdog.place, error)
        timesheet.end(CRASH, in_one_line(error))
        raise
    timesheet.end(verdict.outcome, verdict.reason)
    return verdict


def train(resolved: Resolved, session: Session, entry: Entry) -> Verdict:
    """Builds the trainer, loads the checkpoint to continue from, and trains. Collective: yes."""
    from pretrain.assembly.record import record_start
    from pretrain.assembly.trainer import build_trainer, fast_tier_of
    from pretrain.engine.resume import choose_start, load_start, run_owed_evaluation
    from pretrain.engine.run_folder import REQUEUE
    from pretrain.engine.timesheet import LOAD, STARTUP

    timesheet = session.timesheet
    timesheet.charge(STARTUP)
    fast = fast_tier_of(resolved.experiment, session)
    resolved, start = choose_start(resolved, session, fast)
    timesheet.charge(LOAD)
    if resolved.experiment.cluster.compile:
        timesheet.watch_compilation()
    record_start(resolved, session, 0 if start is None else start.step)
    trainer = build_trainer(resolved, session, kind=entry.backend, head=entry.head, start=start, fast=fast)
    timesheet.charge(STARTUP)
    try:
        state = load_start(trainer, start)
        timesheet.charge(LOAD)
        timesheet.write(state.step, from_step=state.step)
        session.stop_request.wait_for_boundaries()
        run_owed_evaluation(trainer, start, state)
        session.reporter.start(resolved.experiment.name, trainer.cadence.last_step(state), state.step)
        verdict = trainer.fit(state)
        session.watchdog.at("end", trainer.cadence.num_steps)
    finally:
        trainer.telemetry.close()
        if fast is not None:
            fast.close()
    session.say(f"{verdict.outcome}: {verdict.reason} (step {verdict.step}); run folder {session.folder.path}")
    if verdict.outcome == REQUEUE:
        session.say(
            f"not an error: the same command continues from here (a launcher reports exit code {verdict.exit_code}, by "
            "which schedulers know it)"
        )
    session.reporter.close()
    return verdict


def leave(exit_code: int) -> NoReturn:
    """Ends the process at once: the verdict is on the disk, and the exit code must be the verdict's.

    Python's own way out destroys the threads of the communication libraries in an order that sometimes aborts (-6).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    leave(main())

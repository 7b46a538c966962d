"""The job: arguments → config → build → fit. The launchers (deepspeed, torchrun, srun, python) all start this file.

    deepspeed --num_gpus 2 pretrain/run.py --config configs/pretrain/demo_digits.yaml optim.lr=3e-4
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if __name__ == "__main__":  # a launcher puts this file's folder first on the path; the project's root belongs there
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pretrain.engine.stop import StopRequest
from pretrain.errors import ConfigError, UserError

if TYPE_CHECKING:
    from pretrain.config.loader import Resolved
    from pretrain.distributed.rank import Rank

EXIT_BUG = 1
EXAMPLE = "example: deepspeed --num_gpus 2 pretrain/run.py --config configs/pretrain/demo_digits.yaml optim.lr=3e-4"


def parse_arguments(
    argv: Sequence[str] | None, *, prog: str, example: str, takes_weights: bool = False
) -> argparse.Namespace:
    """The command line of both entry files."""
    parser = argparse.ArgumentParser(prog=prog, description=example, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML of the experiment")
    parser.add_argument("--cluster", metavar="FILE", help="YAML of the machines; default: what is found")
    if takes_weights:
        parser.add_argument("--from", dest="source", metavar="RUN_OR_WEIGHTS", help="run folder or safetensors file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over the file's: optim.lr=3e-4")
    parser.add_argument("--check", action="store_true", help="validate all that can be known beforehand, and exit")
    parser.add_argument("--require-data", action="store_true", help="with --check: absent data is an error")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config, and exit")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args(argv)
    if arguments.require_data and not arguments.check:
        parser.error("--require-data belongs to --check (a run always needs its data)")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Pretraining: the default backend is DeepSpeed."""
    arguments = parse_arguments(argv, prog="pretrain/run.py", example=EXAMPLE)
    return execute(arguments, arguments.overrides, default_backend="deepspeed")


def execute(arguments: argparse.Namespace, overrides: Sequence[str], *, default_backend: str) -> int:
    """Checks, prints or runs what the command line asks for; returns the exit code."""
    from pretrain.check import check
    from pretrain.config.loader import load_experiment
    from pretrain.distributed.rank import detect

    stop_request = StopRequest()
    if not (arguments.check or arguments.print_config):
        stop_request.install()
    try:
        rank = detect()
        resolved = load_experiment(arguments.config, cluster=arguments.cluster, overrides=overrides)
        kind = resolved.experiment.cluster.backend
        kind = default_backend if kind == "auto" else kind
        if arguments.print_config:
            print(resolved.to_yaml(), end="")
            return 0
        if arguments.check:
            lines = check(resolved, world=None, require_data=arguments.require_data, backend=kind)
            print("\n".join(lines))
            return 0
        return run(resolved, rank, stop_request, kind)
    except UserError as error:
        return fail(error)


def fail(error: UserError) -> int:
    """Says what is wrong in a few lines; every rank may say it, since only one of them may know."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    return error.exit_code


def run(resolved: Resolved, rank: Rank, stop_request: StopRequest, kind: str) -> int:
    """One job from the checks to the verdict; returns the exit code. Collective: yes."""
    from pretrain.check import check
    from pretrain.distributed.rank import job
    from pretrain.engine.run_folder import FATAL, RunFolder, Verdict

    try:
        check(resolved, world=rank.world, require_data=True, backend=kind)
    except UserError as error:  # every rank finds the same; one says it
        return fail(error) if rank.is_main else error.exit_code
    from pretrain import build  # torch from here on
    from pretrain.distributed import startup
    from pretrain.distributed.collectives import PeerError
    from pretrain.engine.resume import choose_start, load_start
    from pretrain.telemetry.console import Reporter

    experiment = resolved.experiment
    folder = RunFolder(Path(experiment.output_dir) / experiment.name)
    device = startup.start(rank, timeout_s=experiment.cluster.collective_timeout_s)
    verdict: Verdict | None = None
    step = 0
    try:
        folder.open(rank, job())
        reporter = Reporter(rank.is_main, folder.log)
        stop_request.watch_file(folder.stop_file)
        start = choose_start(resolved, folder, rank, reporter.say)
        if rank.is_main:
            build.record_run(resolved, folder, rank, device)
        trainer = build.build_trainer(
            resolved,
            rank,
            device,
            folder,
            reporter,
            stop_request,
            kind=kind,
            with_init=start is None,
            purge_step=0 if start is None else start.step,
        )
        state = load_start(trainer, start, reporter.say)
        reporter.start(experiment.name, trainer.num_steps, state.step)
        try:
            verdict = trainer.fit(state)
        finally:
            trainer.telemetry.close()
        reporter.say(f"{verdict.outcome}: {verdict.reason} (step {verdict.step}); run folder {folder.path}")
        if rank.is_main:
            folder.write_verdict(verdict, job())
        barrier()  # nobody leaves before the verdict is written
        return verdict.exit_code
    except PeerError as error:
        print(f"rank {rank.rank}: {error}", file=sys.stderr, flush=True)
        verdict = Verdict(FATAL, str(error), step)
        return verdict.exit_code
    except UserError as error:
        verdict = Verdict(FATAL, str(error), step)
        return fail(error)
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return EXIT_BUG
    finally:
        if rank.is_main:
            folder.close(verdict, job())
        startup.leave()


def leave(exit_code: int) -> NoReturn:
    """Ends the process at once: the verdict is on the disk, and the exit code must be the verdict's.

    Python's own way out destroys the threads of the communication libraries in an order that sometimes aborts (-6).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    leave(main())

"""The commands of the job scripts: ``python -m pipelines.slurm begin | probe | judge | supervise | end``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.slurm.end import DEFAULT_MAX_RESTARTS
from pipelines.slurm.policy import DEFAULT_NODE_FAILURES
from pretrain.command_line import Parser
from pretrain.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; an error that the user can fix is reported in a few lines on stderr."""
    arguments = _parser().parse_args(argv)
    try:
        return COMMANDS[arguments.command](arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def _begin(arguments: argparse.Namespace) -> int:
    from pipelines.slurm.begin import begin

    return begin(arguments.entry, arguments.words, arguments.max_restarts, arguments.spare_nodes)


def _probe(arguments: argparse.Namespace) -> int:
    from pipelines.nodes.checks import Expected
    from pipelines.slurm.preflight import probe

    expected = Expected(
        gpus=arguments.gpus,
        memory_gib=arguments.memory_gib,
        run=arguments.run,
        space_gib=arguments.space_gib,
        token=arguments.token,
        shards=tuple(arguments.shards),
    )
    return probe(expected, compute=arguments.compute)


def _judge(arguments: argparse.Namespace) -> int:
    from pipelines.slurm.end import refuse
    from pipelines.slurm.preflight import judge_answers

    judgement = judge_answers(arguments.run)
    if judgement.common:
        return refuse(arguments.run, f"on every node: {judgement.common[0]}")
    print(" ".join(judgement.bad_nodes))
    return 0


def _supervise(arguments: argparse.Namespace) -> int:
    from pipelines.slurm.layout import Layout
    from pipelines.slurm.policy import Limits
    from pipelines.slurm.supervise import Plan, supervise

    plan = Plan(
        run=arguments.run,
        command=tuple(arguments.step),
        nodes=tuple(arguments.nodes),
        layout=Layout(len(arguments.nodes), arguments.ranks_per_node),
        worlds=tuple(arguments.worlds),
        limits=Limits(arguments.max_restarts, arguments.max_node_failures, arguments.in_place == "on"),
        silent_s=arguments.silent_s,
        stop_s=arguments.stop_s,
    )
    return supervise(plan)


def _end(arguments: argparse.Namespace) -> int:
    from pipelines.slurm.end import Cause, end

    cause = Cause(arguments.reason, arguments.bad_nodes)
    return end(arguments.run, arguments.code, arguments.max_restarts, cause)


COMMANDS = {"begin": _begin, "probe": _probe, "judge": _judge, "supervise": _supervise, "end": _end}


def _parser() -> Parser:
    parser = Parser(prog="python -m pipelines.slurm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    begin = commands.add_parser("begin", help="validate, choose the ranks, record the start")
    begin.add_argument("--entry", choices=("pretrain", "finetune"), required=True)
    begin.add_argument("words", nargs="*", help="arguments of the training, after --")
    begin.add_argument("--spare-nodes", type=int, default=0, help="nodes to keep for those that fail")
    probe = commands.add_parser("probe", help="one task of the preflight")
    probe.add_argument("--gpus", type=int, required=True, help="GPUs that the job uses on a node; 0 on CPUs")
    probe.add_argument("--memory-gib", type=float, default=1.0)
    probe.add_argument("--space-gib", type=float, default=1.0)
    probe.add_argument("--token", default="")
    probe.add_argument("--shards", type=Path, action="append", default=[])
    probe.add_argument(
        "--compute", action="store_true", help="add a matrix product and an all-reduce: one task per GPU"
    )
    judge = commands.add_parser("judge", help="compare the nodes and print the unfit ones")
    supervise = commands.add_parser("supervise", help="run the step, and start it again after a failure")
    supervise.add_argument("--nodes", nargs="+", required=True, help="of the first step")
    supervise.add_argument("--ranks-per-node", type=int, required=True)
    supervise.add_argument("--worlds", type=int, nargs="+", required=True, help="numbers of ranks that fit the batch")
    supervise.add_argument("--max-node-failures", type=int, default=DEFAULT_NODE_FAILURES, help="before it is avoided")
    supervise.add_argument("--in-place", choices=("on", "off"), default="on", help="off: requeue after any failure")
    supervise.add_argument("--silent-s", type=float, default=60.0, help="without a heartbeat, a rank counts as dead")
    supervise.add_argument("--stop-s", type=float, default=3.0, help="for the survivors to end before they are killed")
    supervise.add_argument("step", nargs="*", help="srun with its command, after --")
    end = commands.add_parser("end", help="exit, requeue or give up")
    end.add_argument("--code", type=int, required=True)
    end.add_argument("--bad-nodes", nargs="*", default=[])
    end.add_argument("--reason", default="")
    for command in (probe, judge, supervise, end):
        command.add_argument("--run", type=Path, required=True, help="run folder")
    for command in (begin, supervise, end):
        command.add_argument(
            "--max-restarts", type=int, default=DEFAULT_MAX_RESTARTS, help="without progress, in a row"
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""``python -m pipelines chain``: the jobs from images to a report, each submitted to start after the one before it.

A second call skips stages that are done, leaves queued and running ones alone, and submits the rest.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.chain.stages import CHAINS, Stage, stages_of
from pipelines.slurm import scheduler
from pipelines.terminal.arguments import stage_parser
from pretrain.command_line import Parser
from pretrain.config.loader import load_file
from pretrain.config.schema.jobs import ChainConfig
from pretrain.errors import SetupError
from pretrain.files import write_atomic
from pretrain.names import tell

EXAMPLES = """examples:
  python -m pipelines chain --config configs/chains/vit_l16_i21k.yaml --dry-run
  python -m pipelines chain --config configs/chains/vit_l16_i21k.yaml"""

MAKE_SITE = "cp slurm/site.example.sh slurm/site.sh, and adapt it"


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    arguments = parser().parse_args(argv)
    chain = load_file(arguments.config, ChainConfig)
    stages = stages_of(chain)
    if arguments.dry_run:
        tell("\n".join(dry_run(stages)))
        if not site_file().is_file():
            tell(f"note: the jobs need the site file {site_file()}: {MAKE_SITE}", file=sys.stderr)
        return 0
    require_site()
    submit(stages, CHAINS / f"{chain.name}.json")
    return 0


def require_site() -> None:
    """Requires the site file, without which every job would fail at its start.

    Raises:
        SetupError: the file is missing; the message explains how to create it.
    """
    if not site_file().is_file():
        raise SetupError(f"no site file at {site_file()}: {MAKE_SITE}")


def site_file() -> Path:
    """The shell file with what is particular to the cluster; jobs read it when they start."""
    return Path(os.environ.get("SITE_FILE", "slurm/site.sh"))


def dry_run(stages: Sequence[Stage]) -> list[str]:
    """The sbatch commands of the unfinished stages, with stage names instead of job ids."""
    lines, waiting = [], set[str]()
    for stage in stages:
        if stage.is_done():
            lines.append(f"# {stage.name} is done")
            continue
        after = [f"<{name}>" for name in stage.after if name in waiting]
        variables = [f"{name}={shlex.quote(value)} " for name, value in stage.environment.items()]
        lines.append("".join(variables) + " ".join(_quote(word) for word in command(stage, after)))
        waiting.add(stage.name)
    return lines


def submit(stages: Sequence[Stage], state: Path) -> dict[str, str]:
    """Submits the stages that are neither done, queued nor running; returns stage → job id.

    Raises:
        SetupError: sbatch rejects a job. If it rejects the options of any job, no job has been submitted.
    """
    jobs: dict[str, str] = json.loads(state.read_text()) if state.exists() else {}
    waiting: dict[str, str] = {}
    todo = [stage for stage in stages if not stage.is_done()]
    running = {stage.name: job for stage in todo if (job := jobs.get(stage.name)) and scheduler.is_alive(job)}
    for stage in todo:
        if stage.name not in running:
            scheduler.submit(["sbatch", "--test-only", *stage.words], stage.name, stage.environment)
    for stage in stages:
        if stage not in todo:
            tell(f"{stage.name:<10} done")
            continue
        if stage.name in running:
            waiting[stage.name] = running[stage.name]
            tell(f"{stage.name:<10} job {running[stage.name]} is on its way")
            continue
        after = [waiting[name] for name in stage.after if name in waiting]
        job = scheduler.submit(command(stage, after), stage.name, stage.environment).strip().split(";")[0]
        waiting[stage.name] = jobs[stage.name] = job
        state.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(state, json.dumps(jobs, indent=1))  # after each job, so that a second call knows about it
        tell(f"{stage.name:<10} job {job}" + (f", after {', '.join(after)}" if after else ""), flush=True)
    return waiting


def command(stage: Stage, after: Sequence[str]) -> list[str]:
    """The sbatch line of a stage; one whose predecessor fails is removed from the queue."""
    wait = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    return ["sbatch", "--parsable", *wait, *stage.words]


def _quote(word: str) -> str:
    return word if word.startswith("--dependency=") else shlex.quote(word)


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "chain",
        "Submits pack → dedup → pretrain → fine-tune → evaluate → collect → report, with dependencies.",
        EXAMPLES,
    )
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML of the chain")
    parser.add_argument("--dry-run", action="store_true", help="print the commands without submitting")
    return parser

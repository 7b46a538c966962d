"""The preflight: every node runs the probes before any of them trains, and unfit nodes are named.

``probe`` runs as a step, one task per node (or per GPU, with ``--compute``); each task leaves a file with its findings.
``judge`` runs in the batch shell afterwards and compares them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.nodes.checks import RED, Expected, Finding, probe_node, token_path
from pipelines.nodes.judgement import Judgement, judge
from pipelines.slurm import scheduler
from pretrain.distributed.rank import Rank, detect
from pretrain.files import write_atomic

JOIN_TIMEOUT_S = 120


def answers_folder(run: Path) -> Path:
    """The folder for the findings of this start's tasks."""
    job, restart = os.environ.get("SLURM_JOB_ID", "local"), os.environ.get("SLURM_RESTART_COUNT", "0")
    return token_path(run).parent / f"{job}-{restart}"


def probe(expected: Expected, *, compute: bool) -> int:
    """One task: the node's probes by its first task, the device's by every task. Collective with ``compute``: yes."""
    rank = detect()
    path = answers_folder(expected.run) / f"rank-{rank.rank:05d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    findings = probe_node(expected) if rank.local_rank == 0 else []
    write_atomic(path, _encode(findings))  # before probes that may hang
    if compute:
        for finding in probe_devices(rank):
            findings.append(finding)
            write_atomic(path, _encode(findings))
    return 0


def probe_devices(rank: Rank) -> list[Finding]:
    """A matrix product on this rank's device, then all-reduces with the neighbouring nodes. Collective: yes."""
    import torch

    from pipelines.nodes import compute
    from pretrain.distributed import startup
    from pretrain.distributed.collectives import gather_objects

    torch.set_num_threads(1)
    device = startup.device_of(rank)
    rate = compute.gemm_tflops(device)
    text, kind = f"{rate:.3g} TFLOP/s in a matrix product", {"device": device.type}
    found = [Finding("gemm", "green", text, values={**kind, "tflops": [round(rate, 3)]})]
    startup.start(rank, timeout_s=JOIN_TIMEOUT_S)
    hosts = gather_objects(socket.gethostname())
    nodes = list(dict.fromkeys(hosts))
    ranks_of_nodes = [[index for index, host in enumerate(hosts) if host == node] for node in nodes]
    rates = [round(rate, 4) for rate in compute.pair_rates(device, ranks_of_nodes, nodes.index(hosts[rank.rank]))]
    if rates and rank.local_rank == 0:
        text = f"all-reduce at {', '.join(f'{rate:.3g}' for rate in rates)} GB/s with its neighbours"
        found.append(Finding("all_reduce", "green", text, values={**kind, "gb_per_s": rates}))
    startup.leave()
    return found


def read_answers(run: Path) -> list[Finding]:
    """The findings of this start's tasks; a truncated file counts as no answer."""
    found = []
    for path in sorted(answers_folder(run).glob("rank-*.json")):
        try:
            found += [Finding(**entry) for entry in json.loads(path.read_text())]
        except (OSError, ValueError, TypeError):
            continue
    return found


def judge_answers(run: Path) -> Judgement:
    """Compares all nodes, prints the findings that are not green on stderr, and writes a report next to the token."""
    nodes = scheduler.current_job().nodes
    findings = read_answers(run)
    judgement = judge(nodes, findings)
    for problem in judgement.problems:
        print(f"preflight: {'error' if problem.level == RED else 'note'}: {problem}", file=sys.stderr, flush=True)
    report = {
        "nodes": list(nodes),
        "bad_nodes": list(judgement.bad_nodes),
        "findings": [finding.to_dict() for finding in findings],
        "problems": [finding.to_dict() for finding in judgement.problems],
    }
    write_atomic(token_path(run).parent / "report.json", json.dumps(report, indent=1))
    shutil.rmtree(answers_folder(run), ignore_errors=True)
    if not judgement.problems:
        print(f"preflight: {len(nodes)} nodes are fit", file=sys.stderr, flush=True)
    return judgement


def _encode(findings: Sequence[Finding]) -> str:
    return json.dumps([finding.to_dict() for finding in findings])

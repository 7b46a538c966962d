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
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from pipelines.nodes.checks import AMBER, GREEN, RED, Expected, Finding, probe_node, token_path
from pipelines.slurm import scheduler
from pretrain.distributed.rank import Rank, detect
from pretrain.errors import SetupError
from pretrain.files import write_atomic

if TYPE_CHECKING:
    import torch

JOIN_TIMEOUT_S = 120
SLOW_GEMM = 0.8  # of the median of all GPUs; GPUs of one kind differ by a few per cent
SLOW_LINK = 0.5  # of the median of all pairs
SMALLEST_FIELD = 3  # with fewer nodes it cannot be determined which one is slow


@dataclass(frozen=True)
class Judgement:
    """The nodes to exclude, and the problems found.

    Attributes:
        bad_nodes: nodes to do without, in order.
        common: the problem that every node has, so that another node would not help.
        problems: every finding that is not green.
    """

    bad_nodes: tuple[str, ...]
    common: tuple[Finding, ...]
    problems: tuple[Finding, ...]


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
        for finding in probe_devices(rank, expected.gpus):
            findings.append(finding)
            write_atomic(path, _encode(findings))
    return 0


def probe_devices(rank: Rank, gpus: int) -> list[Finding]:
    """A matrix product on this rank's device, then all-reduces with a few other nodes. Collective: yes.

    Args:
        rank: this task.
        gpus: GPUs that the job uses on the node; 0: it trains on CPUs.
    """
    import torch

    from pipelines.nodes import compute
    from pretrain.distributed import startup
    from pretrain.distributed.collectives import gather_objects

    torch.set_num_threads(1)
    device, product = _try_device(rank, "cuda" if gpus else "cpu")
    found = [product]
    # The ranks meet on the hosts: one without a usable GPU must not keep the others waiting.
    startup.start(rank, timeout_s=JOIN_TIMEOUT_S, device="cpu")
    places = gather_objects((socket.gethostname(), device is not None))
    fit = list(dict.fromkeys(host for host, _ in places if all(ok for other, ok in places if other == host)))
    ranks_of_nodes = [[index for index, (host, _) in enumerate(places) if host == node] for node in fit]
    own = places[rank.rank][0]
    if device is not None and own in fit:
        rates = [round(rate, 4) for rate in compute.pair_rates(device, ranks_of_nodes, fit.index(own))]
        if rates and rank.local_rank == 0:
            text = f"all-reduce at {', '.join(f'{rate:.3g}' for rate in rates)} GB/s with other nodes"
            found.append(Finding("all_reduce", GREEN, text, values={"device": device.type, "gb_per_s": rates}))
    startup.leave()
    return found


def _try_device(rank: Rank, wanted: str) -> tuple[torch.device | None, Finding]:
    """This rank's device, None if it cannot be used, and how fast it computes."""
    import torch

    from pipelines.nodes.compute import gemm_rate
    from pretrain.distributed.device import choose_device

    try:
        device = choose_device(wanted, rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        rate = gemm_rate(device)
    except (SetupError, RuntimeError) as error:  # CUDA's errors are RuntimeErrors
        return None, Finding("device", RED, f"{wanted} cannot be used: {error}", "exclude the node")
    text = f"{rate.sustained:.3g} TFLOP/s in a matrix product"
    values = {"device": device.type, "tflops": [round(rate.sustained, 3)], "first_tflops": round(rate.first, 3)}
    if device.type == "cuda" and rate.sustained < SLOW_GEMM * rate.first:
        text += f", {rate.first:.3g} before it became hot"
        return device, Finding("gemm", AMBER, text, "look for a throttled GPU (nvidia-smi -q -d PERFORMANCE)", values)
    return device, Finding("gemm", GREEN, text, values=values)


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


def judge(nodes: Sequence[str], findings: Iterable[Finding]) -> Judgement:
    """Which nodes are bad, and whether the nodes are the problem at all.

    Args:
        nodes: all nodes of the job; one that has not answered is bad.
        findings: what the nodes found.
    """
    found = list(findings)
    found += [*silent(nodes, found), *other_kinds(found), *slow_devices(found), *slow_links(found)]
    problems = [finding for finding in found if finding.level in (AMBER, RED)]
    red = [finding for finding in problems if finding.level == RED]
    counts = Counter(probe for probe, _ in {(finding.probe, finding.host) for finding in red})
    everywhere = {probe for probe, count in counts.items() if count == len(nodes)}
    common = tuple(finding for finding in red if finding.probe in everywhere)
    bad = {finding.host for finding in red if finding.probe not in everywhere}
    if len(nodes) > 0 and bad >= set(nodes):  # for different reasons: excluding single nodes would not help either
        return Judgement((), tuple(red), tuple(problems))
    return Judgement(tuple(node for node in nodes if node in bad), common, tuple(problems))


def silent(nodes: Sequence[str], findings: Iterable[Finding]) -> list[Finding]:
    """Nodes that have not answered."""
    heard = {finding.host for finding in findings}
    text, remedy = "the node has not answered", "exclude it, and tell the administrator"
    return [Finding("answer", RED, text, remedy, host=node) for node in nodes if node not in heard]


def other_kinds(findings: Iterable[Finding]) -> list[Finding]:
    """Nodes whose GPUs are not of the kind that most nodes have: the whole job would wait for the slower ones."""
    kinds = {f.host: str(f.values["kind"]) for f in findings if f.probe == "gpus" and f.values.get("count")}
    if len(kinds) < 2:
        return []
    usual, count = Counter(kinds.values()).most_common(1)[0]
    level = RED if count > len(kinds) / 2 else AMBER
    return [
        Finding(
            "kind", level, f"its GPUs are {kind}, most nodes have {usual}", "ask for one kind (--constraint)", host=host
        )
        for host, kind in kinds.items()
        if kind != usual
    ]


def slow_devices(findings: Iterable[Finding]) -> list[Finding]:
    """Nodes with a device whose matrix product is much slower than the median of all: also a CPU among GPUs."""
    found = [finding for finding in findings if finding.probe == "gemm" and finding.values]
    if len({finding.host for finding in found}) < SMALLEST_FIELD:
        return []
    usual = median([float(rate) for finding in found for rate in finding.values["tflops"]])
    slow = []
    for finding in found:
        rates = [float(rate) for rate in finding.values["tflops"]]
        if min(rates) < SLOW_GEMM * usual:
            text = f"{min(rates):.3g} TFLOP/s in a matrix product, the median of all devices is {usual:.3g}"
            remedy = "exclude the node; look for a throttled or shared GPU"
            slow.append(Finding("slow_device", _level(found), text, remedy, host=finding.host))
    return slow


def slow_links(findings: Iterable[Finding]) -> list[Finding]:
    """Nodes that are slow with all of their partners."""
    found = [finding for finding in findings if finding.probe == "all_reduce" and finding.values.get("gb_per_s")]
    best = {finding.host: max(float(rate) for rate in finding.values["gb_per_s"]) for finding in found}
    if len(best) < SMALLEST_FIELD:
        return []
    usual = median(best.values())  # not of all pairs: one node of three spoils two of them
    slow = []
    for finding in found:
        if (rate := best[finding.host]) < SLOW_LINK * usual:
            text = f"all-reduce at {rate:.3g} GB/s with any partner, the median node has {usual:.3g}"
            remedy = "exclude the node; look at its network interface (NCCL_DEBUG=INFO)"
            slow.append(Finding("slow_link", _level(found), text, remedy, host=finding.host))
    return slow


def _level(field: Iterable[Finding]) -> str:
    """Ranks on CPUs share cores with other processes, so slow ones are only reported, unless others have GPUs."""
    return RED if any(finding.values.get("device") == "cuda" for finding in field) else AMBER


def _encode(findings: Sequence[Finding]) -> str:
    return json.dumps([finding.to_dict() for finding in findings])

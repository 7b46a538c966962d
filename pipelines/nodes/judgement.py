"""From the findings of all nodes to the nodes that should not train. Pure: no torch, no files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from pipelines.nodes.checks import AMBER, RED, Finding

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
    """Nodes with a device whose matrix product is much slower than the median of all."""
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
            slow.append(Finding("slow_device", _level(finding), text, remedy, host=finding.host))
    return slow


def slow_links(findings: Iterable[Finding]) -> list[Finding]:
    """Nodes that are slow with both of their neighbours."""
    found = [finding for finding in findings if finding.probe == "all_reduce" and finding.values.get("gb_per_s")]
    best = {finding.host: max(float(rate) for rate in finding.values["gb_per_s"]) for finding in found}
    if len(best) < SMALLEST_FIELD:
        return []
    usual = median(best.values())  # not of all pairs: one node of three spoils two of them
    slow = []
    for finding in found:
        if (rate := best[finding.host]) < SLOW_LINK * usual:
            text = f"all-reduce at {rate:.3g} GB/s with either neighbour, the median node has {usual:.3g}"
            remedy = "exclude the node; look at its network interface (NCCL_DEBUG=INFO)"
            slow.append(Finding("slow_link", _level(finding), text, remedy, host=finding.host))
    return slow


def _level(finding: Finding) -> str:
    """Ranks on CPUs share cores with other processes, so slow ones are only reported."""
    return RED if finding.values.get("device") == "cuda" else AMBER

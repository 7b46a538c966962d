"""From findings to bad nodes."""

from __future__ import annotations

import pytest

from pipelines.nodes.checks import AMBER, GREEN, RED, Finding
from pipelines.slurm.preflight import judge

NODES = ("node1", "node2", "node3", "node4")


def finding(probe: str, host: str, level: str = GREEN, **values: object) -> Finding:
    return Finding(probe, level, "text", values=dict(values), host=host)


def gpus(kinds: str) -> list[Finding]:
    return [finding("gpus", host, count=8, kind=kind) for host, kind in zip(NODES, kinds, strict=True)]


def gemm(rates: list[list[float]], device: str = "cuda") -> list[Finding]:
    """One finding per device, as the tasks write them."""
    pairs = [(host, rate) for host, own in zip(NODES, rates, strict=False) for rate in own]
    return [finding("gemm", host, device=device, tflops=[rate]) for host, rate in pairs]


def gemm_of(host: str, rate: float, device: str = "cuda") -> list[Finding]:
    return [finding("gemm", host, device=device, tflops=[rate])]


def on_cpu(host: str) -> list[Finding]:
    return gemm_of(host, 0.02, "cpu")


def links(rates: list[list[float]]) -> list[Finding]:
    return [finding("all_reduce", h, device="cuda", gb_per_s=own) for h, own in zip(NODES, rates, strict=False)]


@pytest.mark.parametrize(
    ("findings", "bad", "problem"),
    [
        (gpus("AAAA"), (), None),
        (gpus("AAAB"), ("node4",), "kind"),
        (gpus("AABB"), (), "kind"),  # no usual kind: said, but nobody is blamed
        (gpus("AAAA")[:3], ("node4",), "answer"),
        ([*gpus("AAAA"), finding("memory", "node2", RED)], ("node2",), "memory"),
        ([*gpus("AAAA"), finding("shared_memory", "node2", AMBER)], (), "shared_memory"),
        ([*gpus("AAAA"), *gemm([[300, 301], [299, 298], [300, 150], [300, 300]])], ("node3",), "slow_device"),
        ([*gpus("AAAA"), *gemm([[300], [290], [270], [310]])], (), None),
        ([*gpus("AAAA"), *gemm([[300], [300], [100], [300]], "cpu")], (), "slow_device"),  # said, no more
        # the driver of node3 shows its GPUs, but torch computes on the CPU there
        ([*gpus("AAAA"), *gemm([[700], [705]]), *on_cpu("node3"), *gemm_of("node4", 700)], ("node3",), "slow_device"),
        ([*gpus("AAAA"), finding("device", "node3", RED)], ("node3",), "device"),
        # node2 is slow with both partners, which are slow with it and quick with others
        ([*gpus("AAAA"), *links([[2, 20], [2, 2], [2, 20], [20, 20]])], ("node2",), "slow_link"),
        ([*gpus("AAAA"), *links([[2, 20], [2, 2], [2, 20]])], ("node2",), "slow_link"),
        ([*gpus("AAAA"), *links([[2], [2]])], (), None),  # two nodes: nobody knows which
    ],
)
def test_the_bad_node_is_named(findings: list[Finding], bad: tuple[str, ...], problem: str | None) -> None:
    judgement = judge(NODES, findings)
    assert judgement.bad_nodes == bad and not judgement.common
    assert [p.probe for p in judgement.problems] == ([problem] * len(judgement.problems) if problem else [])
    assert bool(judgement.problems) == (problem is not None)


def test_what_is_wrong_everywhere_is_no_matter_of_nodes() -> None:
    findings = [*gpus("AAAA"), *[finding("shards", host, RED) for host in NODES], finding("memory", "node2", RED)]
    judgement = judge(NODES, findings)
    assert {entry.probe for entry in judgement.common} == {"shards"} and judgement.bad_nodes == ("node2",)


def test_all_nodes_bad_for_different_reasons_blames_none() -> None:
    probes = ("gpus", "memory", "clock", "space")
    judgement = judge(NODES, [finding(probe, host, RED) for probe, host in zip(probes, NODES, strict=True)])
    assert judgement.bad_nodes == () and len(judgement.common) == 4

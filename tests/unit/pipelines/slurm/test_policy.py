"""The decision after a failure, as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.slurm.layout import Layout
from pipelines.slurm.policy import Limits, Situation, is_loop, next_action
from pipelines.slurm.starts import Failure

FAILED = Failure("node2", 1, 23, "Killed", has_trained=True, failed_at=10.0, detected_at=10.5)
NODES = ("node1", "node2", "node3", "node4")
NOW = Situation(
    nodes=NODES,
    used=("node1", "node2"),
    worlds=(1, 2, 4, 8, 16),
    ranks=2,
    ranks_per_node=1,
    without_progress=0,
    left_s=3600.0,
)
LIMITS = Limits(without_progress=3, node_failures=2)


def elsewhere(step: int, node: str = "node9") -> Failure:
    """A failure of another node after another step."""
    return replace(FAILED, node=node, step=step)


def test_a_spare_node_replaces_the_one_that_failed() -> None:
    action = next_action([FAILED], NOW, LIMITS)
    assert (action.kind, action.layout, action.nodes) == ("restart", Layout(2, 1), ("node1", "node3"))
    assert action.excluded == () and "rank 1 on node2: Killed (after step 23)" in action.reason


def test_the_nodes_that_did_not_fail_stay() -> None:
    """They have the fast checkpoint; with two nodes replaced, it would be lost."""
    action = next_action([elsewhere(11, "node1"), FAILED], NOW, LIMITS)
    assert action.nodes == ("node1", "node3"), "node1 has failed before, and trained again since"


def test_without_spare_nodes_it_stays_where_it_was() -> None:
    action = next_action([FAILED], replace(NOW, nodes=("node1", "node2")), LIMITS)
    assert (action.kind, action.nodes, action.excluded) == ("restart", ("node1", "node2"), ())


def test_a_node_that_fails_twice_is_not_used_any_more() -> None:
    two = [elsewhere(11, "node2"), FAILED]
    action = next_action(two, replace(NOW, nodes=("node1", "node2")), LIMITS)
    assert (action.kind, action.layout, action.excluded) == ("restart", Layout(1, 1), ("node2",))
    assert action.nodes == ("node1",)
    patient = Limits(without_progress=3, node_failures=3)
    assert next_action(two, replace(NOW, nodes=("node1", "node2")), patient).nodes == ("node1", "node2")


def test_a_node_that_is_gone_shrinks_the_step() -> None:
    """3 nodes of 8 GPUs, of which one is gone: 16 ranks draw the same batches as 24."""
    now = replace(NOW, nodes=("node1", "node3"), used=NODES[:3], worlds=(8, 16, 24), ranks=24, ranks_per_node=8)
    action = next_action([replace(FAILED, rank=None)], now, LIMITS)
    assert (action.kind, action.layout, action.nodes) == ("restart", Layout(2, 8), ("node1", "node3"))


@pytest.mark.parametrize(
    ("failures", "changes", "says"),
    [
        ([FAILED], {"without_progress": 3}, "Killed"),
        ([FAILED], {"left_s": 299.0}, "too little time"),
        ([FAILED], {"nodes": ()}, "too few nodes"),
        ([FAILED], {"worlds": (4,), "ranks": 4, "nodes": ("node1",)}, "too few nodes"),
        ([elsewhere(9, "node1"), elsewhere(9, "node1"), FAILED], {"nodes": ("node1",)}, "too few nodes"),
        ([replace(FAILED, has_trained=False)] * 2, {}, "no step was done in 2 starts"),
    ],
)
def test_what_cannot_continue_is_requeued(failures: list[Failure], changes: dict[str, object], says: str) -> None:
    action = next_action(failures, replace(NOW, **changes), LIMITS)  # type: ignore[arg-type]
    assert action.kind == "requeue" and says in action.reason


def test_a_requeue_names_the_nodes_to_avoid() -> None:
    action = next_action([elsewhere(9, "node2"), FAILED], replace(NOW, left_s=0.0), LIMITS)
    assert (action.kind, action.excluded) == ("requeue", ("node2",))


def test_a_site_may_want_its_nodes_back() -> None:
    assert next_action([FAILED], NOW, replace(LIMITS, in_place=False)).kind == "requeue"


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([FAILED] * 3, True),
        ([FAILED] * 2, False),
        ([elsewhere(11), FAILED, FAILED, FAILED], True),
        ([FAILED, replace(FAILED, node="node3"), replace(FAILED, node="node1")], True),  # wherever the rank was
        ([FAILED, replace(FAILED, step=24), FAILED], False),
        ([FAILED, replace(FAILED, rank=0), FAILED], False),
        ([FAILED, replace(FAILED, error="Segmentation fault"), FAILED], False),
        ([replace(FAILED, has_trained=False)] * 3, False),
        ([replace(FAILED, rank=None)] * 3, False),  # a node, which is avoided instead
        ([replace(FAILED, error=f"RuntimeError: peer 10.0.0.7:{port} at 0x{port}") for port in (41, 52, 63)], True),
    ],
)
def test_a_crash_loop(failures: list[Failure], expected: bool) -> None:
    assert is_loop(failures) == expected
    limits = Limits(without_progress=9, node_failures=9)
    assert (next_action(failures, NOW, limits).kind == "stop") == expected

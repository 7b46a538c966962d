"""The pools of ranks themselves: results, failures, hangs, and that the next case starts from a clean state."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import pytest

from tests.pool import Pool, RankFailureError


@dataclass
class Answer:
    rank: int
    total: int


def sum_of_ranks(offset: int) -> Answer:
    import torch
    import torch.distributed as dist

    total = torch.tensor([dist.get_rank() + offset])
    dist.all_reduce(total)
    return Answer(dist.get_rank(), int(total))


def environment_of_a_rank() -> dict[str, str]:
    return {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "EXTRA", "LEFT")}


def leave_traces() -> int:
    import torch

    os.environ["LEFT"] = "1"
    os.chdir("/")
    torch.rand(3)
    return torch.initial_seed()


def fail_on_rank(rank: int) -> None:
    import torch
    import torch.distributed as dist

    print("before the failure")
    if dist.get_rank() == rank:
        raise ValueError("a bad rank")
    dist.all_reduce(torch.ones(1))  # the others wait for it


def hang_on_rank(rank: int) -> None:
    if int(os.environ["RANK"]) == rank:
        time.sleep(3600)


def die_on_rank(rank: int) -> None:
    if int(os.environ["RANK"]) == rank:
        os._exit(3)


def deepspeed_world() -> int:
    import deepspeed.comm

    return deepspeed.comm.get_world_size()


@pytest.mark.parametrize("pool", ["pool2", "pool4"])
def test_every_rank_returns_its_result(pool: str, request: pytest.FixtureRequest) -> None:
    ranks: Pool = request.getfixturevalue(pool)
    answers = ranks.run(sum_of_ranks, 10)
    expected = sum(range(ranks.size)) + 10 * ranks.size
    assert answers == [Answer(rank, expected) for rank in range(ranks.size)]


def test_deepspeed_has_joined_the_group(pool2: Pool) -> None:
    assert pool2.run(deepspeed_world) == [2, 2]


def test_a_case_leaves_no_traces(pool2: Pool) -> None:
    assert pool2.run(leave_traces) == [0, 0]
    first = pool2.run(environment_of_a_rank, env={"EXTRA": "x"})
    assert [(e["RANK"], e["WORLD_SIZE"], e["LOCAL_RANK"], e["EXTRA"], e["LEFT"]) for e in first] == [
        ("0", "2", "0", "x", ""),
        ("1", "2", "1", "x", ""),
    ]
    assert pool2.run(environment_of_a_rank)[0]["EXTRA"] == ""
    assert pool2.run(os.getcwd) == [os.getcwd()] * 2


def test_a_failing_rank_is_reported_and_the_pool_works_again(pool2: Pool) -> None:
    with pytest.raises(RankFailureError) as caught:
        pool2.run(fail_on_rank, 1)
    failure = caught.value.failures[1]
    assert failure.kind == "ValueError" and "a bad rank" in failure.text and "fail_on_rank" in failure.text
    assert "before the failure" in str(caught.value)
    assert pool2.run(sum_of_ranks, 0)[0].total == 1


def test_a_hanging_rank_fails_the_case_with_its_stack(pool2: Pool) -> None:
    with pytest.raises(RankFailureError) as caught:
        pool2.run(hang_on_rank, 1, timeout_s=5.0)  # the rank sleeps for longer than pytest's limit for a test
    assert list(caught.value.failures) == [1]
    assert caught.value.failures[1].kind == "hang" and "hang_on_rank" in caught.value.failures[1].text
    assert pool2.run(sum_of_ranks, 0)[0].total == 1


def test_an_interrupted_case_leaves_no_answer_for_the_next(pool2: Pool) -> None:
    main = threading.main_thread().ident
    assert main is not None
    pool2.run(sum_of_ranks, 0)  # so that the ranks are there
    threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):  # as pytest's time limit, which raises in the middle of a case
        pool2.run(time.sleep, 2.0)
    assert pool2.run(sum_of_ranks, 0)[0].total == 1


def test_a_dead_rank_fails_the_case(pool2: Pool) -> None:
    with pytest.raises(RankFailureError) as caught:
        pool2.run(die_on_rank, 0)
    assert caught.value.failures[0].kind == "died"
    assert pool2.run(sum_of_ranks, 0)[0].total == 1


def test_a_local_function_is_refused(pool2: Pool) -> None:
    with pytest.raises(TypeError, match="top of its module"):
        pool2.run(lambda: None)


def test_the_pools_import_no_torch_here() -> None:
    code = "import sys; import tests.conftest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

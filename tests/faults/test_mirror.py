"""Copies of checkpoints in a real S3-compatible store (``checkpoint.mirror``), with faults in between."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pretrain.engine.run_folder import read_events
from tests.command import Commands, kill_tree
from tests.faults.job import NONE, Faults, checkpoint_steps, job
from tests.faulty_store import Store, store_before
from tests.integration.small_run import curve, pretrain, verdict
from tests.pool import Pool
from tests.s3_server import CREDENTIALS, REGION, client_of, s3_server

BUCKET = "copies"


class Place(NamedTuple):
    """A bucket of an S3 server behind a proxy.

    Attributes:
        store: the proxy.
        client: reads and changes the bucket without it.
    """

    store: Store
    client: Any

    def objects(self) -> dict[str, int]:
        """Key below the run's copies → size."""
        listed = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return {item["Key"].removeprefix("deep/run/checkpoints/"): item["Size"] for item in listed}

    def content(self, key: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=f"deep/run/checkpoints/{key}")["Body"].read()

    def complete(self) -> list[int]:
        return sorted(int(key[5:13]) for key in self.objects() if key.endswith("/COMPLETE.json"))

    def flip(self, key: str) -> None:
        """Changes one byte of an object."""
        content = bytearray(self.content(key))
        content[len(content) // 2] ^= 1
        self.client.put_object(Bucket=BUCKET, Key=f"deep/run/checkpoints/{key}", Body=bytes(content))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def place(endpoint: str) -> Iterator[Place]:
    client = client_of(endpoint)
    client.create_bucket(Bucket=BUCKET)
    with store_before(endpoint) as store:
        yield Place(store, client)
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
    client.delete_bucket(Bucket=BUCKET)


def with_credentials(folder: str, settings: list[str], faults: Faults) -> dict[str, Any]:
    os.environ.update(CREDENTIALS, AWS_DEFAULT_REGION=REGION)
    try:
        return job(folder, settings, faults)
    finally:
        for name in (*CREDENTIALS, "AWS_DEFAULT_REGION"):
            del os.environ[name]


def run(pool: Pool, folder: Path, place: Place, *settings: str, faults: Faults = NONE) -> dict[str, Any]:
    where = f"cluster.remote={{s3_endpoint: {place.store.url}, attempts: 2, timeout_s: 60}}"
    mirror = f"checkpoint.mirror=s3://{BUCKET}/deep/"
    return pool.run(with_credentials, str(folder), [mirror, where, *settings], faults)[0]


def said(outcome: dict[str, Any], *words: str) -> bool:
    return any(all(word in line for word in words) for line in outcome["said"])


def test_a_run_without_its_folder_continues_from_the_copy(
    digits: None, pool2: Pool, tmp_path: Path, place: Place
) -> None:
    straight = pool2.run(job, str(tmp_path / "straight"), ["checkpoint.keep_last=2"])[0]
    assert straight["outcome"] == "complete"
    stopped = run(pool2, tmp_path, place, faults=Faults(stop_at=(6, 0)))
    assert (stopped["outcome"], stopped["step"]) == ("requeue", 6)
    assert place.complete() == checkpoint_steps(tmp_path / "run") == [4, 6]
    kept = curve(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    resumed = run(pool2, tmp_path, place)
    assert resumed["outcome"] == "complete" and said(resumed, "step 6: downloaded from s3://copies/deep/run/")
    assert curve(tmp_path / "straight/run") == kept | curve(tmp_path / "run")
    assert place.complete() == checkpoint_steps(tmp_path / "run") == [8, 12], "retention acts on both"
    files = {path for path in (tmp_path / "run/checkpoints").rglob("*") if path.is_file()}
    expected = {str(path.relative_to(tmp_path / "run/checkpoints")): path.stat().st_size for path in files}
    assert place.objects() == expected, "nothing else is left"


@pytest.mark.parametrize("fault", ["flip", pytest.param("missing", marks=pytest.mark.slow)])
def test_a_damaged_copy_is_passed_over(digits: None, pool2: Pool, tmp_path: Path, place: Place, fault: str) -> None:
    two_saves = "duration=8 steps"  # of three, a slow store would be sent the first and the last
    assert run(pool2, tmp_path, place, two_saves)["outcome"] == "complete"
    key = "step-00000008/slices/rank-00001.safetensors"
    if fault == "flip":
        place.flip(key)
    else:
        place.client.delete_object(Bucket=BUCKET, Key=f"deep/run/checkpoints/{key}")
    shutil.rmtree(tmp_path / "run")
    resumed = run(pool2, tmp_path, place, two_saves)
    assert said(resumed, "step-00000008", "passed over") and said(resumed, "step 4: downloaded")
    assert resumed["outcome"] == "complete" and place.complete() == [4, 8]
    shutil.rmtree(tmp_path / "run")
    assert said(run(pool2, tmp_path, place, two_saves), "step 8: downloaded"), "it was copied again"


def test_a_newer_copy_wins_over_an_older_fast_checkpoint(
    digits: None, pool2: Pool, tmp_path: Path, place: Place
) -> None:
    """The run's checkpoints are lost, and a node that was away returns with one of the first attempt."""
    node, stale = tmp_path / "node", tmp_path / "stale"
    node.mkdir()
    fast = [f"checkpoint.fast={{folder: {node}, every: 1 steps, peers: 0}}", "checkpoint.asynchronous=false"]
    run(pool2, tmp_path, place, *fast, faults=Faults(crash_at=3))
    shutil.copytree(node, stale)
    assert run(pool2, tmp_path, place, *fast, faults=Faults(stop_at=(6, 0)))["step"] == 6
    assert place.complete() == [4, 6]
    shutil.rmtree(tmp_path / "run/checkpoints")
    shutil.copytree(stale, node, dirs_exist_ok=True)
    assert [path.name for path in node.glob("*/*")] == ["00000001-0000-step-00000002"]
    resumed = run(pool2, tmp_path, place, *fast, faults=Faults(crash_at=8))
    assert said(resumed, "step 6: downloaded from s3://copies/deep/run/"), resumed["said"]
    again = run(pool2, tmp_path, place, *fast, faults=Faults(crash_at=8))
    assert said(again, "from the fast checkpoint of step 7"), "starts count from 1 again, but it is not older"


def test_a_refused_upload_costs_the_copy_and_a_rerun_makes_it(
    digits: None, pool2: Pool, tmp_path: Path, place: Place
) -> None:
    place.store.fault = lambda method, path, query, number: (
        "denied" if method == "PUT" and path.endswith("rank-00001.safetensors") else None
    )
    failed = run(pool2, tmp_path, place)
    assert failed["outcome"] == "fatal" and failed["step"] == 12
    assert (
        "all steps done and saved, but step 12 is not in s3://copies/deep/run/checkpoints: rank 1" in failed["reason"]
    )
    assert "the store does not allow it (HTTP 403 AccessDenied)" in failed["reason"]
    assert said(failed, "warning: step 4 is not in", "rank 1") and place.complete() == []
    assert checkpoint_steps(tmp_path / "run") == [8, 12], "the training and its checkpoints are not affected"
    place.store.fault = lambda *place: None
    assert run(pool2, tmp_path, place)["outcome"] == "complete" and place.complete() == [12]
    assert {key.partition("/")[0] for key in place.objects()} == {"step-00000012"}, "torn copies are removed"
    copies = [event for event in read_events(tmp_path / "run/history.jsonl") if event["kind"] == "copy"]
    assert [(event["step"], "problem" in event) for event in copies][-2:] == [(12, True), (12, False)]


def test_a_slow_store_delays_no_step_and_the_newest_checkpoint_is_copied_next(
    digits: None, pool2: Pool, tmp_path: Path, place: Place
) -> None:
    """The uploads of step 4 are held until step 12 is saved."""
    place.store.fault = lambda method, path, query, number: "hold" if "step-00000004" in path else None

    def release() -> None:
        while not (tmp_path / "run/checkpoints/step-00000012").exists():
            time.sleep(0.02)
        place.store.released.set()

    threading.Thread(target=release, daemon=True).start()
    outcome = run(pool2, tmp_path, place, "checkpoint.keep_last=1")
    assert outcome["outcome"] == "complete"
    assert said(outcome, "step 8: not copied", "step 4 is still being copied; step 12 is next")
    assert place.complete() == checkpoint_steps(tmp_path / "run") == [12]


def test_a_store_that_does_not_answer_is_not_an_empty_one(
    digits: None, pool2: Pool, tmp_path: Path, place: Place
) -> None:
    place.store.fault = lambda method, path, query, number: "error" if method == "GET" else None
    outcome = run(pool2, tmp_path, place)
    assert outcome["outcome"] == "CheckpointError" and "2 attempts" in outcome["reason"]
    assert "checkpoint.mirror: s3://copies/deep/run/checkpoints" in outcome["reason"]


def test_a_store_that_is_away_stops_no_restart(digits: None, pool2: Pool, tmp_path: Path) -> None:
    """The server is stopped: the run folder counts, then a fast checkpoint; without either the start is refused."""
    node = tmp_path / "node"
    node.mkdir()
    fast = f"checkpoint.fast={{folder: {node}, every: 1 steps, peers: 0}}"
    straight = pool2.run(job, str(tmp_path / "straight"), [])[0]
    assert straight["outcome"] == "complete"
    with s3_server() as endpoint:
        client_of(endpoint).create_bucket(Bucket=BUCKET)
        where = f"cluster.remote={{s3_endpoint: {endpoint}, attempts: 2, timeout_s: 20}}"
        settings = [f"checkpoint.mirror=s3://{BUCKET}/deep/", where, fast, "checkpoint.asynchronous=false"]
        first = pool2.run(with_credentials, str(tmp_path), settings, Faults(stop_at=(6, 0)))[0]
        assert first["step"] == 6 and said(first, "step 6: copied to"), first["said"]
    second = pool2.run(with_credentials, str(tmp_path), settings, Faults(crash_at=9))[0]
    assert said(second, "warning:", "did not answer at a start", "start 1 of this run without it", "step 6 is the")
    assert said(second, "resuming", "step-00000006, its newest complete checkpoint"), second["said"]
    shutil.rmtree(tmp_path / "run/checkpoints")
    third = pool2.run(with_credentials, str(tmp_path), settings, Faults(stop_at=(10, 0)))[0]
    assert said(third, "start 2 of this run without it") and said(third, "from the fast checkpoint of step 8")
    assert third["step"] == 10, third["said"]
    problems = [event.get("problem", "") for event in read_events(tmp_path / "run/history.jsonl")]
    assert sum("did not answer at a start" in problem for problem in problems) == 2
    assert curve(tmp_path / "run") == {
        step: values for step, values in curve(tmp_path / "straight/run").items() if step <= 10
    }
    shutil.rmtree(tmp_path / "run/checkpoints")
    nothing = pool2.run(with_credentials, str(tmp_path), settings, NONE)[0]
    assert nothing["outcome"] == "CheckpointError" and "has a checkpoint, and the mirror may have" in nothing["reason"]


@pytest.mark.slow
def test_killed_during_an_upload(digits: None, command: Commands, tmp_path: Path, place: Place) -> None:
    """Rank 1 waits for the store with its slices of step 8, rank 0 has uploaded its own."""
    place.store.fault = lambda method, path, query, number: (
        "hold" if method == "PUT" and path.endswith("step-00000008/slices/rank-00001.safetensors") else None
    )
    where = f"cluster.remote.s3_endpoint={place.store.url}"
    words = pretrain("deepspeed", tmp_path, f"checkpoint.mirror=s3://{BUCKET}/deep", where)
    env = {**CREDENTIALS, "AWS_DEFAULT_REGION": REGION}
    process = command.start(*words, env=env)
    while not any("step-00000008/slices/rank-00001" in path for _, path, _ in place.store.requests):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    kill_tree(process)
    process.wait()
    place.store.fault = lambda *place: None
    shutil.rmtree(tmp_path / "run")
    assert place.complete() == [4], "the copy of step 8 lacks a file"
    resumed = command.run(*words, env=env, check=True).stdout
    assert "step 4: downloaded" in resumed and verdict(tmp_path / "run")["outcome"] == "complete"
    assert place.complete() == [8, 12]

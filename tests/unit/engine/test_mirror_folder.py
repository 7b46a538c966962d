"""Copies of checkpoints in an object store: uploads through faults, torn and damaged copies, retention."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.__main__ import main
from pretrain.config.loader import load_saved
from pretrain.config.schema.cluster import RemoteConfig
from pretrain.data.storage import objects
from pretrain.data.storage.objects import ObjectFolder
from pretrain.engine.checkpoint_folder import examine, final_path, seal, write_marker
from pretrain.engine.mirror_folder import DamagedCopy, MirrorFolder
from pretrain.engine.retention import Retention
from pretrain.errors import CheckpointError, DataError
from pretrain.files import make_folders
from tests.faulty_store import Store, store_before
from tests.s3_server import CREDENTIALS, REGION, client_of, s3_server
from tests.unit.pipelines.run_folders import write_run

BUCKET = "copies"
SLICES = "slices/rank-00000.safetensors"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def store(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The S3 server behind a proxy, with an empty bucket."""
    for name, value in {**CREDENTIALS, "AWS_DEFAULT_REGION": REGION}.items():
        monkeypatch.setenv(name, value)
    client = client_of(endpoint)
    client.create_bucket(Bucket=BUCKET)
    with store_before(endpoint) as store:
        yield store
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
    client.delete_bucket(Bucket=BUCKET)


def mirror(store: Store, *, attempts: int = 3, timeout_s: float = 20) -> MirrorFolder:
    config = RemoteConfig(s3_endpoint=store.url, attempts=attempts, timeout_s=timeout_s)
    return MirrorFolder(ObjectFolder(f"s3://{BUCKET}/run/checkpoints", config))


def checkpoint(folder: Path, step: int, *, size: int = 1000, metrics: dict[str, float] | None = None) -> dict[str, Any]:
    """Writes a complete checkpoint of random bytes; returns its files as in the marker."""
    path = final_path(folder, step)
    make_folders(path / "slices")
    for name in (SLICES, "state.json"):
        (path / name).write_bytes(os.urandom(size))
    files = {name: seal(path / name) for name in (SLICES, "state.json")}
    write_marker(path, {"format": 1, "step": step, "files": files, "metrics": metrics or {}})
    return files


def copy(to: MirrorFolder, folder: Path, step: int, **given: Any) -> None:
    files, path = checkpoint(folder, step, **given), final_path(folder, step)
    to.begin(step)
    to.upload(step, path, files)
    to.publish(step, path)


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", ["error", "reset", "drop", "flip"])
def test_an_upload_survives(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A fault in the second of three parts of the slices."""
    monkeypatch.setattr(objects, "PART_BYTES", 5 << 20)  # the least that S3 takes
    faults = []

    def fault(method: str, path: str, query: str, number: int) -> str | None:
        if method == "PUT" and "partNumber=2" in query and not faults:
            faults.append(path)
            return kind
        return None

    store.fault = fault
    copy(mirror(store), tmp_path, 4, size=11 << 20)
    assert len(faults) == 1
    found, _ = mirror(store).fetch(4, tmp_path / "elsewhere")
    assert content(found) == content(final_path(tmp_path, 4))


def test_a_store_that_always_changes_a_byte_gets_no_copy(tmp_path: Path, store: Store) -> None:
    store.fault = lambda method, path, query, number: "flip" if method == "PUT" and SLICES in path else None
    with pytest.raises(DataError, match=rf"step-00000004/{SLICES} does not have the hash of .* after 3 uploads"):
        copy(mirror(store), tmp_path, 4)
    assert mirror(store).complete() == []


def test_a_store_that_falls_silent_is_given_up(tmp_path: Path, store: Store) -> None:
    store.fault = lambda method, path, query, number: "stall" if method == "PUT" else None
    with pytest.raises(DataError, match="2 attempts in"):
        copy(mirror(store, attempts=1, timeout_s=0.3), tmp_path, 4)


def test_a_torn_upload_is_not_a_copy_and_is_removed(tmp_path: Path, store: Store) -> None:
    """A kill leaves files without a marker, or an old marker removed before its files were replaced."""
    copy(mirror(store), tmp_path, 2)
    files = checkpoint(tmp_path, 4)
    torn = mirror(store)
    torn.begin(4)
    torn.upload(4, final_path(tmp_path, 4), {SLICES: files[SLICES]})
    assert torn.complete() == [2] and set(torn.copies()) == {2, 4}
    copy(mirror(store), tmp_path, 6)
    mirror(store).prune(Retention(keep_last=2), 6)
    assert set(mirror(store).copies()) == {2, 6}


def test_a_copy_that_lost_a_file_after_its_upload_is_not_completed(tmp_path: Path, store: Store) -> None:
    files, to, path = checkpoint(tmp_path, 4), mirror(store), final_path(tmp_path, 4)
    to.upload(4, path, files)
    to.objects.remove([f"step-00000004/{SLICES}"])
    with pytest.raises(DataError, match=f"{SLICES} vanished after the upload"):
        to.publish(4, path)
    assert to.complete() == []


def test_another_copy_of_a_step_replaces_all_of_the_first(tmp_path: Path, store: Store) -> None:
    """The first was written by more ranks."""
    to = mirror(store)
    copy(to, tmp_path / "first", 4)
    to.objects.write("step-00000004/slices/rank-00001.safetensors", b"of two ranks")
    copy(to, tmp_path / "second", 4)
    assert set(to.copies()[4]) == {SLICES, "state.json", "COMPLETE.json"}
    found, _ = to.fetch(4, tmp_path / "elsewhere")
    assert content(found) == content(final_path(tmp_path / "second", 4))


def test_the_retention_rule_and_abandoned_steps(tmp_path: Path, store: Store) -> None:
    to = mirror(store)
    for step, top1 in ((2, 0.9), (4, 0.1), (6, 0.2), (8, 0.3), (20, 0.95)):
        copy(to, tmp_path, step, metrics={"val/top1": top1})
    to.prune(Retention(keep_last=1, keep_every=4, keep_best="val/top1"), 8)
    assert to.complete() == [8, 4, 2], "20 was abandoned by a rollback to 8, and so is not the best"
    to.remove_after(4)
    assert to.complete() == [4, 2]


@pytest.mark.parametrize("fault", ["slices", "marker", "missing", "escape"])
def test_a_damaged_copy_is_not_fetched(tmp_path: Path, store: Store, endpoint: str, fault: str) -> None:
    copy(mirror(store), tmp_path, 4)
    client, key = client_of(endpoint), "run/checkpoints/step-00000004/"
    if fault == "missing":
        client.delete_object(Bucket=BUCKET, Key=f"{key}state.json")
    elif fault == "escape":  # a marker with a valid hash that names a file elsewhere
        outside = tmp_path / "COMPLETE"
        outside.mkdir()
        files = {"../../../escaped": {"bytes": 1, "blake2b": "0" * 32}}
        write_marker(outside, {"format": 1, "step": 4, "files": files})
        client.put_object(Bucket=BUCKET, Key=f"{key}COMPLETE.json", Body=(outside / "COMPLETE.json").read_bytes())
    else:
        key += {"slices": SLICES, "marker": "COMPLETE.json"}[fault]
        damaged = bytearray(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())
        damaged[len(damaged) // 2] ^= 1
        client.put_object(Bucket=BUCKET, Key=key, Body=bytes(damaged))
    with pytest.raises(DamagedCopy):
        mirror(store).fetch(4, tmp_path / "elsewhere")
    assert not final_path(tmp_path / "elsewhere", 4).exists() and not list(tmp_path.rglob("escaped"))
    assert examine(final_path(tmp_path, 4))[1] is None


def test_a_copy_that_does_not_fit_on_the_disk(tmp_path: Path, store: Store, endpoint: str) -> None:
    copy(mirror(store), tmp_path, 4)
    key = "run/checkpoints/step-00000004/COMPLETE.json"
    marker = json.loads(client_of(endpoint).get_object(Bucket=BUCKET, Key=key)["Body"].read())
    marker.pop("blake2b")
    marker["files"]["state.json"]["bytes"] = 1 << 60
    write_marker(tmp_path, marker)
    client_of(endpoint).put_object(Bucket=BUCKET, Key=key, Body=(tmp_path / "COMPLETE.json").read_bytes())
    with pytest.raises(CheckpointError, match="no space for a checkpoint"):
        mirror(store).fetch(4, tmp_path / "elsewhere")


def test_verify_reads_checkpoints_and_copies(tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    where = f"cluster.remote={{s3_endpoint: {store.url}, attempts: 2, timeout_s: 20}}"
    run = write_run(tmp_path / "run", f"checkpoint.mirror=s3://{BUCKET}/deep", where, steps=range(1, 2))
    resolved = load_saved(run / "config.resolved.yaml")
    to = MirrorFolder.of(resolved.experiment)
    assert to is not None
    for step in (2, 4):
        copy(to, run / "checkpoints", step)
    to.objects.write("step-00000006/state.json", b"{}")
    assert main(["verify", str(run)]) == 0
    told = capsys.readouterr().out
    assert told.count("2 intact checkpoints, steps 2, 4") == 2 and "warning: step 6: incomplete" in told
    to.objects.write(f"step-00000002/{SLICES}", os.urandom(1000))
    to.objects.remove(["step-00000004/state.json"])
    (final_path(run / "checkpoints", 4) / "state.json").write_bytes(os.urandom(1000))
    assert main(["verify", str(run), "--json"]) == 1
    disk, copies = json.loads(capsys.readouterr().out)[0]["places"]
    assert (disk["intact"], list(disk["damaged"]), copies["intact"]) == ([2], ["4"], [])
    assert "does not have the hash" in copies["damaged"]["2"] and "state.json" in copies["damaged"]["4"]
    assert main(["verify", str(run), "--no-decode"]) == 2 and "--no-decode is for shards" in capsys.readouterr().err

"""Streams from real servers on loopback give what a folder gives, whatever the network does; or say why not."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pretrain.data.order.order import allowed_worlds
from pretrain.data.storage import packed_set
from pretrain.data.storage import store as store_module
from pretrain.data.storage import transport as transport_module
from pretrain.data.storage.index import ShardTable
from pretrain.data.stream import EvalStream, TrainStream
from pretrain.data.workers.reader import ShardReader
from pretrain.errors import ConfigError, DataError
from tests.faulty_server import KINDS, folder_server, proxy_server, running
from tests.s3_server import client_of, put_folder, s3_server
from tests.unit.data.sets import experiment, write_set
from tests.unit.data.storage.test_http_client import Handler, endless, serving
from tests.unit.data.test_stream import by_slot
from tests.unit.data.workers.test_reader import damage

SIZES = [40, 1, 0, 50, 25]
NUM = sum(SIZES)
BUCKET = "images"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("remote") / "train", SIZES, noise=True)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(transport_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(transport_module.Retries, "__init__", _quick)


def _quick(self: Any, attempts: int = 6, first_pause_s: float = 0.01) -> None:
    object.__setattr__(self, "attempts", attempts)
    object.__setattr__(self, "first_pause_s", first_pause_s)


@pytest.fixture(scope="module")
def bucket(folder) -> Iterator[str]:
    """An S3-compatible server with the set in a bucket; gives its endpoint."""
    with s3_server() as endpoint:
        put_folder(endpoint, folder, BUCKET, "sets/train")
        yield endpoint


def settings(shards: Any, cache: Path, **changes: Any):
    """The experiment on a remote set, with small chunks. Only tests with answers that stall set a short time limit."""
    return experiment(
        shards,
        NUM,
        **{
            "data__lanes": 4,
            "cluster__cache": {"dir": str(cache), "chunk_bytes": 4096, "num_threads": 2},
            "cluster__remote": {"timeout_s": 60, "attempts": 4},
            **changes,
        },
    )


def drawn(config: Any, num_steps: int = 14, world: int = 1) -> dict[int, Any]:
    return by_slot([list(TrainStream(config, rank, world, 4).iterate(0, num_steps)) for rank in range(world)])


@pytest.fixture(scope="module")
def local(folder) -> dict[int, Any]:
    return drawn(experiment(folder, NUM, data__lanes=4))


def s3_settings(endpoint: str, cache: Path, *, remote: Mapping[str, Any] = {}, **changes: Any):
    remote = {"timeout_s": 60, "attempts": 4, "s3_endpoint": endpoint, **remote}
    return settings(f"s3://{BUCKET}/sets/train", cache, cluster__remote=remote, **changes)


def test_a_web_server_gives_what_a_folder_gives(folder, tmp_path, local):
    with running(folder_server(folder.parent)) as server:
        config = settings(f"{server.url}/train/index.json", tmp_path / "cache")
        assert drawn(config) == local
        requests = server.requests
        assert drawn(config, world=4) == local  # from the cache, but for the table, the card and the classes
        assert server.requests == requests + 3 * 4


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_s3_store_gives_what_a_folder_gives(bucket, tmp_path, local, num_workers):
    assert drawn(s3_settings(bucket, tmp_path / "cache", cluster__num_workers=num_workers)) == local


@pytest.mark.parametrize("prefix", ["set#1", "what?v=2", "pct%20x", "a b+c&d", "고양이", "dot./x", "double//slash"])
def test_a_key_in_a_store_is_taken_as_it_is_written(folder, bucket, tmp_path, local, prefix):
    """Beside each is the set of another content that a URL parser would read in its place."""
    name = f"keys-{abs(hash(prefix)) % 10**9}"
    put_folder(bucket, folder, name, f"{prefix}/train")
    other = write_set(tmp_path / "other", [NUM])
    for mistaken in ("set", "what", "pct x", "dot/x", "double/slash"):
        for file in sorted(other.iterdir()):
            client_of(bucket).upload_file(str(file), name, f"{mistaken}/train/{file.name}")
    remote = {"timeout_s": 60, "attempts": 2, "s3_endpoint": bucket}
    config = settings(f"s3://{name}/{prefix}/train", tmp_path / "cache", cluster__remote=remote)
    assert drawn(config, num_steps=2) == {slot: local[slot] for slot in drawn(config, num_steps=2)}


PRINT_PART = """
import sys
name, start, end = sys.argv[1], int(sys.argv[2]), sys.argv[3]
data = open(name, "rb").read()
sys.stdout.buffer.write(data[start : int(end) + 1 if end else None])
"""


@pytest.mark.parametrize("ranged", [False, True])
def test_a_command_gives_what_a_folder_gives(folder, tmp_path, local, ranged):
    (tmp_path / "part.py").write_text(PRINT_PART)
    command = f"{sys.executable} -S {tmp_path}/part.py {folder}/{{name}} {{start}} '{{end}}'"
    config = settings(
        f"pipe:{command if ranged else f'cat {folder}/{{name}}'}",
        tmp_path / "cache",
        data__allow_pipe=True,
        cluster__remote={"timeout_s": 120, "attempts": 2},
        cluster__cache={"dir": str(tmp_path / "cache"), "chunk_bytes": 65536, "num_threads": 1},
    )
    assert drawn(config) == local


@pytest.mark.parametrize(
    ("store", "kind"),
    [("http", kind) for kind in KINDS]
    + [("s3", "error"), ("s3", "truncate")]
    + [pytest.param("s3", kind, marks=pytest.mark.slow) for kind in ("stall", "reset", "wrong_bytes")],
)
def test_what_the_network_does_changes_nothing(folder, bucket, tmp_path, local, store, kind):
    """The first two answers of every fourth request for a part of a shard are spoiled (stalled ones: fewer)."""
    every = 16 if kind == "stall" else 4
    upstream = folder_server(folder.parent) if store == "http" else proxy_server(bucket)
    with running(upstream) as server:
        spoiled = set()

        def fault(path: str, number: int) -> str | None:
            if not path.endswith(".tar") or number > 1 or (number == 0 and server.requests % every):
                return None
            spoiled.add(path)
            return kind

        server.fault = fault
        # A busy machine may miss the short limit of its own accord, but not twelve times for the same bytes.
        remote = {"timeout_s": 0.5, "attempts": 12} if kind == "stall" else {"timeout_s": 60, "attempts": 4}
        cache = tmp_path / "cache"
        if store == "http":
            config = settings(f"{server.url}/train", cache, cluster__remote=remote)
        else:
            config = s3_settings(server.url, cache, remote=remote)
        stream = TrainStream(config, 0, 1, 4)
        assert by_slot([list(stream.iterate(0, 14))]) == local
        assert stream.faults.num_bad == 0
        assert len(spoiled) >= 2


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("stall", "timed out"),
        ("reset", "reset|broken|aborted"),
        ("truncate", r"IncompleteRead|short read"),
        ("error", "HTTP 503"),
    ],
)
def test_a_store_that_stays_away_ends_the_run_and_is_named(folder, tmp_path, kind, reason):
    with running(folder_server(folder.parent)) as server:
        server.fault = lambda path, number: kind if path.endswith("3.tar") else None
        remote = {"timeout_s": 1.5 if kind == "stall" else 60, "attempts": 3}
        config = settings(f"{server.url}/train", tmp_path / "cache", cluster__remote=remote)
        expected = (
            rf"member 0000\d+\.png of shard shard-000003\.tar cannot be read from {server.url}/train/"
            rf"shard-000003\.tar, bytes \d+ to \d+: 3 attempts in [\d.]+ s failed, the last with: .*({reason})"
        )
        with pytest.raises(DataError, match=expected) as caught:
            list(TrainStream(config, 0, 1, 4).iterate(0, 14))
        assert "Traceback" not in str(caught.value)


def test_a_user_error_reaches_the_rank_from_a_data_process(folder, tmp_path):
    with running(folder_server(folder.parent)) as server:
        server.fault = lambda path, number: "error" if path.endswith("3.tar") else None
        remote = {"timeout_s": 60, "attempts": 1}
        config = settings(f"{server.url}/train", tmp_path, cluster__remote=remote, cluster__num_workers=2)
        with pytest.raises(DataError, match=r"member .* of shard shard-000003\.tar cannot be read .* 1 attempts"):
            list(TrainStream(config, 0, 1, 4).iterate(0, 14))


def test_bytes_that_stay_wrong_are_a_bad_sample(tmp_path):
    folder = write_set(tmp_path / "train", SIZES, noise=True)
    expected = experiment(folder, NUM, data__lanes=4, data__max_bad_sample_rate=0.5)
    damage(folder, 5, 60)
    with running(folder_server(folder.parent)) as server:
        config = settings(f"{server.url}/train", tmp_path / "cache", data__max_bad_sample_rate=0.5)
        stream = TrainStream(config, 0, 1, 4)
        assert by_slot([list(stream.iterate(0, 14))]) == drawn(expected)
    assert sorted(stream.faults.counts.values()) == [1, 1]
    assert {kind for _, kind in stream.faults.counts} == {"crc"}


def test_evaluation_reads_from_anywhere(folder, tmp_path):
    with running(folder_server(folder.parent)) as server:
        place = f"{server.url}/train"
        ids = [
            int(sample_id)
            for batch in EvalStream(settings(place, tmp_path), place, 0, 1, 8)
            for sample_id in batch.sample_ids[batch.valid]
        ]
    assert ids == list(range(NUM))


def _remove(folder: Path) -> None:
    (folder / "shard-000003.tar").unlink()


def _truncate(folder: Path) -> None:
    data = (folder / "shard-000003.tar").read_bytes()
    (folder / "shard-000003.tar").write_bytes(data[: len(data) // 2])


def _spoil(name: str):
    return lambda folder: (folder / name).write_text("{")


@pytest.mark.parametrize("store", ["http", pytest.param("s3", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_remove, r"shard shard-000003\.tar is missing"),
        (_truncate, r"shard shard-000003\.tar is truncated: it has \d+ bytes, not the \d+ in index\.json"),
        (lambda folder: (folder / "index.json").unlink(), r"train/index\.json: not there .*pipelines pack"),
        (_spoil("index.json"), r"index\.json: not JSON"),
        (_spoil("card.json"), r"card\.json: not a card"),
    ],
    ids=["missing", "truncated", "no index", "unreadable index", "unreadable card"],
)
def test_what_is_wrong_is_found_before_the_first_step(tmp_path, bucket, store, harm, message):
    folder = write_set(tmp_path / "train", SIZES)
    harm(folder)
    if store == "s3":
        put_folder(bucket, folder, (name := f"b{abs(hash(message)) % 10**9}"), "train")
        config = settings(f"s3://{name}/train", tmp_path, cluster__remote={"s3_endpoint": bucket})
        with pytest.raises(DataError, match=message):
            TrainStream(config, 0, 1, 4)
        return
    with running(folder_server(tmp_path)) as server, pytest.raises(DataError, match=message):
        TrainStream(settings(f"{server.url}/train", tmp_path / "cache"), 0, 1, 4)


@pytest.mark.parametrize(
    ("place", "changes", "error", "message"),
    [
        ("pipe:cat /nowhere/{name}", {}, ConfigError, r"off by default; if you trust .* set data\.allow_pipe: true"),
        (
            "pipe:echo no such thing >&2; exit 3; cat {name}",
            {"data__allow_pipe": True},
            DataError,
            r"index\.json cannot be read from pipe:.* 4 attempts .* the command ended with 3: no such thing",
        ),
        ("s3://nowhere/train", {}, DataError, "there is no bucket nowhere"),
        ("http://127.0.0.1:9/train", {}, DataError, r"4 attempts .* Connection refused"),
        ("ftp://host/train", {}, ConfigError, "ftp:// is not known"),
    ],
)
def test_places_that_give_nothing(tmp_path, bucket, place, changes, error, message):
    remote = {"s3_endpoint": bucket, "attempts": 4, "timeout_s": 60}
    with pytest.raises(error, match=message):
        TrainStream(settings(place, tmp_path, cluster__remote=remote, **changes), 0, 1, 4)


def test_a_server_without_ranges_is_refused(folder, tmp_path):
    with running(folder_server(folder.parent, ranges=False)) as server:
        config = settings(f"{server.url}/train", tmp_path)
        with pytest.raises(DataError, match=r"shard-00000\d\.tar: the server ignores Range requests; use one that"):
            list(TrainStream(config, 0, 1, 4).iterate(0, 1))


def test_a_set_that_was_packed_again_is_fetched_again(tmp_path):
    folder = write_set(tmp_path / "train", SIZES)
    with running(folder_server(tmp_path)) as server:
        config = settings(f"{server.url}/train", tmp_path / "cache")
        before = drawn(config)
        write_set(folder, SIZES, noise=True)
        after = drawn(config)
    assert after == drawn(experiment(folder, NUM, data__lanes=4))
    assert after != before


def test_a_cache_that_cannot_hold_the_windows_is_refused(folder, tmp_path):
    with running(folder_server(folder.parent)) as server:
        cache = {"dir": str(tmp_path), "chunk_bytes": 4096, "max_bytes": 100_000}
        config = settings(f"{server.url}/train", tmp_path, cluster__cache=cache)
        with pytest.raises(ConfigError, match=r"max_bytes: 100,000 cannot hold two shuffle windows of 8 samples"):
            TrainStream(config, 0, 1, 4)


@pytest.mark.parametrize(("num_nodes", "ranks_per_node"), [pytest.param(1, 1, marks=pytest.mark.slow), (4, 2)])
def test_an_epoch_is_read_once(tmp_path, num_nodes, ranks_per_node):
    """Counted at the server, with 4 lanes and a cache for each node: at most 1.15 × the tars' bytes."""
    sizes = [61, 87, 40, 53, 98, 37]
    folder = write_set(tmp_path / "train", sizes, noise=True)
    set_bytes = sum(path.stat().st_size for path in folder.glob("*.tar"))
    world = num_nodes * ranks_per_node
    assert world in allowed_worlds(16, 4, 8)
    with running(folder_server(tmp_path)) as server:
        for rank in range(world):
            config = settings(
                f"{server.url}/train", tmp_path / f"cache-{rank // ranks_per_node}", data__num_samples=sum(sizes)
            )
            list(TrainStream(config, rank, world, 2).iterate(0, sum(sizes) // 16))
        sent = sum(count for path, count in server.sent.items() if path.endswith(".tar"))
    assert 0.9 <= sent / set_bytes <= 1.15


def test_it_is_fetched_ahead(folder, tmp_path):
    """Once the stream has come into its second window, the chunks of the third are on their way before any is read."""
    with running(folder_server(folder.parent)) as server:
        batches = TrainStream(settings(f"{server.url}/train", tmp_path), 0, 1, 4).iterate(0, 14)
        next(batches)
        requests, quiet_since = -1, time.monotonic()
        while time.monotonic() < quiet_since + 1.0:
            if requests != server.requests:
                requests, quiet_since = server.requests, time.monotonic()
            time.sleep(0.05)
        before = server.requests
        next(batches)  # the other micro-batches of the first window
        assert server.requests - before <= 8
        batches.close()
        assert server.requests > 16  # far more than the 4 images needed


def test_what_is_read_fetched_and_tried_again_is_counted(folder, tmp_path):
    """Two data processes, and every first answer fails; then another run finds everything in the cache."""
    with running(folder_server(folder.parent)) as server:
        server.fault = lambda path, number: "error" if number == 0 and path.endswith(".tar") else None
        cache = {"dir": str(tmp_path / "cache"), "chunk_bytes": 32768}
        config = settings(f"{server.url}/train", tmp_path, cluster__num_workers=2, cluster__cache=cache)
        alone = settings(f"{server.url}/train", tmp_path, cluster__cache=cache)
        first, second = TrainStream(config, 0, 1, 4), TrainStream(alone, 0, 1, 4)
        drawn = [sample_id for batch in first.iterate(0, 14) for sample_id in batch.sample_ids.tolist()]
        list(second.iterate(0, 14))
    parts = {key: count for key, count in server.seen.items() if key[0].endswith(".tar")}
    assert set(parts.values()) == {2}
    reader = ShardReader(ShardTable.load(folder))
    bytes_read = sum(reader.record(sample_id)[1].size for sample_id in drawn)
    counts = first.tally.figures(first.tally.totals())
    assert counts.pop("cache_hit_rate") > 0.5
    sent = sum(count for path, count in server.sent.items() if path.endswith(".tar"))
    assert counts == {"bytes_read": bytes_read, "bytes_fetched": sent / 2, "fetch_retries": len(parts)}
    again = second.tally.figures(second.tally.totals())
    assert again == {"bytes_read": bytes_read, "bytes_fetched": 0, "fetch_retries": 0, "cache_hit_rate": 1}


def damage_copies(cache: Path, of: str) -> int:
    """Flips a byte in the middle of what the node keeps: of chunks, of record files, or of tables and cards."""
    changed = 0
    for path in sorted(cache.rglob("*")):
        is_records = path.is_file() and b"member_starts" in path.read_bytes()
        kind = "sets" if "sets" in path.parts else "records" if is_records else "chunks"
        if path.is_file() and kind == of and ("entries" in path.parts or kind == "sets"):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(bytes(data))
            changed += 1
    return changed


@pytest.mark.parametrize(("of", "at_least"), [("chunks", 4), ("records", 4), ("sets", 3)])
def test_what_was_damaged_on_the_node_is_fetched_again(folder, tmp_path, local, of, at_least):
    """By the next start, without a word and without anybody emptying the cache."""
    with running(folder_server(folder.parent)) as server:
        config = settings(f"{server.url}/train", tmp_path / "cache")
        assert drawn(config) == local
        assert damage_copies(tmp_path / "cache", of) >= at_least
        stream = TrainStream(config, 0, 1, 4)
        assert by_slot([list(stream.iterate(0, 14))]) == local
        assert stream.faults.num_bad == 0
        before = server.requests
        assert drawn(config) == local  # and is kept
        assert server.requests == before + 3


def test_a_record_file_that_is_another_on_the_server_is_named(folder, tmp_path):
    copy = tmp_path / "www" / "train"
    shutil.copytree(folder, copy)
    path = copy / "shard-000003.records.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with running(folder_server(copy.parent)) as server:
        config = settings(f"{server.url}/train", tmp_path / "cache")
        expected = (
            rf"{server.url}/train/shard-000003\.records\.safetensors: not the file that index\.json was made with"
        )
        with pytest.raises(DataError, match=expected):
            list(TrainStream(config, 0, 1, 4).iterate(0, 14))


@pytest.mark.parametrize("name", ["index.json", "shard-000003.records.safetensors"])
def test_a_table_without_an_end_is_given_up(folder, tmp_path, monkeypatch, name):
    monkeypatch.setattr(packed_set, "LARGEST_TABLE", 1 << 20)
    monkeypatch.setattr(store_module, "RECORDS_BYTES", 1 << 20)

    def handle(handler: Handler) -> None:
        path = folder / handler.path.rpartition("/")[2]
        if path.name == name:
            endless(handler)
        data = path.read_bytes()
        first, _, last = handler.headers.get("Range", f"bytes=0-{len(data)}").removeprefix("bytes=").partition("-")
        handler.give(206 if "Range" in handler.headers else 200, data[int(first) : int(last) + 1])

    with serving(handle) as (url, _):
        config = settings(f"{url}/train", tmp_path / "cache")
        with pytest.raises(DataError, match=rf"{name}: the answer is longer than [\d,]+ bytes; given up"):
            list(TrainStream(config, 0, 1, 4).iterate(0, 14))

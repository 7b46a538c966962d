"""A real job of two ranks on shards that a web server holds, without the images that dedup found in a test set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pipelines.__main__ import main
from pretrain import seeds
from pretrain.config.loader import load_experiment
from pretrain.data.storage.index import ShardTable
from pretrain.data.stream import TrainStream
from pretrain.data.workers.reader import ShardReader
from pretrain.telemetry.metrics import read_metrics
from tests.command import Commands
from tests.faulty_server import folder_server, running
from tests.integration.small_run import pretrain
from tests.unit.pipelines.photos import jpeg, tiles

COPIES = {
    "exact": lambda data, image: data,
    "small": lambda data, image: jpeg(image.resize((70, 70))),
    "grey": lambda data, image: jpeg(image.convert("L"), 60),
    "mirrored": lambda data, image: jpeg(image.transpose(0)),
}
NUM_STEPS = 8


def write_sets(folder: Path) -> int:
    """A test set of four photos, and a training set of others with a copy of each; returns its number of images."""
    photos = [photo for photo in tiles(106, 106) if np.asarray(photo).std() > 40]
    for place in ("test", "raw/a", "raw/b"):
        (folder / place).mkdir(parents=True)
    for number, (name, change) in enumerate(COPIES.items()):
        data = jpeg(photos[number])
        (folder / "test" / f"{number}.jpg").write_bytes(data)
        (folder / "raw" / "ab"[number % 2] / f"{name}.jpg").write_bytes(change(data, photos[number]))
    for number, photo in enumerate(photos[len(COPIES) :]):
        (folder / "raw" / "ab"[number % 2] / f"other-{number}.jpg").write_bytes(jpeg(photo))
    return len(photos)


def test_a_remote_job_leaves_out_what_dedup_found_and_says_what_it_fetched(command: Commands, tmp_path: Path) -> None:
    total = write_sets(tmp_path)
    packed, dropped = tmp_path / "packed" / "train", tmp_path / "dedup" / "drop.jsonl"
    pack = ["pack", "folder", str(tmp_path / "raw"), "--out", str(packed.parent), "--shard-samples", "8"]
    assert main([*pack, "--images", "keep"]) == 0
    against = ["--against", str(tmp_path / "test"), "--out", str(dropped.parent), "--workers", "1"]
    assert main(["dedup", str(packed), *against]) == 0
    reader = ShardReader(ShardTable.load(packed))
    records = [reader.record(sample_id) for sample_id in range(total)]
    listed = {(line["shard"], line["key"]) for line in map(json.loads, dropped.read_text().splitlines())}
    gone = {number for number, (shard, one) in enumerate(records) if (shard, one.member.split(".")[0]) in listed}
    assert {records[number][1].source.partition("/")[2] for number in gone} == {f"{name}.jpg" for name in COPIES}

    evaluated = [f"evaluation.sets.val.shards={packed}", f"evaluation.sets.val.num_samples={total}"]
    settings = [
        f"data.num_samples={total - len(gone)}", "data.num_classes=2", f"data.drop_list={dropped}",
        "data.train_transform={crop: inception}", "data.lanes=4", "data.shuffle_window=4", "global_batch_size=16",
        f"duration={NUM_STEPS} steps", "optim.schedule.warmup=2 steps", "checkpoint.every=8 steps",
        *evaluated, "telemetry.log_every=2", "cluster.num_workers=1", "cluster.remote.timeout_s=5",
    ]  # fmt: skip
    with running(folder_server(tmp_path / "packed")) as server:
        server.fault = lambda path, number: "error" if number == 0 and path.endswith("1.tar") else None
        cache = f"cluster.cache={{dir: {tmp_path / 'cache'}, chunk_bytes: 8192}}"
        place = f"data.shards={server.url}/train"
        command.run(*pretrain("torchrun", tmp_path, *settings, place, cache), check=True)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")

    local = load_experiment("configs/pretrain/demo_digits.yaml", overrides=[*settings, f"data.shards={packed}"])
    order = TrainStream(local.experiment, 0, 1, 16).order
    drawn = [order.batch(step * 16) for step in range(NUM_STEPS)]
    digests = {step + 1: int((seeds.hash64(one.sample_ids, one.slots) >> 32).sum()) for step, one in enumerate(drawn)}
    assert {step: line["batch_digest"] for step, line in lines.items()} == {step: digests[step] for step in lines}
    ids = np.concatenate([one.sample_ids for one in drawn]).tolist()
    assert set(ids) == set(range(total)) - gone

    last = lines[NUM_STEPS]
    assert last["bytes_read"] == sum(records[number][1].size for number in ids)
    spoiled = [key for key, count in server.seen.items() if count > 1 and key[0].endswith("1.tar")]
    assert last["fetch_retries"] == len(spoiled) > 0
    sent = sum(count for path, count in server.sent.items() if path.endswith(".tar"))
    assert 0 < last["bytes_fetched"] < sent
    rates = [line["cache_hit_rate"] for line in lines.values() if "cache_hit_rate" in line]
    assert rates and all(0 <= rate <= 1 for rate in rates)

    again = ["pack", "webdataset", str(packed), "--images", "keep", "--drop-list", str(dropped)]
    assert main([*again, "--out", str(tmp_path / "clean")]) == 0
    clean = ShardReader(ShardTable.load(tmp_path / "clean" / "train"))
    kept = [clean.record(number)[1].crc32 for number in range(clean.table.num_samples)]
    assert sorted(kept) == sorted(one.crc32 for number, (_, one) in enumerate(records) if number not in gone)

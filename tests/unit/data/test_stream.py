"""The laws of data on real shards: what the engine gets, for any ranks, processes and micro-batches."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config.schema.experiment import Experiment
from pretrain.data.batch import Batch
from pretrain.data.order.order import Order, allowed_worlds
from pretrain.data.storage.card import Card
from pretrain.data.storage.index import ShardTable
from pretrain.data.storage.tally import Fault
from pretrain.data.stream import EvalRequest, EvalStream, TrainStream
from pretrain.data.workers.reader import ShardReader
from pretrain.errors import ConfigError, DataError
from pretrain.files import digest
from tests.unit.data.sets import NUM_CLASSES, experiment, labels_of, number_of, write_set
from tests.unit.data.workers.test_reader import damage

SIZES = [13, 1, 0, 30, 1, 22]  # uneven, empty, and single samples; 67 in all
NUM = sum(SIZES)
AUGMENTED = {"data__train_transform": {"crop": "inception", "min_area": 0.3, "hflip": 0.5}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("coded") / "train", SIZES)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """Every pixel differs, so that augmented images are equal only where crop and flip are."""
    return write_set(tmp_path_factory.mktemp("noisy") / "train", SIZES, noise=True, image_format="jpeg")


def drawn(config: Experiment, world: int, micro: int, num_steps: int, position: int = 0) -> list[list[Batch]]:
    """Per rank, the micro-batches of some steps."""
    return [list(TrainStream(config, rank, world, micro).iterate(position, num_steps)) for rank in range(world)]


def by_slot(ranks: list[list[Batch]]) -> dict[int, tuple[int, bytes, bytes]]:
    """slot → (sample id, image, labels)."""
    return {
        int(slot): (int(sample_id), image.numpy().tobytes(), labels.numpy().tobytes())
        for batches in ranks
        for batch in batches
        for slot, sample_id, image, labels in zip(
            batch.slots, batch.sample_ids, batch.images, batch.labels, strict=True
        )
    }


@pytest.mark.parametrize("multi_label", [False, True])
def test_images_and_labels_are_those_of_the_sample_id(tmp_path, multi_label):
    folder = write_set(tmp_path / "set", SIZES, multi_label=multi_label)
    for batch in TrainStream(experiment(folder, NUM), 0, 1, 8).iterate(0, 8):
        assert batch.images.shape == (8, 3, 8, 8)
        assert batch.images.dtype == torch.uint8
        assert number_of(batch.images) == batch.sample_ids.tolist()
        assert batch.valid.all()
        for sample_id, row in zip(batch.sample_ids.tolist(), batch.labels.tolist(), strict=True):
            expected = labels_of(sample_id, multi_label)
            assert row == [*expected, *[-1] * (len(row) - len(expected))]


def test_an_epoch_has_every_sample_once(folder):
    stream = TrainStream(experiment(folder, NUM, data__lanes=4), 0, 1, 16)
    ids = torch.cat([batch.sample_ids for batch in stream.iterate(0, 8)]).tolist()
    order = stream.order.parts[0].order
    assert isinstance(order, Order)
    for epoch in (0, 1):  # 64 draws an epoch = 4 global batches; 3 samples are left out
        expected = set(range(NUM)) - set(order.left_out(epoch).tolist())
        of_epoch = ids[64 * epoch : 64 * (epoch + 1)]
        assert len(expected) == len(of_epoch) == 64
        assert set(of_epoch) == expected


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_world_and_micro_batch_give_the_same_tensors(noisy, data):
    config = experiment(noisy, NUM, data__lanes=4, **AUGMENTED)
    world = data.draw(st.sampled_from(allowed_worlds(16, 4, 8)))
    micro = data.draw(st.sampled_from([size for size in (1, 2, 4, 8, 16) if (16 // world) % size == 0]))
    ranks = drawn(config, world, micro, 5)
    assert {len(batches) for batches in ranks} == {5 * 16 // world // micro}  # nobody waits for anybody
    assert by_slot(ranks) == by_slot(drawn(config, 1, 16, 5))


@pytest.mark.parametrize("num_workers", [1, 3])
def test_any_number_of_processes_gives_the_same_tensors_in_the_same_order(noisy, num_workers):
    alone = drawn(experiment(noisy, NUM, **AUGMENTED), 2, 4, 6)
    helped = drawn(experiment(noisy, NUM, cluster__num_workers=num_workers, **AUGMENTED), 2, 4, 6)
    for expected, batches in zip(alone, helped, strict=True):
        for one, other in zip(expected, batches, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.slots, other.slots)
            assert torch.equal(one.sample_ids, other.sample_ids)


@settings(max_examples=12, deadline=None)
@given(step=st.integers(0, 40), world=st.sampled_from([1, 2, 4]))
def test_a_resume_gives_the_tensors_of_the_straight_run(noisy, step, world):
    config = experiment(noisy, NUM, data__lanes=4, **AUGMENTED)
    resumed = by_slot(drawn(config, world, 4, 2, position=16 * step))
    assert sorted(resumed) == list(range(16 * step, 16 * (step + 2)))
    straight = by_slot([list(TrainStream(config, 0, 1, 16).iterate(0, step + 2))[step:]])
    assert resumed == straight


def test_two_epochs_augment_an_image_differently(noisy):
    stream = TrainStream(experiment(noisy, NUM, data__lanes=1, global_batch_size=2, **AUGMENTED), 0, 1, 2)
    images: dict[int, set[bytes]] = {}
    for batch in stream.iterate(0, 2 * NUM // 2):
        for sample_id, image in zip(batch.sample_ids.tolist(), batch.images, strict=True):
            images.setdefault(sample_id, set()).add(image.numpy().tobytes())
    assert {len(seen) for seen in images.values()} == {2}


def test_the_global_generator_is_left_alone(folder):
    for num_workers in (0, 1):
        config = experiment(folder, NUM, cluster__num_workers=num_workers, **AUGMENTED)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        list(TrainStream(config, 0, 1, 8).iterate(0, 2))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sizes", [[5, 9, 2, 30, 4], [1] * 12, [40]], ids=["uneven", "single samples", "one shard"])
def test_uneven_and_few_shards_give_every_rank_the_same_number_of_steps(tmp_path, sizes):
    """Three ranks with four processes each, fewer shards than that: the classic hang."""
    folder = write_set(tmp_path / "set", sizes)
    config = experiment(folder, sum(sizes), global_batch_size=12, data__lanes=3, cluster__num_workers=4)
    ranks = drawn(config, 3, 2, 7)
    assert [len(batches) for batches in ranks] == [14, 14, 14]
    alone = experiment(folder, sum(sizes), global_batch_size=12, data__lanes=3)
    assert by_slot(ranks) == by_slot(drawn(alone, 1, 12, 7))


@pytest.mark.parametrize(
    ("world", "num_workers", "micro"),
    [(world, 0, micro) for world in (1, 2, 3, 5, 8) for micro in (1, 4, 100)] + [(3, 2, 4), (100, 0, 1)],
)
def test_evaluation_counts_each_image_once(folder, world, num_workers, micro):
    config = experiment(folder, NUM, cluster__num_workers=num_workers)
    seen: list[int] = []
    lengths = set()
    for rank in range(world):
        stream = EvalStream(config, str(folder), rank, world, micro)
        batches = list(stream)
        lengths.add(len(batches))
        assert len(batches) == len(stream)
        for batch in batches:
            assert len(batch) == micro
            assert batch.sample_ids[~batch.valid].eq(-1).all()
            assert batch.labels[~batch.valid].eq(-1).all()
            assert batch.slots.eq(-1).all()
            ids = batch.sample_ids[batch.valid].tolist()
            assert number_of(batch.images[batch.valid]) == ids
            assert batch.labels[batch.valid, 0].tolist() == [sample_id % NUM_CLASSES for sample_id in ids]
            assert all(sample_id % world == rank for sample_id in ids)
            seen += ids
    assert sorted(seen) == list(range(NUM))
    assert len(lengths) == 1


def test_evaluation_can_be_limited_and_repeated(folder):
    stream = EvalStream(experiment(folder, NUM), str(folder), 0, 1, 8, EvalRequest(sample_ids=np.arange(12)))
    for _ in range(2):
        batches = list(stream)
        assert torch.cat([batch.sample_ids[batch.valid] for batch in batches]).tolist() == list(range(12))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_replaced_counted_and_written_down(tmp_path, num_workers):
    folder = write_set(tmp_path / "set", [20, 12])
    damage(folder, 4, 31)
    config = experiment(folder, 32, data__max_bad_sample_rate=0.1, data__lanes=2, cluster__num_workers=num_workers)
    stream = TrainStream(config, 0, 1, 8, quarantine=tmp_path / "quarantine")
    batches = list(stream.iterate(0, 4))  # two epochs
    ids = torch.cat([batch.sample_ids for batch in batches])
    assert ids.bincount().tolist() == [2] * 4 + [0] + [4] + [2] * 14 + [4] + [2] * 10  # 4 → 5, 31 → 20
    for batch in batches:
        assert number_of(batch.images) == batch.sample_ids.tolist()
        assert batch.labels[:, 0].tolist() == [sample_id % NUM_CLASSES for sample_id in batch.sample_ids.tolist()]
    assert sum(len(batch.faults) for batch in batches) == 4
    assert stream.faults.counts == {("shard-000000.tar", "crc"): 1, ("shard-000001.tar", "crc"): 1}
    written = [json.loads(line) for line in (tmp_path / "quarantine" / "rank-00000.jsonl").read_text().splitlines()]
    assert {row["sample_id"]: row["replaced_by"] for row in written} == {4: 5, 31: 20}


def test_replacements_are_the_same_at_any_world_size(tmp_path):
    folder = write_set(tmp_path / "set", [20, 12])
    damage(folder, 4, 5, 31)
    config = experiment(folder, 32, data__max_bad_sample_rate=0.5, data__lanes=2)
    assert by_slot(drawn(config, 4, 2, 4)) == by_slot(drawn(config, 1, 16, 4))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_bad_samples_end_the_run(tmp_path, num_workers):
    folder = write_set(tmp_path / "set", [20, 12])
    damage(folder, 4, 31)
    config = experiment(folder, 32, data__max_bad_sample_rate=0.04, data__lanes=2, cluster__num_workers=num_workers)
    with pytest.raises(DataError, match=r"2 of 32 samples .*member 0000000\d\d\.png \(image-0000\d\d\), crc") as caught:
        list(TrainStream(config, 0, 1, 8).iterate(0, 4))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_user_error_in_a_process_arrives_without_a_stack_trace(tmp_path, num_workers):
    folder = write_set(tmp_path / "set", [4, 4])
    damage(folder, *range(4))
    config = experiment(folder, 8, global_batch_size=8, data__max_bad_sample_rate=1, cluster__num_workers=num_workers)
    with pytest.raises(DataError, match=r"shard .*shard-000000\.tar: member .* nor can the next") as caught:
        list(TrainStream(config, 0, 1, 4).iterate(0, 1))
    assert "Traceback" not in str(caught.value)


def test_a_bad_evaluation_image_is_masked_and_never_replaced(tmp_path):
    folder = write_set(tmp_path / "set", [20, 12])
    damage(folder, 4)
    stream = EvalStream(experiment(folder, 32, data__max_bad_sample_rate=0.1), str(folder), 0, 1, 8)
    ids = torch.cat([batch.sample_ids[batch.valid] for batch in stream]).tolist()
    assert ids == [index for index in range(32) if index != 4]
    assert stream.faults.num_bad == 1
    with pytest.raises(DataError, match=r"1 of 32 samples"):
        list(EvalStream(experiment(folder, 32), str(folder), 0, 1, 8))


def _copy_card(folder):
    other = write_set(folder.parent / "other", [20, 11])
    for name in ("card.json", "classes.csv"):
        (folder / name).write_bytes((other / name).read_bytes())


def _truncate(folder):
    path = folder / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("harm", "changes", "error", "message"),
    [
        (_truncate, {}, DataError, r"shard-000001\.tar is truncated"),
        (lambda folder: (folder / "shard-000001.tar").unlink(), {}, DataError, "shard-000001.tar is missing"),
        (lambda folder: (folder / "index.json").unlink(), {}, DataError, "index.json does not exist"),
        (_copy_card, {"data__num_samples": 31}, DataError, "come from two packs"),
        (None, {"data__num_samples": 33}, DataError, "the card has num_samples 32"),
        (None, {"data__num_classes": 9}, DataError, "the card has num_classes 7"),
        (None, {"data__lanes": 3}, ConfigError, "data.lanes: 3 does not fit"),
        (None, {"global_batch_size": 6, "data__lanes": 1}, ConfigError, "4 ranks cannot share"),
        (None, {"global_batch_size": 24, "data__lanes": 1}, ConfigError, "micro_batch_size: 4 does not divide the 6"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(tmp_path, harm, changes, error, message):
    folder = write_set(tmp_path / "set", [20, 12])
    if harm:
        harm(folder)
    with pytest.raises(error, match=message):
        TrainStream(experiment(folder, 32, **changes), 0, 4, 4)


def test_an_evaluation_set_with_other_classes_is_refused(folder):
    config = experiment(folder, NUM, data__num_classes=9)
    with pytest.raises(DataError, match=r"7 classes, but data\.num_classes is 9"):
        EvalStream(config, str(folder), 0, 1, 8)


def test_a_position_between_batches_is_refused_at_once(folder):
    with pytest.raises(ConfigError, match=r"not a multiple of data\.lanes"):
        next(TrainStream(experiment(folder, NUM, data__lanes=4), 0, 1, 16).iterate(3, 1))


def test_the_stream_tells_what_the_run_records(folder):
    stream = TrainStream(experiment(folder, NUM), 0, 1, 16)
    assert stream.class_names == [f"class {index}" for index in range(NUM_CLASSES)]
    assert stream.digest == stream.card.index_digest
    assert stream.samples_per_rank == 16


def test_a_process_gets_little(folder):
    """The objects sent to a data process contain no open files and no caches."""
    stream = TrainStream(experiment(folder, NUM), 0, 1, 16)
    assert len(pickle.dumps(stream.order)) < 3000


def test_a_subset_and_a_drop_list_leave_only_what_they_choose(tmp_path, noisy):
    dropped = [0, 14, 30, 66]
    table = ShardTable.load(noisy)
    reader = ShardReader(table)
    rows = [(reader.record(sample_id)[0], reader.record(sample_id)[1].member.split(".")[0]) for sample_id in dropped]
    (tmp_path / "drop.jsonl").write_text("".join(json.dumps({"shard": s, "key": k}) + "\n" for s, k in rows))
    left = {"data__drop_list": str(tmp_path / "drop.jsonl"), "data__lanes": 4}
    config = experiment(noisy, NUM - 4, data__subset="32 samples", **left)
    stream = TrainStream(config, 0, 1, 16)
    ids = torch.cat([batch.sample_ids for batch in stream.iterate(0, 4)]).tolist()  # two epochs of 32
    assert sorted(ids[:32]) == sorted(ids[32:])
    assert len(set(ids)) == 32
    assert not set(ids) & set(dropped)
    larger = TrainStream(experiment(noisy, NUM - 4, data__subset="48 samples", **left), 0, 1, 16)
    assert set(ids) < {int(i) for batch in larger.iterate(0, 3) for i in batch.sample_ids}
    assert by_slot(drawn(config, 4, 2, 4)) == by_slot(drawn(config, 1, 16, 4))
    whole = TrainStream(experiment(noisy, NUM), 0, 1, 16)
    assert len({stream.digest, larger.digest, whole.digest}) == 3
    with pytest.raises(DataError, match=r"num_samples 67 less the 4 of the drop list, .* Set data\.num_samples: 63"):
        TrainStream(experiment(noisy, NUM, **left), 0, 1, 16)


def test_a_bad_sample_is_never_replaced_by_a_dropped_one(tmp_path):
    folder = write_set(tmp_path / "set", [20, 12])
    damage(folder, 4)
    (tmp_path / "drop.jsonl").write_text('{"shard": "shard-000000.tar", "key": "000000005"}\n')
    config = experiment(
        folder, 31, data__max_bad_sample_rate=0.1, data__lanes=1, data__drop_list=str(tmp_path / "drop.jsonl")
    )
    stream = TrainStream(config, 0, 1, 16)
    ids = [int(i) for batch in stream.iterate(0, 2) for i in batch.sample_ids]
    assert 4 not in ids
    assert 5 not in ids
    assert [(fault.sample_id, fault.replaced_by) for fault in _faults(config)] == [(4, 6)]


def _faults(config: Experiment) -> list[Fault]:
    return [fault for batch in TrainStream(config, 0, 1, 16).iterate(0, 2) for fault in batch.faults]


def mixed(folders, sizes, **changes: object) -> Experiment:
    sources = [
        {"shards": str(folder), "num_samples": size, "weight": weight}
        for folder, size, weight in zip(folders, sizes, (0.75, 0.25), strict=True)
    ]
    return experiment("", sum(sizes), **{"data__shards": None, "data__mixture": sources, "data__lanes": 4, **changes})


@settings(max_examples=6, deadline=None)
@given(world=st.sampled_from([1, 2, 4, 8]), step=st.integers(0, 20))
def test_a_mixture_keeps_the_laws(noisy, folder, world, step):
    config = mixed([noisy, folder], [NUM, NUM], **AUGMENTED)
    straight = by_slot([list(TrainStream(config, 0, 1, 16).iterate(0, step + 2))[step:]])
    assert by_slot(drawn(config, world, 2, 2, position=16 * step)) == straight
    ids = [sample_id for sample_id, _, _ in by_slot(drawn(config, 1, 16, 8)).values()]
    assert 0.7 < sum(sample_id < NUM for sample_id in ids) / 128 < 0.8


def test_a_mixture_is_known_by_its_sets_and_weights(noisy, folder):
    one = TrainStream(mixed([noisy, folder], [NUM, NUM]), 0, 1, 16)
    other = TrainStream(mixed([folder, noisy], [NUM, NUM]), 0, 1, 16)
    assert len({one.digest, other.digest, one.card.index_digest}) == 3
    assert one.faults.num_samples == 2 * NUM


def test_sets_of_other_classes_do_not_mix(tmp_path, folder):
    other = write_set(tmp_path / "other", [20])
    classes = (other / "classes.csv").read_text().replace("class 3", "class three")
    (other / "classes.csv").write_text(classes)
    card = json.loads((other / "card.json").read_text())
    card["classes_digest"] = digest(classes.encode())
    (other / "card.json").write_bytes(Card.model_validate(card).to_json())
    with pytest.raises(DataError, match=r"same classes, .* differ: class 3 is 'c3 class 3' and 'c3 class three'"):
        TrainStream(mixed([folder, other], [NUM, 20]), 0, 1, 16)


MANY = {"shards": "a", "num_samples": 10, "weight": 1, "subset": "11 samples"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__mixture": []}, "give either shards"),
        ({"data__shards": "x"}, "give either shards"),
        ({"data__subset": "10 %"}, "subset belongs to each set of the mixture"),
        ({"data__drop_list": "x"}, "drop_list belongs to each set of the mixture"),
        ({"data__mixture": [MANY]}, "subset: 11 samples is not between one sample and all 10 of the set"),
        ({"data__num_samples": 9}, "num_samples: 9 is not the sum of the mixture's sets, 20"),
    ],
)
def test_mixtures_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        mixed(["a", "b"], [10, 10], **changes)

"""Sampling by class on real shards: the same tensors for any ranks and processes, and what is refused."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from pretrain.check.files import report_data
from pretrain.config.schema.experiment import Experiment
from pretrain.data.sampling import check_sampling
from pretrain.data.stream import TrainStream
from pretrain.errors import ConfigError
from tests.unit.data.sets import NUM_CLASSES, experiment, write_set

SIZES = [13, 1, 0, 30, 1, 25]
KEPT = [number for number in range(70) if number % 7 >= 5 or number < 14]  # classes 5 and 6 have 10 images, others 2
MIXTURE = [{"shards": name, "num_samples": 15, "weight": 1} for name in ("a", "b")]
AUGMENTED = {"data__train_transform": {"crop": "inception", "min_area": 0.3, "hflip": 0.5}}


@pytest.fixture(scope="module")
def long_tailed(tmp_path_factory):
    """An experiment on 30 of 70 noisy images, the others dropped by name."""
    folder = tmp_path_factory.mktemp("tail")
    write_set(folder / "train", SIZES, noise=True, image_format="jpeg")
    starts = [sum(SIZES[:shard]) for shard in range(len(SIZES))]
    lines = []
    for number in sorted(set(range(70)) - set(KEPT)):
        shard = max(index for index, start in enumerate(starts) if start <= number and SIZES[index])
        lines.append(json.dumps({"shard": f"shard-{shard:06d}.tar", "key": f"{number:09d}"}))
    (folder / "drop.jsonl").write_text("\n".join(lines) + "\n")
    return lambda **changes: by_class(
        folder / "train", len(KEPT), data__drop_list=str(folder / "drop.jsonl"), **AUGMENTED, **changes
    )


def by_class(shards, num_samples: int, **changes) -> Experiment:
    changes = {"data__sampling": "balanced", "data__shuffle_window": ..., "data__lanes": 4} | changes
    return experiment(shards, num_samples, **changes)


def by_slot(config: Experiment, world: int, num_steps: int, position: int = 0) -> dict[int, tuple[int, int, bytes]]:
    """slot → (sample id, label, image), of all ranks."""
    return {
        int(slot): (int(sample_id), int(label), image.numpy().tobytes())
        for rank in range(world)
        for batch in TrainStream(config, rank, world, 4).iterate(position, num_steps)
        for slot, sample_id, label, image in zip(
            batch.slots, batch.sample_ids, batch.labels[:, 0], batch.images, strict=True
        )
    }


def test_the_stream_is_the_same_for_any_ranks_processes_and_start(long_tailed):
    config = long_tailed()
    straight = by_slot(config, 1, 15)  # 240 draws: 8 epochs
    assert sorted(straight) == list(range(240))
    assert by_slot(config, 2, 15) == straight
    resumed = by_slot(long_tailed(cluster__num_workers=2), 1, 6, position=16 * 9)
    assert resumed == {slot: found for slot, found in straight.items() if slot >= 16 * 9}
    labels = Counter(label for _, label, _ in straight.values())
    assert len(labels) == NUM_CLASSES
    assert set(labels.values()) <= {8 * 4, 8 * 5}  # 30 draws an epoch, of 7 classes
    ids = Counter(sample_id for sample_id, _, _ in straight.values())
    assert set(ids) == set(KEPT)
    assert {ids[number] for number in KEPT if number % 7 < 5} <= set(range(16, 21))  # 2 images of a class
    assert {ids[number] for number in KEPT if number % 7 >= 5} <= {3, 4}  # 10 images
    assert len({image for sample_id, _, image in straight.values() if sample_id == 0}) == ids[0]  # no view comes twice


def test_a_check_says_what_is_drawn(long_tailed):
    (line,) = [text for text in report_data(long_tailed(), require_data=True) if text.startswith("sampling")]
    assert line == (
        "sampling    balanced: an epoch draws 7 classes of 2 to 10 images 4 to 5 times each, the images of the rarest "
        "2.5 times each"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data__shards": "http://127.0.0.1:9/x"},
            r"data\.sampling: balanced reads .* http://127\.0\.0\.1:9/x is",
        ),
        ({"objective": {"name": "regression"}}, r"data\.sampling: balanced draws by class, .* learns from vectors"),
    ],
)
def test_what_cannot_be_drawn_by_class_is_refused_before_any_set_is_opened(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_sampling(by_class("nowhere", 30, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__shuffle_window": 8}, r"shuffle_window shuffles along the shards; sampling: balanced"),
        ({"data__shards": None, "data__mixture": MIXTURE}, "sampling: balanced draws the classes of one set"),
        ({"objective": {"name": "softmax", "class_weights": "balanced"}}, "drawn in other shares by data.sampling"),
    ],
)
def test_settings_that_contradict_it_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        by_class("nowhere", 30, **changes)


def test_a_set_of_several_labels_is_refused(tmp_path):
    folder = write_set(tmp_path / "train", [20], multi_label=True)
    config = by_class(folder, 20, objective={"name": "sigmoid"})
    with pytest.raises(ConfigError, match=r"data\.sampling: balanced needs one class per image, .* up to 3 labels"):
        TrainStream(config, 0, 1, 4)

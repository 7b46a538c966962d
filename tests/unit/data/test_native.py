"""Images at their own aspect ratio: what the strips of a batch hold, the same for any ranks and micro-batches."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pretrain.config.schema.evaluation import FEW_SHOT_TRANSFORM
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.config.sequences import native_grid
from pretrain.data.batch import Batch
from pretrain.data.images.augment import EvalTransform
from pretrain.data.stream import EvalStream, TrainStream
from pretrain.errors import ConfigError
from tests.unit.data.sets import experiment, noise_of, write_set

PATCH, LENGTH, NUM = 4, 20, 44
NATIVE: dict[str, Any] = {
    "data__train_transform": {"crop": "native", "max_tokens": LENGTH, "min_area": 0.3, "hflip": 0.5},
    "data__eval_transform": {"resize": "native", "max_tokens": LENGTH},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("varied") / "train", [NUM], varied=True)


def image_in(strip: Tensor, grid: Tensor) -> np.ndarray:
    """The image of a strip (3, P, N · P) as uint8 (h · P, w · P, 3), put together patch by patch."""
    rows, columns = grid.tolist()
    image = np.zeros((rows * PATCH, columns * PATCH, 3), dtype=np.uint8)
    for number in range(rows * columns):
        top, left = number // columns * PATCH, number % columns * PATCH
        patch = strip[:, :, number * PATCH : (number + 1) * PATCH].permute(1, 2, 0)
        image[top : top + PATCH, left : left + PATCH] = patch.numpy()
    return image


def grids_of(batch: Batch) -> Tensor:
    assert batch.grids is not None
    return batch.grids


def by_slot(config: Experiment, world: int, micro: int, *, position: int = 0, steps: int = 2) -> dict[int, bytes]:
    batches = [
        pickle.loads(pickle.dumps(batch))
        for rank in range(world)
        for batch in TrainStream(config, rank, world, micro).iterate(position, steps)
    ]
    return {
        int(slot): grid.numpy().tobytes() + strip.numpy().tobytes()
        for batch in batches
        for slot, grid, strip in zip(batch.slots, batch.grids, batch.images, strict=True)
    }


def test_a_strip_holds_the_resized_image_and_zeros(folder: Path) -> None:
    config = experiment(folder, NUM, **NATIVE, evaluation__micro_batch_size=8)
    grids, batches = set(), list(EvalStream(config, str(folder), 0, 1, 8))
    for batch in batches:
        for row in range(len(batch)):
            if not batch.valid[row]:
                continue
            pixels = noise_of(int(batch.sample_ids[row]))
            grid = grids_of(batch)[row]
            height, width, _ = pixels.shape
            assert tuple(grid.tolist()) == native_grid(height, width, LENGTH)
            size = (int(grid[1]) * PATCH, int(grid[0]) * PATCH)
            expected = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)).astype(int)
            assert np.abs(image_in(batch.images[row], grid).astype(int) - expected).max() <= 2
            assert not batch.images[row, :, :, int(grid.prod()) * PATCH :].any()
            grids.add(tuple(grid.tolist()))
    assert len(grids) > 5 and sum(int(batch.valid.sum()) for batch in batches) == NUM
    assert not batches[-1].valid.all() and (grids_of(batches[-1]) >= 1).all(), "padding rows have a patch, too"


def test_training_strips_are_the_same_for_any_ranks_and_passes_and_after_a_seek(folder: Path) -> None:
    config = experiment(folder, NUM, **NATIVE, data__lanes=4)
    expected = by_slot(config, 1, 16)
    assert len(expected) == 32 and len({value[:16] for value in expected.values()}) > 5
    assert by_slot(config, 2, 4) == expected
    assert by_slot(config, 4, 2) == expected
    assert by_slot(config, 2, 8, position=16, steps=1) == {slot: expected[slot] for slot in range(16, 32)}


DRAWN = {**NATIVE, "data__train_transform": {**NATIVE["data__train_transform"], "max_tokens": [LENGTH, 8, 30]}}


def test_each_batch_has_the_drawn_length_and_the_strips_of_a_run_of_that_length(folder: Path) -> None:
    config = experiment(folder, NUM, **DRAWN, data__lanes=4)
    lengths = [config.image_sizes.at(step).size[1] // PATCH for step in range(6)]
    assert set(lengths) == {8, LENGTH, 30}, "the seed draws every length"
    found = by_slot(config, 1, 16, steps=6)
    for step, length in enumerate(lengths):
        constant = {**NATIVE["data__train_transform"], "max_tokens": length}
        alone = experiment(folder, NUM, **{**NATIVE, "data__train_transform": constant}, data__lanes=4)
        assert by_slot(alone, 1, 16, position=16 * step, steps=1).items() <= found.items(), step
    assert by_slot(config, 4, 2, steps=6) == found
    late = {slot: value for slot, value in found.items() if slot >= 16 * 3}
    assert by_slot(config, 2, 4, position=16 * 3, steps=3) == late, "after a seek"


def test_a_crop_has_the_ratio_of_the_image(folder: Path) -> None:
    """An image is cropped, but its grid is that of the complete image; without a crop its pixels are evaluation's."""
    whole = {**NATIVE, "data__train_transform": {"crop": "native", "max_tokens": LENGTH, "hflip": 0.0}}
    drawn: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for name, changes in (("cropped", NATIVE), ("whole", whole)):
        (batch,) = TrainStream(experiment(folder, NUM, **changes), 0, 1, 16).iterate(0, 1)
        ids = batch.sample_ids.tolist()
        drawn[name] = {number: (grids_of(batch)[row], batch.images[row]) for row, number in enumerate(ids)}
    evaluated: Batch
    for evaluated in EvalStream(experiment(folder, NUM, **NATIVE), str(folder), 0, 1, 16):
        for row, number in enumerate(evaluated.sample_ids.tolist()):
            if number in drawn["whole"]:
                grid, strip = drawn["whole"][number]
                assert torch.equal(grid, grids_of(evaluated)[row]) and torch.equal(grid, drawn["cropped"][number][0])
                assert (strip.int() - evaluated.images[row].int()).abs().max() <= 2
                assert not torch.equal(strip, drawn["cropped"][number][1])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "evaluation of one size": ({"data__eval_transform": {"resize": "squash"}}, "data.eval_transform.resize: squash"),
    "no length": ({"data__eval_transform": {"resize": "native"}}, "resize: native needs max_tokens"),
    "native evaluation alone": ({"data__train_transform": {"crop": "resize"}}, "trained with data.train_transf"),
    "a length twice": (
        {"data__train_transform": {"crop": "native", "max_tokens": [8, 8]}},
        "max_tokens: [8, 8]; list each length once",
    ),
    "sizes of squares": ({"data__resolution": [[0, 4]]}, "give a list of lengths as data.train_transform.max_tokens"),
    "length of another": (
        {"data__eval_transform": {"resize": "squash", "max_tokens": 5}},
        "max_tokens belongs to resize: native",
    ),
    "mixing": ({"data__mixing": {"mixup": 0.2}}, "mixes images of one size"),
    "erasing": (
        {"data__train_transform": {"crop": "native", "max_tokens": 20, "random_erasing": {}}},
        "random_erasing does not work with crop: native",
    ),
    "relative positions": ({"model__pos_embed": "relative_bias"}, "model.pos_embed: relative_bias does not work"),
    "every layer": ({"model__pos_embed_placement": "every_layer"}, "pos_embed_placement: every_layer does not work"),
    "mixed rotary": ({"model__rope": "mixed"}, "model.rope: mixed does not work"),
    "dropped patches": ({"model__patch_drop": 0.5}, "model.patch_drop does not work"),
    "hybrid": ({"model__variant": "R50+mu/16", "model__img_size": 32}, "R50+mu/16 does not work"),
    "another family": ({"model": {"name": "timm/resnet18"}}, "needs model.name: vit"),
    "another objective": (
        {"objective": {"name": "masked_patches"}, "model__mask_token": True},
        "does not work with objective.name: masked_patches",
    ),
    "few shots of one size": (
        {"evaluation__sets": {"few": {"kind": "few_shot", "shards": "a", "num_samples": 9, "train_shards": "b",
            "num_train_samples": 9}}},
        "evaluation.sets.few.transform.resize: squash_crop",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), [pytest.param(*value, id=key) for key, value in REFUSED.items()])
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        experiment("none", NUM, **{**NATIVE, **changes})


def test_a_transform_to_one_size_refuses_to_keep_the_ratio() -> None:
    with pytest.raises(ConfigError, match="which is done by the evaluations of a training only"):
        EvalTransform(EvalTransformConfig(resize="native", max_tokens=4), 8, 8)
    assert EvalTransform(FEW_SHOT_TRANSFORM, 8, 8).height == 8

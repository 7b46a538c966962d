"""Which trainings answer which question.

A *cell* is one entry of a table: a training, its evaluation, and three seeds of it. A cell with several learning rates
runs seed 0 with each and takes the one that is best on the dev split; one of the same kind may take another's choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.transferring.sets import SETS, card, evaluation_set, feature_set

UPSTREAM = "fashion"
SHARES = ("2 %", "12 %", "100 %")
POSITIONS = ("none", "learned_1d", "learned_2d", "relative_1d", "relative_bias")
SOURCES = {"openclipart": "upstream/openclipart", "fashion": "scale/vit_small/100"}
TARGETS = ("digits", "fashion-1000", "openclipart", "photos")
UPSTREAM_RATES = (3e-4, 1e-3, 3e-3)
RATES = (1e-3, 3e-3)  # of a fine-tuning
LONGER = 4  # times the steps
CROPS = {"crop": "inception", "min_area": 0.5, "ratio": [0.8, 1.25]}
WHOLE = {"crop": "resize"}
HEAD_RATES = (3e-3, 3e-2)  # of a new head on a frozen network


@dataclass(frozen=True)
class Scale:
    """How much is computed.

    Attributes:
        img_size, high: resolution of the pretraining, and of the photos.
        models: the networks by name, as sections ``model`` without resolution and positions.
        steps, batches: optimiser steps and images in each, of a pretraining and of a fine-tuning by target.
        upstream_rates, rates, head_rates: learning rates to choose from.
        shots: images per class of the few-shot measure.
    """

    img_size: int
    high: int
    models: Mapping[str, Mapping[str, Any]]
    steps: Mapping[str, int]
    batches: Mapping[str, int]
    upstream_rates: tuple[float, ...] = UPSTREAM_RATES
    rates: tuple[float, ...] = RATES
    head_rates: tuple[float, ...] = HEAD_RATES
    shots: int = 10


_VIT = {"pool": "norm_avg", "class_token": False}
_BATCHES = {"upstream": 32, "digits": 32, "fashion-1000": 32, "openclipart": 32, "photos": 32}
FULL = Scale(
    img_size=28,
    high=56,
    models={
        "vit_small": {"variant": "nano/7", "depth": 4, **_VIT},
        "vit_large": {"variant": "Ti/7", "embed_dim": 144, "mlp_dim": 576, "depth": 4, **_VIT},
        # BiT: GroupNorm and weight standardisation. A quarter as wide as R50x1 where images of 28 pixels allow it
        "resnet": {"name": "timm/resnetv2_50x1_bit", "kwargs": {"channels": [128, 128, 256, 512], "stem_chs": 32}},
    },
    steps={"upstream": 480, "digits": 120, "fashion-1000": 240, "openclipart": 240, "photos": 240},
    batches=_BATCHES,
)
QUICK = Scale(
    img_size=14,
    high=28,
    models={
        "vit_small": {"variant": "mu/7", **_VIT},
        "vit_large": {"variant": "mu/7", "depth": 2, **_VIT},
        "resnet": {"name": "timm/resnetv2_50x1_bit", "kwargs": {"channels": [128, 128, 256, 256], "stem_chs": 32}},
    },
    steps=dict.fromkeys(FULL.steps, 2),
    batches=dict.fromkeys(_BATCHES, 16),
    upstream_rates=(1e-3,),
    rates=(1e-3,),
    head_rates=(1e-3,),
    shots=2,
)


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        key: its name, such as ``transfer/photos/openclipart``.
        settings: dotted settings over ``small.yaml``.
        rates: learning rates to choose from on the dev split; or the key of the cell whose choice is taken.
        judge: the metric of the dev split that decides.
        source: key of the cell whose weights it starts from; None: from scratch.
        positions: at a higher resolution the position embedding is resized, or as new.
    """

    key: str
    settings: Mapping[str, Any]
    rates: tuple[float, ...] | str
    judge: str = ""
    source: str | None = None
    positions: Literal["resized", "new"] = "resized"

    @property
    def entry(self) -> str:
        """The file that a user would start."""
        return (
            "pretrain/run.py"
            if self.key.split("/")[0] in ("upstream", "scale", "positions", "longer")
            else "pipelines/finetune.py"
        )


def _objective(dataset: str) -> dict[str, Any]:
    """Settings of a set with several labels; none where softmax will do."""
    if not SETS[dataset].multi_label:
        return {}
    return {"objective": {"name": "sigmoid", "reduction": "sum_classes"}, "model.head_bias": -4.0}


def is_same_set(target: str, source: str) -> bool:
    """Whether a pretraining has seen the classes of a target."""
    return target.partition("-")[0] == source


@dataclass(frozen=True)
class Plan:
    """All cells.

    Attributes:
        scale: how much is computed.
        data: folder of the packed sets.
        photos: whether there are any.
        budget: factor on all steps.
    """

    scale: Scale
    data: Path
    photos: bool
    budget: float = 1.0
    cells: dict[str, Cell] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Lays out the cells in the order in which they answer: the cheap ones that others wait for come first."""
        cells = [*self._scales(), *self._upstream(), *self._transfers(), *self._longer()]
        cells += [*self._positions(), *self._resolutions()]
        self.cells.update({cell.key: cell for cell in cells})

    def _scales(self) -> list[Cell]:
        """A ViT of two sizes and a ResNet on nested parts of the upstream set."""
        cells = []
        for share in reversed(SHARES):  # the whole set first: its cells choose the learning rates
            for model in self.scale.models:
                percent = share.split()[0]
                settings = self._pretraining(UPSTREAM, model) | ({"data.subset": share} if percent != "100" else {})
                rates = self.scale.upstream_rates if percent == "100" else f"scale/{model}/100"
                cells.append(Cell(f"scale/{model}/{percent}", settings, rates, "dev/top1"))
        return cells

    def _upstream(self) -> list[Cell]:
        settings = self._pretraining("openclipart", "vit_small")
        return [Cell(SOURCES["openclipart"], settings, self.scale.upstream_rates, "dev/mAP")]

    def _longer(self) -> list[Cell]:
        """Both pretrainings four times as long, and what becomes of their transfers to the small sets."""
        cells = []
        for name, source in SOURCES.items():
            steps = self._steps("upstream") * LONGER
            length = {"duration": f"{steps} steps", "optim.schedule.warmup": f"{steps // 10} steps"}
            long = Cell(f"longer/{name}", self._pretraining(name, "vit_small") | length, source)
            cells.append(long)
            for target in ("digits", "fashion-1000", "photos"):
                if target in self._targets and not is_same_set(target, name):
                    rates = f"transfer/{target}/{name}"
                    cells.append(
                        Cell(f"longer_transfer/{target}/{name}", self._finetuning(target), rates, "", long.key)
                    )
                    frozen = self._frozen(target, name, long.key)
                    cells.append(replace(frozen, key=f"longer_frozen/{target}/{name}"))
        return cells

    def _transfers(self) -> list[Cell]:
        """Fine-tuned from either source and from scratch; and on frozen features, of random weights too."""
        cells: list[Cell] = []
        for target in self._targets:
            for name, source in {"scratch": None, **SOURCES}.items():
                if is_same_set(target, name):
                    continue
                judge = f"dev/{SETS[target].metric}"
                tuned = Cell(f"transfer/{target}/{name}", self._finetuning(target), self.scale.rates, judge, source)
                cells += [tuned, self._frozen(target, name, source)]
        return cells

    def _positions(self) -> list[Cell]:
        """Kinds of position embedding; ``learned_1d`` is a cell already."""
        base, rates = self._pretraining(UPSTREAM, "vit_small"), "scale/vit_small/100"
        kinds = [kind for kind in POSITIONS if kind != "learned_1d"]
        return [Cell(f"positions/{kind}", base | {"model.pos_embed": kind}, rates) for kind in kinds]

    def _resolutions(self) -> list[Cell]:
        """The position embedding initialised again at the photos' resolution; resized, it is the transfer itself."""
        cells = []
        for name in SOURCES if self.photos else ():
            for length, source in (("", SOURCES[name]), ("longer_", f"longer/{name}")):
                rates, key = f"transfer/photos/{name}", f"{name}/new"
                tuned = Cell(f"{length}resolution/{key}", self._finetuning("photos"), rates, "", source, "new")
                frozen = replace(self._frozen("photos", name, source), key=f"{length}resolution_frozen/{key}")
                cells += [tuned, replace(frozen, positions="new")]
        return cells

    @property
    def _targets(self) -> tuple[str, ...]:
        return tuple(name for name in TARGETS if name != "photos" or self.photos)

    def _pretraining(self, dataset: str, model: str) -> dict[str, Any]:
        shots = {"shots": [self.scale.shots], "transform": {"resize": "squash"}}
        few = {
            f"few_{target}": feature_set("few_shot", SETS[target], self.data, **shots)
            for target in ("digits", "photos")
            if target in self._targets
        }
        return self._training(dataset, "upstream", model, self.scale.img_size, few) | _objective(dataset)

    def _finetuning(self, target: str) -> dict[str, Any]:
        return self._training(target, target, "vit_small", self._size_of(target), {}) | _objective(target)

    def _frozen(self, target: str, name: str, source: str | None) -> Cell:
        """The features without fine-tuning: a logistic regression, or a head alone where labels are several."""
        settings, key = self._finetuning(target), f"frozen/{target}/{name}"
        settings["optim.overrides"] = [{"pattern": "^(?!head)", "freeze": True}]
        if SETS[target].multi_label:
            return Cell(key, settings, self.scale.head_rates, f"dev/{SETS[target].metric}", source)
        probe = feature_set("logistic", SETS[target], self.data)
        still = {"duration": "1 steps", "optim.schedule": {"name": "constant"}, "evaluation.sets": {"test": probe}}
        del settings["optim.schedule.warmup"]
        return Cell(key, {**settings, **still}, (1e-3,), "", source)

    def _training(
        self, dataset: str, budget: str, model: str, img_size: int, more_sets: Mapping[str, Any]
    ) -> dict[str, Any]:
        chosen, about = SETS[dataset], card(self.data / SETS[dataset].train)
        steps = self._steps(budget)
        splits = {"dev": chosen.dev, "test": chosen.test}
        return {
            "duration": f"{steps} steps",
            "global_batch_size": self.scale.batches[budget],
            "cluster.micro_batch_size": self.scale.batches[budget],
            "model": {**self.scale.models[model], "img_size": img_size},
            "data.shards": str(self.data / chosen.train),
            "data.num_samples": about["num_samples"],
            "data.num_classes": about["num_classes"],
            "data.train_transform": {**(CROPS if chosen.crops else WHOLE), "hflip": chosen.hflip},
            "optim.schedule.warmup": f"{steps // 10} steps",
            "evaluation.sets": {
                **{name: evaluation_set(self.data / split) for name, split in splits.items()},
                **more_sets,
            },
        }

    def _steps(self, budget: str) -> int:
        return max(1, round(self.scale.steps[budget] * self.budget))

    def _size_of(self, target: str) -> int:
        return self.scale.high if target == "photos" else self.scale.img_size

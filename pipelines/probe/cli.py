"""``python -m pipelines probe``: how good are frozen features? Few-shot, nearest neighbours, logistic regression.

Started by torchrun it uses every rank; the figures are the same.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.terminal.arguments import add_data_workers, add_json, add_model, model_options, positive, stage_parser
from pipelines.weights.load import warn_of_overlap, warn_of_trained_images
from pipelines.weights.ranks import joined, teller
from pipelines.weights.transfer import PROBE_FILE, record_of, transfer_folder
from pretrain.command_line import Parser, check_output_folder
from pretrain.config.loader import load_settings
from pretrain.config.schema.evaluation import FEATURE_KINDS, EvaluationSetConfig, FewShotConfig, LogisticConfig
from pretrain.errors import ConfigError
from pretrain.files import write_atomic
from pretrain.names import tell
from pretrain.redaction import redacted_in

if TYPE_CHECKING:
    from pipelines.probe.cache import CachedSet, FeatureCache
    from pretrain.data.storage.packed_set import PackedSet
    from pretrain.distributed.rank import Rank
    from pretrain.evaluation.features import Pair

COLLECTIVE_TIMEOUT_S = 4 * 3600  # the other ranks wait while one fits a logistic regression
L2_GRID = tuple(10.0**power for power in range(-2, 5))
EXAMPLES = """\
examples:
  python -m pipelines probe --from runs/l16 --train data/pets/train --test data/pets/test
  python -m pipelines probe --from vit_base.safetensors --train data/cifar10/train --test data/cifar10/test --kind knn
  torchrun --nproc_per_node 8 -m pipelines probe --from runs/l16 --train data/imagenet/train --test data/imagenet/val
"""

# Option → the kind that it belongs to.
OPTIONS = {
    "shots": "few_shot",
    "num_seeds": "few_shot",
    "k": "knn",
    "temperature": "knn",
    "l2": "logistic",
    "max_iterations": "logistic",
    "dev": "logistic",
}


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = parser().parse_args(argv)
    for option in ("out", "cache"):
        if getattr(args, option) is not None:
            check_output_folder(getattr(args, option), f"--{option}")
    _check(args)
    with joined(args, COLLECTIVE_TIMEOUT_S) as rank:
        result = probe(args, rank)
        result["command"] = shlex.join(["python", "-m", "pipelines", "probe", *argv])
        if rank.is_main:
            out = _out(args, result)
            out.mkdir(parents=True, exist_ok=True)
            write_atomic(out / PROBE_FILE, json.dumps(redacted_in(result), indent=1))
            tell(json.dumps(result) if args.json else f"{text(result)}\n{out / PROBE_FILE}, in {result['seconds']} s")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Rejects options that would be ignored."""
    for name, kind in OPTIONS.items():
        if getattr(args, name) is not None and kind not in args.kind:
            raise ConfigError(
                f"--{name.replace('_', '-')} belongs to --kind {kind}; with --kind {','.join(args.kind)} it would be "
                "ignored"
            )


def probe(args: argparse.Namespace, rank: Rank) -> dict[str, Any]:
    """All figures, as ``probe.json`` has them. Collective: yes.

    Raises:
        ConfigError: impossible options. DataError: a set that cannot be read, is empty, or is not a split of the other.
        CheckpointError: weights that cannot be used. SetupError: no room for the features.
    """
    from pipelines.probe.cache import FeatureCache
    from pipelines.weights.network import load_frozen

    started, say = time.monotonic(), teller(rank)
    sets = _open_sets(args)
    configs = [config_of(kind, args, sets) for kind in args.kind]
    frozen = load_frozen(args.source, **model_options(args), say=say)
    if rank.is_main:
        for name in ("test", "dev"):
            if name in sets:
                warn_of_overlap(sets["train"].table, sets[name].table, f"in {args.train}, which is learned from", say)
        warn_of_trained_images(args.source, args.weights, sets["test"].table, say)
    folder = args.cache or transfer_folder(args.source) / "features"
    cache = FeatureCache(folder, frozen, rank, args.micro_batch_size, args.num_workers, say)
    result: dict[str, Any] = {
        "from": str(args.source),
        "weights": cache.model["weights"],
        "img_size": frozen.metadata.img_size,
        "data": {name: record_of(packed) for name, packed in sets.items()},
        "test": {},
        "chosen": {},
    }
    for config in configs:
        figures, chosen = _measured(config, args, sets, cache)
        result["test"] |= figures
        result["chosen"] |= chosen
    return {**result, "ranks": rank.world, "seconds": round(time.monotonic() - started, 2)}


def _open_sets(args: argparse.Namespace) -> dict[str, PackedSet]:
    """``train``, ``test`` and, if one was named, ``dev``."""
    from pretrain.config.schema.cluster import AutoClusterConfig
    from pretrain.data.storage.packed_set import open_packed

    named = {name: getattr(args, name) for name in ("train", "test", "dev")}
    sets = {name: open_packed(shards, AutoClusterConfig()) for name, shards in named.items() if shards is not None}
    for packed in sets.values():
        packed.check_files()
    return sets


def config_of(kind: str, args: argparse.Namespace, sets: dict[str, PackedSet]) -> EvaluationSetConfig:
    """The options as the settings of an evaluation set, which have the same rules inside a run.

    Raises:
        ConfigError: a setting is impossible.
    """
    settings = {
        "kind": kind,
        "shards": json.dumps(args.test),
        "num_samples": max(1, sets["test"].table.num_samples),  # an empty split is refused by name later
        "train_shards": json.dumps(args.train),
        "num_train_samples": max(1, sets["train"].table.num_samples),
    }
    own = [name for name, owner in OPTIONS.items() if owner == kind and name not in ("l2", "dev")]
    settings |= {name: getattr(args, name) for name in own if getattr(args, name) is not None}
    if args.transform is not None:
        settings["transform"] = args.transform
    return load_settings([f"{key}={value}" for key, value in settings.items()], FEATURE_KINDS[kind])


def _measured(
    config: EvaluationSetConfig, args: argparse.Namespace, sets: dict[str, PackedSet], cache: FeatureCache
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metric → mean, spread and number of draws; setting → what was chosen. Collective: yes."""
    from pretrain.evaluation.features import Pair
    from pretrain.evaluation.registry import PROBES

    frozen, rank = cache.frozen, cache.rank
    transform = config.transform_or(frozen.transform.config)
    features = {name: cache.features(packed, transform) for name, packed in sets.items()}
    pair = Pair.of(features["train"], features["test"], frozen.device, rank.rank, rank.world, cache.say)
    if isinstance(config, FewShotConfig) and args.shots is None:
        config = config.model_copy(update={"shots": _possible_shots(config, pair)})
    evaluator, chosen = PROBES[config.kind](config, pair), {}
    if isinstance(config, LogisticConfig):
        chosen = _chosen_l2(config, args.l2 or L2_GRID, pair, features.get("dev"))
        evaluator = PROBES[config.kind](config.model_copy(update={"l2": chosen["l2"]}), pair)
    return _spreads(evaluator(), config.num_draws), chosen


def _possible_shots(config: FewShotConfig, pair: Pair) -> tuple[int, ...]:
    """The usual numbers of shots, up to the size of the smallest training class."""
    import numpy as np

    rarest = int(np.bincount(pair.train_labels, minlength=pair.num_classes).min())
    possible = tuple(shots for shots in config.shots if shots <= rarest)
    if len(possible) < len(config.shots):
        pair.say(f"note: the rarest class has {rarest} training images, so there are no results for more shots")
    return possible or config.shots


def _chosen_l2(config: LogisticConfig, grid: Sequence[float], pair: Pair, dev: CachedSet | None) -> dict[str, Any]:
    """The best of the grid on held-out images; on a tie the strongest regularisation. Collective: yes."""
    from pretrain.evaluation.features import Pair
    from pretrain.evaluation.linear import accuracies_of

    if len(grid) == 1:
        return {"l2": grid[0]}
    if dev is not None:
        Pair.of(
            pair.train, dev, pair.device, pair.rank, pair.world, pair.say
        )  # refuses a set that is not a split of the same data
    found = accuracies_of(grid, pair, dev, max_iterations=config.max_iterations)
    best = max(found, key=lambda l2: (found[l2], l2))
    return {"l2": best, "l2_dev_top1": {f"{l2:g}": value for l2, value in found.items()}}


def _spreads(figures: dict[str, float], num_seeds: int) -> dict[str, Any]:
    spreads = {}
    for metric, value in figures.items():
        if metric == "num_samples" or metric.endswith("_std"):
            continue
        spread = figures.get(f"{metric}_std")
        spreads[metric] = {"mean": value, "std": spread, "num_seeds": 1 if spread is None else num_seeds}
    return spreads


def _out(args: argparse.Namespace, result: dict[str, Any]) -> Path:
    return args.out or transfer_folder(args.source) / result["data"]["train"]["name"].replace("/", "_")


def text(result: dict[str, Any]) -> str:
    """The result as text."""
    train, test = result["data"]["train"], result["data"]["test"]
    lines = [
        f"{result['from']}: {train['num_samples']:,} images of {train['shards']}, tested on {test['num_samples']:,}"
    ]
    for metric, spread in result["test"].items():
        several = f" ± {100 * spread['std']:.2f}" if spread["num_seeds"] > 1 else ""
        lines.append(f"  {metric:<14} {100 * spread['mean']:6.2f}{several} %")
    if "l2_dev_top1" in result["chosen"]:
        grid = ", ".join(f"{l2}: {100 * value:.2f}" for l2, value in result["chosen"]["l2_dev_top1"].items())
        lines.append(f"logistic: l2 {result['chosen']['l2']:g} of {grid} % on images held out of the training set")
    return "\n".join(lines)


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "probe",
        "Measures frozen features of trained weights: what a simple classifier learns from them.",
        EXAMPLES,
    )
    add_model(parser, classifies=False)
    parser.add_argument("--train", required=True, metavar="SHARDS", help="labelled images to learn from")
    parser.add_argument("--test", required=True, metavar="SHARDS", help="labelled images to classify")
    kinds = tuple(FEATURE_KINDS)
    parser.add_argument("--kind", type=_kinds, default=kinds, help=f"some of {','.join(kinds)} (all)")
    parser.add_argument("--transform", metavar="{…}", help="replaces the weights' own data.eval_transform")
    add_data_workers(parser)
    parser.add_argument("--out", type=Path, help=f"folder for {PROBE_FILE} (WEIGHTS_transfer/NAME_OF_THE_SET)")
    parser.add_argument("--cache", type=Path, help="folder for cached features (WEIGHTS_transfer/features)")
    add_json(parser)
    few_shot = parser.add_argument_group("few_shot")
    few_shot.add_argument("--shots", type=_shots, help="images per class (1,5,10,25)")
    few_shot.add_argument("--seeds", dest="num_seeds", type=positive, help="random draws (3)")
    knn = parser.add_argument_group("knn")
    knn.add_argument("--k", type=positive, help="neighbours (20)")
    knn.add_argument("--temperature", type=float, help="a vote weighs exp(cosine / temperature) (0.07)")
    logistic = parser.add_argument_group("logistic")
    logistic.add_argument("--l2", type=_grid, help="penalty weights to choose from (0.01,0.1,…,10000)")
    logistic.add_argument(
        "--dev", metavar="SHARDS", help="images to choose l2 on (default: a fifth of the training images)"
    )
    logistic.add_argument("--max-iterations", type=positive, help="of the solver (1000)")
    return parser


def _kinds(words: str) -> tuple[str, ...]:
    kinds = tuple(words.split(","))
    if unknown := [kind for kind in kinds if kind not in FEATURE_KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(FEATURE_KINDS)}")
    return tuple(kind for kind in FEATURE_KINDS if kind in kinds)


def _shots(words: str) -> list[int]:
    try:
        return [positive(word) for word in words.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{words!r}: write numbers above 0, such as 1,5,10") from error


def _grid(words: str) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in words.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{words!r}: write numbers, such as 0.1,1,10") from error
    if min(values) <= 0 or len(set(values)) != len(values):
        raise argparse.ArgumentTypeError(f"{words!r}: different numbers above 0 are needed")
    return values

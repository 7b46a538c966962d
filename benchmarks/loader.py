"""Our loader against the loaders that people use, on the same JPEG bytes in one run.

    make bench-setup                                      # once: environments for the peers, under .bench/
    python -m benchmarks.loader --photos FOLDER           # a folder of JPEGs, of any depth
    python -m benchmarks.loader                           # JPEGs cut from scikit-learn's two sample photos

Original size and capped at 256 px, with one and with two workers: about 10 minutes on a quiet machine. Every loader
makes shuffled batches of 64 random crops (5-100 % of the area) of 224 px with flips. It runs in a process of its own;
all of them stay, take turns in every round, and the median of the rounds counts, so that a slow minute of the machine
hits all. CPU seconds are those of the process and its workers. A peer that is not installed is named. Ends with one
line of JSON: ``ratio_fastest_peer`` and ``ratio_stock_webdataset`` are our images per CPU-second over theirs, at the
photos' own size with one worker.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python benchmarks/loader.py` works too

from benchmarks.loaders.setup import PACKAGES, ROOT, failure_of, python_of

LOADERS = ["ours", "stock_webdataset", "torchvision_decoder", "timm_reader", "litdata", "mosaicml", "dali"]
CAP, QUALITY = 256, 90
LEAST_ROUNDS = 3


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


def collect(photos: Path | None, limit: int) -> Iterator[bytes]:
    """The JPEG bytes of the benchmark."""
    if photos is not None:
        files = [path for path in sorted(photos.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
        if not files:
            sys.exit(f"error: {photos}: no .jpg files below it")
        yield from (path.read_bytes() for path in files[:limit])
        return
    import sklearn.datasets

    samples = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    pieces = -(-limit // len(samples))
    for path in samples:
        image = Image.open(path).convert("RGB")
        for number in range(pieces):
            left, top = number * 37 % (image.width - 480), number * 23 % (image.height - 400)
            buffer = io.BytesIO()
            image.crop((left, top, left + 480, top + 400)).save(buffer, "JPEG", quality=QUALITY)
            yield buffer.getvalue()


def capped(data: bytes) -> bytes:
    """The photo with a short side of at most 256 px, encoded again."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    scale = CAP / min(image.size)
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def prepare(folder: Path, photos: list[bytes]) -> None:
    """``photos/`` as files and ``packed/`` as shards, of the same bytes."""
    (folder / "photos" / "all").mkdir(parents=True)
    (folder / "photos" / "more").mkdir()  # a set has two classes at least
    for number, data in enumerate(photos):
        (folder / "photos" / ("all", "more")[number % 2] / f"{number:06d}.jpg").write_bytes(data)
    command = [sys.executable, "-m", "pipelines", "pack", "folder", str(folder / "photos"), "--out"]
    subprocess.run([*command, str(folder / "packed")], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def compare(
    folder: Path, workers: int, options: argparse.Namespace, seconds: float
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
                measured = running[name].measure(options.images)
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
    photos = list(collect(options.photos, options.limit))
    report: dict[str, Any] = {"benchmark": "loader", "rounds": options.rounds, "images": options.images, "missing": {}}
    report["source"] = "a folder" if options.photos else "pieces of scikit-learn's two sample photos"
    report["cores"], report["load_average"] = os.cpu_count(), []
    left = len(options.sizes) * len(options.workers)
    for size in options.sizes:
        chosen = photos if size == "original" else [capped(data) for data in photos]
        folder = work / size
        prepare(folder, chosen)
        kib = sum(map(len, chosen)) / len(chosen) / 1024
        print(f"{size}: {len(chosen)} photos of {kib:.0f} KiB on average, from {report['source']}", flush=True)
        for workers in options.workers:
            rows, missing = compare(folder, workers, options, (ends - time.monotonic()) / left)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of JPEGs; without it, pieces of two sample photos")
    parser.add_argument("--limit", type=int, default=1000, help="photos at most")
    parser.add_argument("--images", type=int, default=320, help="images of one measurement")
    parser.add_argument("--rounds", type=int, default=5, help=f"at most; {LEAST_ROUNDS} at least")
    parser.add_argument("--minutes", type=float, default=11, help="of the whole run; then no new round begins")
    parser.add_argument("--sizes", nargs="+", choices=["original", "256"], default=["original", "256"])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--loaders", nargs="+", choices=LOADERS, default=LOADERS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loader-") as work:
        print(json.dumps(run(options, Path(work))))


if __name__ == "__main__":
    main()

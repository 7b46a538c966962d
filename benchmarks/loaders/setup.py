"""An environment under .bench/ for each peer that the project itself does not need: ``make bench-setup``.

Each sees the project's environment through a path file, so that PyTorch is there once, and has its own packages beside
it. What cannot be installed is written into .bench/NAME.failed.txt and named by the programs that need it.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".bench"
PACKAGES = {
    "webdataset": ["webdataset>=1.0"],
    "wids": ["wids>=0.1.11"],
    "litdata": ["litdata>=0.2.40"],
    "mosaicml": ["mosaicml-streaming>=0.11"],
    "grain": ["grain>=0.2"],
    "torchdata": ["torchdata>=0.11"],
    "datasets": ["datasets>=4", "fsspec[http]", "torchdata>=0.11"],
    "spdl": ["spdl>=0.1"],
    "timm": ["timm>=1.0", "webdataset>=1.0"],
    "energon": ["megatron-energon>=7"],
    "lightning": ["lightning>=2.5"],
    "dali": ["nvidia-dali-cuda130>=1.40"],  # runs on the CPU too
}


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment."""
    return FOLDER / name / "bin" / "python"


def failure_of(name: str) -> Path:
    """The file with the reason why a peer could not be installed."""
    return FOLDER / f"{name}.failed.txt"


def make_environment(name: str, packages: list[str]) -> bool:
    """Creates one environment; returns whether everything is there."""
    failure_of(name).unlink(missing_ok=True)
    venv.create(FOLDER / name, with_pip=False, clear=True)
    python = python_of(name)
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (Path(purelib) / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--upgrade", *packages], capture_output=True, text=True, check=False
    )
    if done.returncode:
        failure_of(name).write_text((done.stderr or done.stdout)[-2000:])
    return done.returncode == 0


def main(names: Sequence[str]) -> int:
    """Creates the named environments, or all of them, and reports which could be installed."""
    if unknown := sorted(set(names) - set(PACKAGES)):
        sys.exit(f"error: no such environment: {', '.join(unknown)}; there are: {', '.join(PACKAGES)}")
    FOLDER.mkdir(exist_ok=True)
    for name in names or PACKAGES:
        good = make_environment(name, PACKAGES[name])
        print(f"{name:<12}{'installed' if good else f'cannot be installed: see {failure_of(name)}'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

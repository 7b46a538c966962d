"""The wheel is the complete product: it is built, installed without the checkout, and used in an empty folder."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.command import ROOT, Commands, clean_environment
from tests.integration.small_run import verdict


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tracked files, so that no old build of the checkout gets into it."""
    source = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [name for name in tracked.stdout.split("\0") if name and not name.startswith(("tests/", "docs/"))]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            (source / name).symlink_to((ROOT / name).readlink())
        else:
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."]
    subprocess.run(build, cwd=source, check=True, capture_output=True, env=clean_environment())
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel, for PYTHONPATH; its dependencies are this environment's."""
    target = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return target


@pytest.mark.slow
def test_it_has_every_recipe_and_job_script(wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "configs", "slurm"], cwd=ROOT, capture_output=True, text=True)
    expected = {f"pretrain/shipped/{name}": (ROOT / name).read_bytes() for name in tracked.stdout.split()}
    assert len(expected) > 100
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {name: archive.read(name) for name in names if name.startswith("pretrain/shipped/")} == expected
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "configs", "slurm"))]


@pytest.mark.slow
def test_its_command_works_where_no_checkout_is(command: Commands, site: Path, tmp_path: Path) -> None:
    def stage(*words: str, code: int = 0) -> str:
        words = ("python", str(site / "bin" / "vit-pretrain"), *words)
        done = command.run(*words, cwd=tmp_path, env={"PYTHONPATH": str(site)}, timeout_s=120)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    where = "import pretrain, pipelines; print(pretrain.__file__, pipelines.__file__)"
    found = command.run("python", "-c", where, cwd=tmp_path, env={"PYTHONPATH": str(site)}, check=True).stdout
    assert [str(Path(file).parents[1]) for file in found.split()] == [str(site)] * 2, "not the checkout's"

    assert stage("--version").startswith("vit-pretrain 0.")
    assert "did you mean vit-pretrain predict?" in stage("predcit", code=2)
    assert "655.84 M with its 18,291 classes" in stage("plan", "--config", "recipe:vit_h14_jft300m")
    assert "vit-pretrain pack" in stage("pack", "--help")
    stage(
        "pack", "digits", "--classes", "5-9", "--holdout", "0.5", "--per-class", "10", "--out", "data/demo/downstream"
    )
    stage("finetune", "--config", "recipe:finetune/demo_digits", "duration=2 steps", "optim.schedule.warmup=1 steps")
    assert verdict(tmp_path / "runs" / "demo_digits_finetune")["outcome"] == "complete"
    (tmp_path / "mine.yaml").write_text("extends: recipe:pretrain/demo_digits\nname: mine\nseed: 7\n")
    assert "seed: 7" in stage("pretrain", "--config", "mine.yaml", "--print-config")

    assert "RUN_PYTHON=" in stage("slurm-scripts", "cluster")
    assert (tmp_path / "cluster/slurm/lib/rank.sh").stat().st_mode & 0o111
    assert "0 files written" in stage("slurm-scripts", "cluster")
    (tmp_path / "cluster/slurm/stage.sh").write_text("mine")
    assert "cluster/slurm/stage.sh: differ from the shipped" in stage("slurm-scripts", "cluster", code=2)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.timeout(1800)
def test_its_demo_works_where_no_checkout_is(command: Commands, site: Path, tmp_path: Path) -> None:
    words = ("python", site / "bin" / "vit-pretrain", "demo", "--seeds", "1")
    done = command.run(*words, cwd=tmp_path, env={"PYTHONPATH": str(site)}, timeout_s=1700, check=True)
    assert "resumed at step" in done.stdout
    assert verdict(tmp_path / "runs/demo/demo_digits")["outcome"] == "complete"

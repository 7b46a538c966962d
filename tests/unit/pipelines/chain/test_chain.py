"""A chain's submissions: order and words, what is passed over, and what is refused before anything is submitted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.chain.cli import command, dry_run
from pipelines.chain.stages import Stage, is_complete, sbatch_options, stages_of
from pretrain.config.loader import load_file
from pretrain.config.schema.jobs import ChainConfig
from pretrain.errors import ConfigError

SMALL = """\
name: small
pack: {{arguments: [digits, --classes, 0-4, --holdout, "0.2"], out: {folder}/data, tasks: 2}}
pretrain:
  script: slurm/pretrain_vit_h.sh
  config: configs/pretrain/demo_digits.yaml
  cluster: configs/cluster/cpu.yaml
  overrides: [output_dir={folder}]
  sbatch: [--nodes=2, --ntasks-per-node=1]
finetune:
  configs: [configs/finetune/demo_digits.yaml]
  lrs: ["0.01", "0.03", "0.1"]
"""


def chain(folder: Path, text: str = SMALL) -> ChainConfig:
    path = folder / "chain.yaml"
    path.write_text(text.format(folder=folder))
    return load_file(path, ChainConfig)


def complete(run: Path) -> None:
    run.mkdir(parents=True)
    (run / "exit.json").write_text(json.dumps({"outcome": "complete"}))


def test_the_commands_wait_for_each_other(tmp_path: Path) -> None:
    pack, merge, pretrain, finetune = dry_run(stages_of(chain(tmp_path)))
    assert pack.startswith("sbatch --parsable --array=1-2 slurm/pack_shards.sh digits") and "dependency" not in pack
    assert "--dependency=afterok:<pack> --kill-on-invalid-dep=yes --job-name=merge" in merge
    assert pretrain.startswith("CLUSTER=configs/cluster/cpu.yaml sbatch") and "afterok:<merge>" in pretrain
    assert f"--array=0-2 slurm/finetune.sh {tmp_path}/demo_digits" in finetune and "lrs=0.01,0.03,0.1" in finetune


@pytest.mark.parametrize("start", ["configs/finetune/demo_digits.yaml", "recipe:finetune/demo_digits"])
def test_what_is_done_is_passed_over(tmp_path: Path, start: str) -> None:
    config = chain(tmp_path, SMALL.replace("configs/finetune/demo_digits.yaml", start))
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "index.json").write_text("{}")
    complete(tmp_path / "demo_digits")
    complete(tmp_path / "demo_digits_transfer" / "demo_digits_lr0.03")
    lines = dry_run(stages_of(config))
    assert lines[:3] == ["# pack is done", "# merge is done", "# pretrain is done"]
    assert "--array=0,2 " in lines[3] and "dependency" not in lines[3]


def test_a_verdict_says_whether_a_run_is_complete(tmp_path: Path) -> None:
    complete(tmp_path / "run")
    assert is_complete(tmp_path / "run") and not is_complete(tmp_path / "other")
    (tmp_path / "run" / "exit.json").write_text(json.dumps({"outcome": "requeue"}))
    assert not is_complete(tmp_path / "run")


def test_several_jobs_to_wait_for() -> None:
    stage = Stage("report", ("slurm/stage.sh", "report"), lambda: False)
    assert command(stage, ["7", "8"])[:4] == [
        "sbatch",
        "--parsable",
        "--dependency=afterok:7:8",
        "--kill-on-invalid-dep=yes",
    ]


def test_options_of_the_command_line_go_before_the_script_s() -> None:
    options = sbatch_options("slurm/pretrain_vit_h.sh", ["--nodes=2-4", "--exclusive"])
    assert (options["nodes"], options["ntasks-per-node"], options["exclusive"]) == ("2-4", "8", "")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: small", "nam: small", "chain.yaml:1: nam: unknown key"),
        ("tasks: 2", "tasks: 0", "pack.tasks"),
        ("out: {folder}/data, ", "", "pack.out"),
        ("--holdout", "--out", "is set by the chain"),
        ("slurm/pretrain_vit_h.sh", "slurm/nothing.sh", "slurm/nothing.sh does not exist"),
        ("configs/pretrain/demo_digits.yaml", "configs/pretrain/nothing.yaml", "cannot read the config"),
        ("--nodes=2", "--nodes=3", "3 ranks cannot share 8 lanes"),
        ("output_dir={folder}", "optim.lr=fast", "optim.lr"),
        ("configs/finetune/demo_digits.yaml", "configs/finetune/nothing.yaml", "cannot read the config"),
        ('"0.1"', "quick", "optim.lr"),
    ],
)
def test_refused_before_anything_is_submitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, says: str
) -> None:
    assert old in SMALL
    (tmp_path / "chain.yaml").write_text(SMALL.replace(old, new).format(folder=tmp_path))
    assert main(["chain", "--config", str(tmp_path / "chain.yaml"), "--dry-run"]) == 2
    assert says in capsys.readouterr().err


def test_no_data_is_refused_where_no_stage_makes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = SMALL.replace("output_dir={folder}", "output_dir={folder}, data.shards={folder}/none")
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("pack"))
    (tmp_path / "chain.yaml").write_text(text.format(folder=tmp_path))
    assert main(["chain", "--config", str(tmp_path / "chain.yaml"), "--dry-run"]) == 2
    assert "no shards in" in capsys.readouterr().err


def test_no_site_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SITE_FILE", str(tmp_path / "site.sh"))
    chain(tmp_path)
    command = ["chain", "--config", str(tmp_path / "chain.yaml")]
    assert main(command) == 2
    assert "no site file" in capsys.readouterr().err
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "--dependency=afterok:<pack>" in shown.out and "the jobs need the site file" in shown.err
    (tmp_path / "site.sh").touch()
    assert main([*command, "--dry-run"]) == 0
    assert capsys.readouterr() == (shown.out, "")


@pytest.mark.parametrize("text", ["name: nothing\n", "name: x\nfinetune: {{configs: [a.yaml], lrs: ['1']}}\n"])
def test_chains_that_make_no_sense(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"at least one stage|needs the section pretrain"):
        chain(tmp_path, text)

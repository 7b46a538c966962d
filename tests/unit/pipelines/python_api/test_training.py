"""Trainer: the settings that it runs, and the errors that come before a process is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.api import Trainer
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import ConfigError, SetupError
from pretrain.models.init import initial_state
from pretrain.models.interop import save_weights
from pretrain.models.metadata import WeightsMetadata

SHORT = """name: short
duration: 1 steps
global_batch_size: 2
precision: fp32
data: {shards: nowhere, num_samples: 4, num_classes: 3}
optim: {lr: 1e-3}
"""


def test_nested_and_dotted_settings_are_the_command_line() -> None:
    settings = {"duration": "5 steps", "optim.schedule.warmup": "1 steps", "data": {"mean": [0.1, 0.2, 0.3]}}
    trainer = Trainer("recipe:pretrain/demo_digits", settings)
    assert trainer.experiment.num_steps == 5 and trainer.experiment.data.mean == (0.1, 0.2, 0.3)
    assert trainer.folder == Path("runs/demo_digits")
    assert trainer.command(2)[1:5] == ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    assert trainer.command()[-3:] == ["duration=5 steps", "optim.schedule.warmup=1 steps", "data.mean=[0.1, 0.2, 0.3]"]
    with pytest.raises(ConfigError, match=r"did you mean optim\.lr"):
        Trainer("recipe:pretrain/demo_digits", {"optim": {"lrr": 1}})
    with pytest.raises(ConfigError, match="num_processes: 0"):
        trainer.fit(num_processes=0)


def test_fine_tuning_takes_the_model_of_the_weights(tmp_path: Path) -> None:
    model, half = ModelConfig(variant="mu/8", img_size=32), (0.5, 0.5, 0.5)
    save_weights(tmp_path / "w.safetensors", initial_state(model, 5, seed=0), WeightsMetadata.of(model, 5, half, half))
    (tmp_path / "short.yaml").write_text(SHORT)
    tuned = Trainer(tmp_path / "short.yaml", weights=tmp_path / "w.safetensors")
    assert tuned.experiment.model.variant == "mu/8" and tuned.experiment.data.num_classes == 3
    assert tuned.command()[-2:] == ["--from", str(tmp_path / "w.safetensors")]
    assert tuned.command()[1].endswith("finetune.py")


def test_a_training_that_fails_is_an_error_with_its_last_lines(tmp_path: Path) -> None:
    trainer = Trainer("recipe:pretrain/demo_digits", {"output_dir": tmp_path, "data.shards": str(tmp_path / "none")})
    with pytest.raises(SetupError, match=r"(?s)left with 2:.*none"):
        trainer.fit()

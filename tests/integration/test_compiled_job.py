"""A real job with torch's own compiler (inductor), which the laws over pools leave out for its start-up time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import Commands
from tests.integration.small_run import curve, pretrain


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [2, 3])
def test_a_compiled_job_has_the_losses_of_an_eager_one(
    digits: None, command: Commands, tmp_path: Path, stage: int
) -> None:
    losses, kernels = {}, tmp_path / "kernels"
    for compiled in ("false", "true"):
        folder = tmp_path / compiled
        settings = (f"cluster.compile={compiled}", "precision=fp32", f"cluster.zero_stage={stage}")
        compiler = {"TORCHDYNAMO_DISABLE": "0", "TORCHINDUCTOR_CACHE_DIR": str(kernels)}
        command.run(*pretrain("deepspeed", folder, *settings), env=compiler, check=True, timeout_s=600)
        losses[compiled] = [loss for (loss,) in curve(folder / "run", "loss").values()]
        assert any(kernels.rglob("*.so")) == (compiled == "true")
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-5) and len(losses["true"]) == 12

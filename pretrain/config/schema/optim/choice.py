"""The choice of the optimiser by its name."""

from __future__ import annotations

from typing import Annotated

from pretrain.config.schema.base import ONE_OF
from pretrain.config.schema.optim.elementwise import AdamWConfig, SGDConfig
from pretrain.config.schema.optim.kronecker import ShampooConfig, SoapConfig
from pretrain.config.schema.optim.matrices import MuonConfig
from pretrain.config.schema.optim.scaled import AdafactorConfig, LambConfig
from pretrain.config.schema.optim.schedule_free import ScheduleFreeConfig

Optim = Annotated[
    AdamWConfig
    | SGDConfig
    | AdafactorConfig
    | LambConfig
    | MuonConfig
    | ShampooConfig
    | SoapConfig
    | ScheduleFreeConfig,
    ONE_OF,
]

"""Settings of single parameters, matched by their names."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from pretrain.config.schema.base import NonNegativeFloat, PositiveFloat, Strict


class OverrideConfig(Strict):
    """Settings of the parameters whose name matches a pattern."""

    pattern: str = Field(
        description="Regular expression searched in the parameter's name, such as ^head\\.weight$ or ^blocks."
    )
    lr_scale: PositiveFloat | None = Field(
        default=None, description="Factor on the learning rate, in addition to layer_decay's."
    )
    weight_decay: NonNegativeFloat | None = Field(
        default=None, description="Replaces optim.weight_decay for all matching tensors, kernels or not."
    )
    freeze: bool = Field(default=False, description="Do not train: no gradient and no optimiser state.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _changes_something(self) -> OverrideConfig:
        tuned = self.lr_scale is not None or self.weight_decay is not None
        if self.freeze and tuned:
            raise ValueError(f"{self.pattern!r}: lr_scale and weight_decay would be ignored with freeze: true")
        if not self.freeze and not tuned:
            raise ValueError(f"{self.pattern!r} changes nothing; give lr_scale, weight_decay or freeze: true")
        return self

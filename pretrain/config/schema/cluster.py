"""Settings that do not decide the result."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pretrain.config import combinations
from pretrain.config.schema.base import PositiveFloat, PositiveInt, Strict
from pretrain.config.schema.storage import CacheConfig, RemoteConfig

ENGINE_OWNED_DEEPSPEED_REMEDY = {
    "train_batch_size": "use global_batch_size",
    "train_micro_batch_size_per_gpu": "use cluster.micro_batch_size",
    "gradient_accumulation_steps": "it follows from global_batch_size and cluster.micro_batch_size",
    "gradient_clipping": "use optim.clip_grad",
    "optimizer": "use optim",
    "scheduler": "use optim.schedule",
    "checkpoint": "use checkpoint",
    "fp16": "use precision",
    "bf16": "use precision",
    "torch_autocast": "use precision",
    "amp": "use precision",
    "activation_checkpointing": "use cluster.activation_checkpointing",
}
ENGINE_OWNED_DEEPSPEED_KEYS = frozenset(ENGINE_OWNED_DEEPSPEED_REMEDY)


class PhaseLimitsConfig(Strict):
    """Seconds a rank may spend in one phase before the job is ended and the hanging rank is named."""

    start: PositiveFloat = Field(default=1800, description="Building model, stream and engine.")
    load: PositiveFloat = Field(default=1800, description="Reading and verifying a checkpoint.")
    data: PositiveFloat = Field(default=900, description="Waiting for a micro-batch, the first one included.")
    step: PositiveFloat = Field(default=900, description="Forward, backward and update of one micro-batch.")
    save: PositiveFloat = Field(default=1800, description="Writing a checkpoint.")
    evaluate: PositiveFloat = Field(default=7200, description="All evaluation sets.")


class ClusterConfig(Strict):
    """Settings that do not decide the result: devices, micro-batch size, sharding and data loading."""

    backend: Literal["auto", "deepspeed", "accelerate"] = Field(
        default="auto", description="auto: deepspeed in pretrain/run.py, accelerate (DDP) in pipelines/finetune.py."
    )
    num_devices: Annotated[int, Field(gt=0, le=2**20)] | Literal["auto"] = Field(
        default="auto", description="Expected number of ranks; auto: as many as the launcher starts (1 in --check)."
    )
    device_memory_gib: Annotated[float, Field(gt=0, le=1e6)] | Literal["auto"] = Field(
        default="auto", description="Memory of one device for --check and micro_batch_size: auto; auto: detected."
    )
    micro_batch_size: PositiveInt | Literal["auto"] = Field(
        default="auto", description="Images per device in one forward and backward pass; accumulation follows from it."
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=1, description="ZeRO: 1 shards optimiser state, 2 gradients, 3 weights."
    )
    activation_checkpointing: Annotated[str, Field(pattern=r"^(none|full|selective|every_([2-9]|[1-9][0-9]+))$")] = (
        Field(
            default="none",
            description="Activation recomputation in the backward pass. full: keep only each block's input; every_2, "
            "every_3, …: the same for every second, third, … block; selective: recompute norms and activation "
            "functions, keep the outputs of matrix products and attention. Losses are bitwise identical; saves memory, "
            "costs time.",
        )
    )
    compile: bool = Field(
        default=False,
        description="Compile the blocks one by one with static shapes (torch.compile). ZeRO stages 0 to 2.",
    )
    fused_optimizer: bool | Literal["auto"] = Field(
        default="auto",
        description="Update all weights in one fused torch kernel (fp32 adamw and sgd); auto: on GPUs.",
    )
    num_workers: Annotated[int, Field(ge=0)] = Field(
        default=4, description="Data processes per rank; 0: load data in the rank's own process."
    )
    prefetch_factor: PositiveInt = Field(default=2, description="Micro-batches that each data process prefetches.")
    cache: CacheConfig = Field(default_factory=CacheConfig)
    remote: RemoteConfig = Field(default_factory=RemoteConfig)
    collective_timeout_s: PositiveInt = Field(default=10_800, description="Timeout of a collective, in seconds.")
    phase_limits_s: PhaseLimitsConfig = Field(
        default_factory=PhaseLimitsConfig, description="Time limits after which a rank counts as hung."
    )
    deepspeed: dict[str, Any] = Field(
        default_factory=dict, description="Passed to DeepSpeed unchanged; keys that the engine owns are refused."
    )

    def ignored(self) -> dict[str, str]:
        """See ``Strict``."""
        ignored = {}
        if self.backend == "accelerate" and self.zero_stage:
            ignored["zero_stage"] = "needs backend: deepspeed; accelerate trains with DDP (stage 0)"
        if self.num_workers == 0:
            ignored["prefetch_factor"] = "would be ignored with num_workers: 0"
        return ignored

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> ClusterConfig:
        if self.backend == "accelerate" and self.deepspeed:
            raise ValueError("deepspeed: would be ignored by backend: accelerate; remove it or choose deepspeed")
        for key, reason in self._refusals():
            raise ValueError(f"{key.removeprefix('cluster.')}: {reason}")
        owned = sorted(ENGINE_OWNED_DEEPSPEED_KEYS & set(self.deepspeed))
        if owned:
            raise ValueError(
                f"deepspeed.{owned[0]} is set by the engine ({ENGINE_OWNED_DEEPSPEED_REMEDY[owned[0]]}); remove it here"
            )
        longest = max(self.phase_limits_s.model_dump().values())
        if longest >= self.collective_timeout_s:
            raise ValueError(
                f"phase_limits_s: its longest limit, {longest:.0f}, must be below collective_timeout_s "
                f"({self.collective_timeout_s}), or a collective fails before the rank that hangs is named"
            )
        return self

    def _refusals(self) -> list[tuple[str, str]]:
        """Refused combinations that depend on this section only; ``backend: auto`` counts as deepspeed."""
        sharding = combinations.DDP if self.backend == "accelerate" else f"ZeRO-{self.zero_stage}"
        return combinations.refusals(
            sharding=sharding, compile=self.compile, activation_checkpointing=self.activation_checkpointing
        )

"""Settings that do not decide the result."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pretrain.config import combinations
from pretrain.config.schema.base import ONE_OF, PositiveFloat, PositiveInt, Strict

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
    "data_types": "use cluster.grad_accum_dtype",
}
ENGINE_OWNED_DEEPSPEED_KEYS = frozenset(ENGINE_OWNED_DEEPSPEED_REMEDY)


class PhaseLimitsConfig(Strict):
    """Seconds a rank may spend in one phase before the job is ended and the hanging rank is named."""

    start: PositiveFloat = Field(
        default=1800,
        description="Meeting the other ranks and opening the run folder; building model, stream and engine.",
    )
    load: PositiveFloat = Field(default=1800, description="Choosing a checkpoint; reading and verifying it.")
    data: PositiveFloat = Field(default=900, description="Waiting for a micro-batch, the first one included.")
    step: PositiveFloat = Field(default=900, description="Forward, backward and update of one micro-batch.")
    save: PositiveFloat = Field(default=1800, description="Writing a checkpoint; ending the job.")
    evaluate: PositiveFloat = Field(default=7200, description="All evaluation sets.")


class CacheConfig(Strict):
    """The node's cache of remote data sets. Sets in a folder are read in place and never cached."""

    dir: str | None = Field(
        default=None,
        description="A folder on a local disk, shared by all ranks and data processes of the node and kept between "
        "runs; null: vit-pretrain-UID in the system's temporary folder.",
    )
    max_bytes: PositiveInt = Field(
        default=32 * 2**30,
        description="Maximum size of the cache. It must fit two shuffle windows of each of the node's lanes.",
    )
    chunk_bytes: Annotated[int, Field(ge=4096)] | Literal["auto"] = Field(
        default="auto",
        description="Size of the pieces in which shards are fetched and cached; auto: 4 MiB, or less for small sets, "
        "so that less than a sixteenth of the set is read by two lanes.",
    )
    num_threads: PositiveInt = Field(default=4, description="Concurrent read-ahead requests per data process.")


class RemoteConfig(Strict):
    """Requests to web servers, object stores and commands."""

    attempts: PositiveInt = Field(
        default=6, description="Attempts before a request fails, with increasing, jittered pauses between them."
    )
    timeout_s: PositiveFloat = Field(
        default=60.0, description="Seconds allowed to connect and for each 4 MiB of a response, before a retry."
    )
    s3_endpoint: str | None = Field(
        default=None,
        description="URL of an S3-compatible service; null: AWS, or the endpoint in AWS's environment variables.",
    )
    s3_anonymous: bool = Field(default=False, description="Read public buckets without credentials.")


class ClusterConfig(Strict):
    """Settings of every backend."""

    chosen_by = "backend"
    first_keys = ("backend", "num_devices", "device", "device_memory_gib", "micro_batch_size", "zero_stage")
    last_keys = ("deepspeed",)

    backend: str
    num_devices: Annotated[int, Field(gt=0, le=2**20)] | Literal["auto"] = Field(
        default="auto", description="Expected number of ranks; auto: as many as the launcher starts (1 in --check)."
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto",
        description="cuda: a rank without a usable GPU is an error; cpu: GPUs are not used; auto: cuda if "
        "device_memory_gib is given, otherwise a GPU if there is one.",
    )
    device_memory_gib: Annotated[float, Field(gt=0, le=1e6)] | Literal["auto"] = Field(
        default="auto", description="Memory of one device for --check and micro_batch_size: auto; auto: detected."
    )
    micro_batch_size: PositiveInt | Literal["auto"] = Field(
        default="auto", description="Images per device in one forward and backward pass; accumulation follows from it."
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
        description="Compile the blocks one by one with static shapes (torch.compile).",
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

    def backend_in(self, entry_backend: str) -> str:
        """The backend to train with.

        Args:
            entry_backend: the backend of the calling script, which ``auto`` means there.
        """
        return self.backend

    @property
    @abstractmethod
    def sharding(self) -> str:
        """Name of the sharding that these settings choose, as in ``combinations``."""

    @property
    def stage(self) -> int:
        """How far the training state is sharded: an index of the backend's shardings."""
        return 0

    @property
    def passed_on(self) -> Mapping[str, Any]:
        """Settings that the backend's library receives unchanged."""
        return {}

    @property
    def own_settings(self) -> Mapping[str, Any]:
        """The user's own settings among ``passed_on``."""
        return {}

    @property
    def wanted_device(self) -> Literal["auto", "cuda", "cpu"]:
        """The device that the settings expect: a cluster that states the memory of its GPUs has GPUs."""
        return "cuda" if self.device == "auto" and self.device_memory_gib != "auto" else self.device

    def ignored(self) -> dict[str, str]:
        """See ``Strict``."""
        return {} if self.num_workers else {"prefetch_factor": "would be ignored with num_workers: 0"}

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> ClusterConfig:
        refused = combinations.refusals(
            sharding=self.sharding, compile=self.compile, activation_checkpointing=self.activation_checkpointing
        )
        for key, reason in refused:
            raise ValueError(f"{key.removeprefix('cluster.')}: {reason}")
        longest = max(self.phase_limits_s.model_dump().values())
        if longest >= self.collective_timeout_s:
            raise ValueError(
                f"phase_limits_s: its longest limit, {longest:.0f}, must be below collective_timeout_s "
                f"({self.collective_timeout_s}), or a collective fails before the rank that hangs is named"
            )
        return self


GradAccumDtype = Annotated[
    Literal["auto", "fp32"],
    Field(
        description="Type in which the gradients of a step's micro-batches are summed and reduced. auto: that of the "
        "weights, so bf16 with precision: bf16; fp32: 2 more bytes per gradient there, and twice the bytes sent."
    ),
]


class ZeroConfig(ClusterConfig):
    """Settings of a cluster that DeepSpeed can train on, which shards by ZeRO stages."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=1, description="ZeRO stage: 1 shards the optimiser state, 2 gradients, 3 weights."
    )
    grad_accum_dtype: GradAccumDtype = "auto"
    deepspeed: dict[str, Any] = Field(
        default_factory=dict, description="Passed to DeepSpeed unchanged; keys that the engine owns are refused."
    )

    @property
    def sharding(self) -> str:
        """See ``ClusterConfig``; ``auto`` counts as deepspeed."""
        return f"ZeRO-{self.zero_stage}"

    @property
    def stage(self) -> int:
        """See ``ClusterConfig``."""
        return self.zero_stage

    @property
    def passed_on(self) -> Mapping[str, Any]:
        """See ``ClusterConfig``."""
        if self.grad_accum_dtype == "auto":
            return self.deepspeed
        dtype = self.grad_accum_dtype
        return {"communication_data_type": dtype, **self.deepspeed, "data_types": {"grad_accum_dtype": dtype}}

    @property
    def own_settings(self) -> Mapping[str, Any]:
        """See ``ClusterConfig``."""
        return self.deepspeed

    @model_validator(mode="after")
    def _nothing_of_the_engine(self) -> ZeroConfig:
        owned = sorted(ENGINE_OWNED_DEEPSPEED_KEYS & set(self.deepspeed))
        if owned:
            raise ValueError(
                f"deepspeed.{owned[0]} is set by the engine ({ENGINE_OWNED_DEEPSPEED_REMEDY[owned[0]]}); remove it here"
            )
        return self


class AutoClusterConfig(ZeroConfig):
    """The backend that belongs to the script."""

    backend: Literal["auto"] = Field(
        default="auto", description="deepspeed in pretrain/run.py, accelerate in pipelines/finetune.py."
    )

    def backend_in(self, entry_backend: str) -> str:
        """See ``ClusterConfig``."""
        return entry_backend


class DeepSpeedConfig(ZeroConfig):
    """DeepSpeed, in either script."""

    backend: Literal["deepspeed"] = Field(default="deepspeed", description="DeepSpeed with ZeRO.")


class AccelerateConfig(ClusterConfig):
    """Accelerate, in either script."""

    implied: ClassVar[Mapping[str, Any]] = {"zero_stage": 0, "deepspeed": {}}

    backend: Literal["accelerate"] = Field(default="accelerate", description="Accelerate with DDP.")
    grad_accum_dtype: GradAccumDtype = "auto"

    @property
    def sharding(self) -> str:
        """See ``ClusterConfig``."""
        return combinations.DDP

    @property
    def passed_on(self) -> Mapping[str, Any]:
        """See ``ClusterConfig``."""
        return {"data_types": {"grad_accum_dtype": self.grad_accum_dtype}}


class Fsdp2Config(ClusterConfig):
    """torch's fully_shard, in either script."""

    backend: Literal["fsdp2"] = Field(
        default="fsdp2", description="torch's fully_shard: weights, gradients and optimiser state sharded by rows."
    )
    reshard_after_forward: bool = Field(
        default=True,
        description="Release each block's weights after its forward pass and gather them again for the backward pass. "
        "false: keep them, which sends a third less and needs the memory of all weights.",
    )
    grad_accum_dtype: GradAccumDtype = "auto"

    @property
    def sharding(self) -> str:
        """See ``ClusterConfig``."""
        return combinations.FSDP2

    @property
    def passed_on(self) -> Mapping[str, Any]:
        """See ``ClusterConfig``."""
        return {
            "reshard_after_forward": self.reshard_after_forward,
            "data_types": {"grad_accum_dtype": self.grad_accum_dtype},
        }


Cluster = Annotated[AutoClusterConfig | DeepSpeedConfig | AccelerateConfig | Fsdp2Config, ONE_OF]

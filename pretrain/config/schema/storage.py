"""How a set that is not in a folder is read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pretrain.config.schema.base import PositiveFloat, PositiveInt, Strict


class CacheConfig(Strict):
    """The node's cache of sets that are read from elsewhere. Sets in a folder are read in place and never cached."""

    dir: str | None = Field(
        default=None,
        description="A folder on a local disk, shared by all ranks and data processes of the node and kept between "
        "runs; null: vit-pretrain-UID in the system's temporary folder.",
    )
    max_bytes: PositiveInt = Field(
        default=32 * 2**30,
        description="The most bytes that the cache ever has. Two shuffle windows of each of the node's lanes must fit.",
    )
    chunk_bytes: Annotated[int, Field(ge=4096)] | Literal["auto"] = Field(
        default="auto",
        description="Size of the pieces in which shards are fetched and kept; auto: 4 MiB, less for small sets, so "
        "that what two lanes both read stays below a sixteenth of the set.",
    )
    num_threads: PositiveInt = Field(default=4, description="Requests that one data process makes ahead at a time.")


class RemoteConfig(Strict):
    """Requests to web servers, S3-compatible stores and commands."""

    attempts: PositiveInt = Field(
        default=6, description="Tries before a request counts as failed, with growing, jittered pauses between them."
    )
    timeout_s: PositiveFloat = Field(
        default=60.0, description="Seconds for a connection and for each 4 MiB of an answer; then it is tried again."
    )
    s3_endpoint: str | None = Field(
        default=None, description="URL of an S3-compatible service; null: AWS, or what AWS's own variables say."
    )
    s3_anonymous: bool = Field(default=False, description="Read public buckets without credentials.")

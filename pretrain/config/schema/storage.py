"""Reading of data sets that are not in a local folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pretrain.config.schema.base import PositiveFloat, PositiveInt, Strict


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
    """Requests to web servers, S3-compatible stores and commands."""

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

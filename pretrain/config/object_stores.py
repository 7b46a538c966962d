"""Addresses in object stores: ``s3://BUCKET/PREFIX``, ``gs://BUCKET/PREFIX``, ``az://CONTAINER/PREFIX``."""

from __future__ import annotations

from typing import NamedTuple


class StoreKind(NamedTuple):
    """A kind of object store.

    Attributes:
        title: its name in messages.
        extra: the extra of this package that installs its client.
        credentials: the environment variables with its credentials.
        public: how to read a public bucket without credentials.
    """

    title: str
    extra: str
    credentials: str
    public: str


STORES = {
    "s3": StoreKind(
        "S3",
        "s3",
        "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "cluster.remote.s3_anonymous: true",
    ),
    "gs": StoreKind(
        "Google Cloud Storage",
        "objects",
        "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SKIP_SIGNATURE=true",
    ),
    "az": StoreKind(
        "Azure Blob Storage",
        "objects",
        "AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
        "AZURE_SKIP_SIGNATURE=true",
    ),
}


def bucket_and_key(scheme: str, rest: str) -> str:
    """``BUCKET/PREFIX`` of an address ``scheme://rest``.

    Raises:
        ValueError: it names no bucket, or contains credentials.
    """
    bucket, _, key = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise ValueError(
            f"credentials do not go into {_article(scheme)} {scheme}:// address; set {STORES[scheme].credentials}"
        )
    if not bucket:
        raise ValueError(f"{scheme}://{rest} names no bucket")
    return f"{bucket}/{key}" if key else bucket


def folder_address(text: str) -> str:
    """The address of a folder in an object store, without a slash at its end.

    Raises:
        ValueError: it is not such an address, or contains credentials.
    """
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in STORES:
        raise ValueError(
            f"{text!r} is not in an object store; write {', '.join(f'{one}://BUCKET/PREFIX' for one in STORES)}"
        )
    return f"{scheme}://{bucket_and_key(scheme, rest.rstrip('/'))}"


def _article(scheme: str) -> str:
    return "a" if scheme == "gs" else "an"

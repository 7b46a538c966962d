"""A real S3-compatible server on loopback, in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REGION, CREDENTIALS = "us-east-1", {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}


@contextmanager
def s3_server() -> Iterator[str]:
    """Gives its endpoint."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def put_folder(endpoint: str, folder: Path, bucket: str, prefix: str) -> None:
    """Copies the files of a folder into a bucket, which is made."""
    client = client_of(endpoint)
    client.create_bucket(Bucket=bucket)
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        client.put_object(Bucket=bucket, Key=f"{prefix}/{file.name}", Body=file.read_bytes())


def client_of(endpoint: str) -> Any:
    import boto3

    keys = {name.lower(): value for name, value in CREDENTIALS.items()}
    return boto3.client("s3", endpoint_url=endpoint, region_name=REGION, **keys)

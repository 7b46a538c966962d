"""Reading and writing files in S3, Google Cloud Storage and Azure Blob Storage by one library."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import hmac
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.config.schema.cluster import RemoteConfig
from pretrain.data.storage import objects
from pretrain.data.storage.location import Location
from pretrain.data.storage.objects import ObjectFolder, ObjectTransport
from pretrain.data.storage.transport import Missing, Refused, TransportError
from pretrain.data.storage.transports import open_transport
from pretrain.errors import DataError
from tests.faulty_store import Store, store_before
from tests.s3_server import CREDENTIALS, REGION, client_of, s3_server

NAME = "a b/ü#?%20.bin"  # characters that an address would change
AZURITE_ACCOUNT = "devstoreaccount1"  # the published account of the emulator
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as endpoint:
        client_of(endpoint).create_bucket(Bucket="bucket")
        yield endpoint


@pytest.fixture
def google(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Google's XML interface is that of S3, so the S3 server answers its client too."""
    with store_before(endpoint) as store:
        account = {"gcs_base_url": store.url, "disable_oauth": True}
        account |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
        yield store


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Microsoft's emulator, with a container."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not installed (npm install -g azurite)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([program, "--silent", "--inMemoryPersistence", "--blobPort", str(port)], cwd=tmp_path)
    try:
        while subprocess.run(_container(port), capture_output=True).returncode:
            assert process.poll() is None
            time.sleep(0.1)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", AZURITE_ACCOUNT)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", AZURITE_KEY)
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"http://127.0.0.1:{port}/{AZURITE_ACCOUNT}")
        yield
    finally:
        process.kill()
        process.wait()


def _container(port: int) -> list[str]:
    """The command that makes the container, signed as Microsoft documents it (Shared Key)."""
    headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed = "PUT" + "\n" * 12 + "".join(f"{name}:{value}\n" for name, value in headers.items())
    signed += f"/{AZURITE_ACCOUNT}/{AZURITE_ACCOUNT}/bucket\nrestype:container"
    key = hmac.new(base64.b64decode(AZURITE_KEY), signed.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {AZURITE_ACCOUNT}:{base64.b64encode(key).decode()}"
    options = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
    url = f"http://127.0.0.1:{port}/{AZURITE_ACCOUNT}/bucket?restype=container"
    return ["curl", "-sf", "-X", "PUT", "-H", "Content-Length: 0", *options, url]


def round_trip(address: str, config: RemoteConfig, tmp_path: Path) -> None:
    """Everything that is written reads back, by the folder and by the transport of data sets."""
    folder, data = ObjectFolder(f"{address}/runs", config), os.urandom(11 << 20)
    (tmp_path / "file").write_bytes(data)
    folder.upload(NAME, tmp_path / "file")
    folder.write("a b/small", b"hello")
    folder.write("empty", b"")
    assert folder.files() == {NAME: len(data), "a b/small": 5, "empty": 0}
    assert folder.files("a b") == {NAME: len(data), "a b/small": 5}
    assert b"".join(folder.blocks(NAME, len(data))) == data and folder.read("a b/small") == b"hello"
    location = Location.parse(f"{address}/runs/index.json")
    reader = ObjectTransport(location, config)
    assert reader.get(NAME, 5, 10) == data[5:15] and b"".join(reader.pieces(NAME)) == data
    assert list(reader.sizes([NAME, "other"])) == [(NAME, len(data)), ("other", None)]
    with pytest.raises(Missing, match=f"{address}/runs/other: not there"):
        reader.get("other")
    with pytest.raises(DataError, match="before byte 11,534,341: truncated"):
        reader.get(NAME, len(data) - 5, 10)
    with pytest.raises(Refused, match="longer than 4 bytes"):
        reader.get("a b/small", most_bytes=4)
    with pytest.raises(Missing, match="there is no such bucket"):
        ObjectFolder(address.replace("bucket", "nowhere"), config).write("x", b"")
    folder.remove([NAME, "a b/small", "empty", "never written"])
    assert folder.files() == {}


def test_s3(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**CREDENTIALS, "AWS_DEFAULT_REGION": REGION}.items():
        monkeypatch.setenv(name, value)
    round_trip("s3://bucket", RemoteConfig(s3_endpoint=endpoint, attempts=2), tmp_path)


def test_google(google: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PART_BYTES", 5 << 20)
    round_trip("gs://bucket", RemoteConfig(attempts=2), tmp_path)
    assert any("partNumber=3" in query for _, _, query in google.requests), "it came in parts"


@pytest.mark.slow
def test_azure(azure: None, tmp_path: Path) -> None:
    round_trip("az://bucket", RemoteConfig(attempts=2), tmp_path)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("error", TransportError, "HTTP 503 SlowDown"),
        ("denied", Refused, r"does not allow it \(HTTP 403 AccessDenied\).*GOOGLE_APPLICATION_CREDENTIALS"),
        ("reset", TransportError, "error sending request"),
        ("stall", TransportError, "timed out|error sending request"),
    ],
)
def test_each_attempt_to_read_is_judged(google: Store, kind: str, error: type[Exception], message: str) -> None:
    """One attempt, one request: the transport's user repeats it."""
    google.fault = lambda method, path, query, number: kind
    config = RemoteConfig(timeout_s=0.5 if kind == "stall" else 60)
    reader = open_transport(Location.parse("gs://bucket/train"), config, allow_pipe=False)
    with pytest.raises(error, match=message):
        reader.get("a.tar", 0, 10)
    assert len(google.requests) == 1

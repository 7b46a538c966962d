"""``--check`` reports whether copies can be written, and a start refuses what would fail hours later."""

from __future__ import annotations

import pytest

from pretrain.check.files import report_mirror
from pretrain.config.loader import load_experiment
from pretrain.config.schema.experiment import Experiment
from pretrain.errors import ConfigError, SetupError
from tests.faulty_store import store_before
from tests.integration.small_run import PRETRAIN
from tests.s3_server import CREDENTIALS, REGION, client_of, s3_server


def experiment(mirror: str, endpoint: str = "http://127.0.0.1:9") -> Experiment:
    remote = f"cluster.remote={{s3_endpoint: {endpoint}, attempts: 2, timeout_s: 20}}"
    return load_experiment(PRETRAIN, overrides=["name=run", f"checkpoint.mirror={mirror}", remote]).experiment


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**CREDENTIALS, "AWS_DEFAULT_REGION": REGION}.items():
        monkeypatch.setenv(name, value)


def test_a_bucket_is_written_read_and_left_empty() -> None:
    with s3_server() as endpoint:
        client_of(endpoint).create_bucket(Bucket="copies")
        (line,) = report_mirror(experiment("s3://copies/deep", endpoint), True)
        assert line == "mirror      s3://copies/deep/run/checkpoints can be written"
        assert "Contents" not in client_of(endpoint).list_objects_v2(Bucket="copies")


def test_a_bucket_that_does_not_exist() -> None:
    with (
        s3_server() as endpoint,
        pytest.raises(ConfigError, match=r"checkpoint\.mirror: s3://nowhere/run.*no such buck"),
    ):
        report_mirror(experiment("s3://nowhere", endpoint), True)


def test_credentials_that_are_refused() -> None:
    with s3_server() as endpoint, store_before(endpoint) as store:
        client_of(endpoint).create_bucket(Bucket="copies")
        store.fault = lambda method, path, query, number: "denied" if method == "PUT" else None
        with pytest.raises(ConfigError, match=r"does not allow it \(HTTP 403 AccessDenied\).*AWS_PROFILE"):
            report_mirror(experiment("s3://copies", store.url), True)


@pytest.mark.parametrize("is_start", [False, True])
def test_a_machine_without_the_network_says_so(is_start: bool) -> None:
    """A start does not refuse it: it may have a checkpoint available."""
    (line,) = report_mirror(experiment("s3://copies"), is_start)
    assert line.startswith("mirror      cannot be written from here, which a run needs: s3://copies/run/checkpoints")


def test_missing_credentials_name_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(ConfigError, match="no credentials for S3; set AWS_PROFILE, or AWS_ACCESS_KEY_ID"):
        report_mirror(experiment("s3://copies"), True)


@pytest.mark.parametrize(("mirror", "package", "extra"), [("s3://b", "boto3", "s3"), ("gs://b", "obstore", "objects")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, mirror: str, package: str, extra: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(SetupError, match=rf"needs the package {package}; .*vit-pretrain\[{extra}\]"):
        report_mirror(experiment(mirror), False)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("checkpoint.mirror=runs/copies", "'runs/copies' is not in an object store; write s3://BUCKET/PREFIX, gs://"),
        ("checkpoint.mirror=s3://", "names no bucket"),
        ("checkpoint.mirror=gs://key:secret@bucket", r"credentials do not go into a gs:// address; set GOOGLE_APP"),
        ("output_dir=s3://bucket/runs", r"is not a folder; .*set checkpoint\.mirror: s3://BUCKET/PREFIX"),
    ],
)
def test_places_that_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(PRETRAIN, overrides=[setting])

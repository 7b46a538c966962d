"""Secrets are never printed, and what users need to read stays."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.redaction import redacted, redacted_in

SECRET = "hUnter2xSECRETx"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ann:{}@host/set", "https://***@host/set"),
        ("https://{}@host/set", "https://***@host/set"),
        ("https://ann:p@{}@host:8080/set", "https://***@host:8080/set"),
        ("https://ann:p/{}@host/set", "https://***@host/set"),
        ("s3://AKIA:{}@bucket/prefix", "s3://***@bucket/prefix"),
        ("https://h/a?X-Amz-Date=2026&X-Amz-Signature={}", "https://h/a?X-Amz-Date=2026&X-Amz-Signature=***"),
        ("https://h/a?X-Amz-Security-Token={}&versionId=3", "https://h/a?X-Amz-Security-Token=***&versionId=3"),
        ("https://h/a?sv=2022&sig={}", "https://h/a?sv=***&sig=***"),
        ("https://h/a?token={}#part", "https://h/a?token=***#part"),
        ("https://h/a?x&amp;token={}", "https://h/a?x&amp;token=***"),
        ("<a href='https://h/a?key={}'>x</a>", "<a href='https://h/a?key=***'>x</a>"),
        ("data.shards=https://u:{}@h/x optim.lr=1", "data.shards=https://***@h/x optim.lr=1"),
        ("two https://u:{0}@h/x and http://v:{0}@i/y", "two https://***@h/x and http://***@i/y"),
        ("pipe:curl -u ann:{} https://h/{{name}}", "pipe:curl -u *** https://h/{{name}}"),
        ("pipe:curl --user=ann:{} https://h/{{name}}", "pipe:curl --user=*** https://h/{{name}}"),
        ("curl -H 'Authorization: Bearer {}' x", "curl -H 'Authorization: Bearer ***' x"),
        ("curl -H 'X-Auth-Token: {}' x", "curl -H 'X-Auth-Token: ***' x"),
        ("AWS_SECRET_ACCESS_KEY={} aws s3 cp x -", "AWS_SECRET_ACCESS_KEY=*** aws s3 cp x -"),
        ("HF_TOKEN='{} x' cat", "HF_TOKEN='***' cat"),
        ("store --password {} cat", "store --password *** cat"),
        ("store --auth-token={} cat", "store --auth-token=*** cat"),
        ("url: /x/index.json?a&sig={} (Caused by", "url: /x/index.json?a&sig=*** (Caused by"),
        ("error: ftp:/ann:{}@h/x is not", "error: ftp:/***@h/x is not"),
        ("X-Amz-Signature={} of a URL that was cut", "X-Amz-Signature=*** of a URL that was cut"),
        ("password: {}", "password: ***"),
        ('"api_key": "{}"', '"api_key": "***"'),
    ],
)
def test_a_secret_is_left_out(text: str, shown: str) -> None:
    found = redacted(text.format(SECRET))
    assert SECRET not in found
    assert found == shown.format()
    assert redacted(found) == found


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/a@b/set?versionId=3&X-Amz-Expires=60",
        "https://host/path/shard-000000.tar: 404 Not Found",
        "/data/my set #2",
        "user@host:/data/x",
        "host:/data/a@b",
        "/data/what?/a=b",
        "pipe:ssh user@store cat /data/{name}",
        'pipe:curl -H "Authorization: Bearer $TOKEN" https://h/{name}?sig=$SIG',
        "HF_TOKEN=$HF_TOKEN cat {name}",
        "class_token: true",
        "model.pool=token",
        "mask_token: false",
        "optim.lr=3e-4",
        "a ? b = c",
        "step 3: loss 1.0",
        "python -u pretrain/run.py --config x.yaml",
    ],
)
def test_the_rest_is_as_it_was(text: str) -> None:
    assert redacted(text) == text


@given(
    user=st.text("abcXYZ019-._~%", max_size=6),
    password=st.text("abcXYZ019-._~%!$&()*+,;=:@/", min_size=1, max_size=6),
    name=st.sampled_from(["X-Amz-Signature", "sig", "token", "Signature", "access_token", "se", "q"]),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_form_of_a_url_shows_its_secrets(user: str, password: str, name: str) -> None:
    url = f"https://{user}:{password}{SECRET}@host/a/b?download=1&{name}={SECRET}"
    assert SECRET not in redacted(f"error: {url}: 403") and "host/a/b?download=1" in redacted(url)


def test_json_stays_json() -> None:
    """Output for a program is redacted too, and can still be read."""
    words = [f"https://h/a?sig={SECRET}", f'-H "Authorization: Bearer {SECRET}"', f'password="{SECRET}"', "'"]
    found = redacted(json.dumps({"api_key": SECRET, "command": words, "text": " ".join(words)}))
    assert json.loads(found)["api_key"] == "***" and json.loads(found)["command"][0] == "https://h/a?sig=***"
    assert f"sig={SECRET}" not in found and f"Bearer {SECRET}" not in found


def test_a_tree_keeps_its_form() -> None:
    tree = {"a": [f"https://u:{SECRET}@h", 3, None], "b": {"c": (True, 1.5)}}
    assert redacted_in(tree) == {"a": ["https://***@h", 3, None], "b": {"c": [True, 1.5]}}

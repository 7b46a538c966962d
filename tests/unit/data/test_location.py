from __future__ import annotations

import pytest

from pretrain.data.location import Location
from pretrain.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "kind", "base", "url"),
    [
        ("data/train", "folder", "data/train", "data/train/a b.tar"),
        ("data/train/index.json", "folder", "data/train", "data/train/a b.tar"),
        ("/", "folder", "/", "/a b.tar"),
        ("file:///data/my%20set/", "folder", "/data/my set", "/data/my set/a b.tar"),
        ("https://host:8/p/train/", "http", "https://host:8/p/train", "https://host:8/p/train/a%20b.tar"),
        ("http://h/p/index.json", "http", "http://h/p", "http://h/p/a%20b.tar"),
        ("http://h", "http", "http://h", "http://h/a%20b.tar"),
        ("https://h/p/index.json?sig=x", "http", "https://h/p?sig=x", "https://h/p/a%20b.tar?sig=x"),
        ("s3://bucket/p/train", "s3", "s3://bucket/p/train", "s3://bucket/p/train/a b.tar"),
        ("s3://bucket/p/index.json", "s3", "s3://bucket/p", "s3://bucket/p/a b.tar"),
        ("pipe: cat /data/{name}", "pipe", "cat /data/{name}", "pipe:cat /data/a b.tar"),
    ],
)
def test_places(text, kind, base, url):
    location = Location.parse(text)
    assert (location.kind, location.base, location.url("a b.tar")) == (kind, base, url)
    assert location.is_remote == (kind != "folder")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gs://bucket/x", "gs:// is not known"),
        ("s3:///x", "names no bucket"),
        ("https:///x", "names no host"),
        ("pipe:cat x", "write {name} in the command"),
        ("pipe:cat {name} {start}", "belong together"),
    ],
)
def test_places_that_cannot_be(text, message):
    with pytest.raises(ConfigError, match=message):
        Location.parse(text)

from __future__ import annotations

import pytest

from pretrain.data.storage.location import Location
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
        ("https://h/p/index.json?sig=x", "http", "https://h/p?sig=x", "https://h/p/a%20b.tar?sig=***"),
        ("s3://bucket/p/train", "s3", "s3://bucket/p/train", "s3://bucket/p/train/a b.tar"),
        ("s3://bucket/p/index.json", "s3", "s3://bucket/p", "s3://bucket/p/a b.tar"),
        ("file:///d/set#1", "folder", "/d/set#1", "/d/set#1/a b.tar"),
        ("file:///d/a?b/index.json", "folder", "/d/a?b", "/d/a?b/a b.tar"),
        ("FILE://localhost/d/50%", "folder", "/d/50%", "/d/50%/a b.tar"),
        ("file:/d/x", "folder", "/d/x", "/d/x/a b.tar"),
        ("/d/set #1?%20", "folder", "/d/set #1?%20", "/d/set #1?%20/a b.tar"),
        ("https://u:secret@h/p", "http", "https://u:secret@h/p", "https://***@h/p/a%20b.tar"),
        ("HTTPS://h/p", "http", "https://h/p", "https://h/p/a%20b.tar"),
        ("s3://bucket/set#1", "s3", "s3://bucket/set#1", "s3://bucket/set#1/a b.tar"),
        ("s3://bucket/what?v=2/", "s3", "s3://bucket/what?v=2", "s3://bucket/what?v=2/a b.tar"),
        ("s3://bucket/a%20b//c", "s3", "s3://bucket/a%20b//c", "s3://bucket/a%20b//c/a b.tar"),
        ("s3://bucket", "s3", "s3://bucket", "s3://bucket/a b.tar"),
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
        ("https://h/set#1", "write %23 where it belongs to the name"),
        ("https://h:port/x", "its host or port cannot be read"),
        ("https://h/a\nb", "control characters"),
        ("file://host/x", r"names the host host; write file:///host/x"),
        ("s3://key:secret@bucket/x", "credentials do not go into an s3:// address"),
        ("pipe:cat x", "write {name} in the command"),
        ("pipe:cat {name} {start}", "belong together"),
    ],
)
def test_places_that_cannot_be(text, message):
    with pytest.raises(ConfigError, match=message):
        Location.parse(text)


def test_an_escape_in_a_file_url_is_decoded_unless_the_folder_is_named_like_that(tmp_path):
    """RFC 8089 wants it decoded; a folder whose name has the escape in it is found all the same, but never guessed."""
    (tmp_path / "a%20b").mkdir()
    assert Location.parse(f"file://{tmp_path}/a%20b").base == f"{tmp_path}/a%20b"
    assert Location.parse(f"file://{tmp_path}/a%2520b").base == f"{tmp_path}/a%20b"
    (tmp_path / "a b").mkdir()
    with pytest.raises(ConfigError, match="and both exist; name the folder without file://"):
        Location.parse(f"file://{tmp_path}/a%20b")


@pytest.mark.parametrize(
    ("text", "base", "name"),
    [
        ("http://h/my%20set/train%2000%2Bx.tar", "http://h/my%20set", "train 00+x.tar"),
        ("http://h/my set/train 00+x.tar?X-Sig=a%2Fb%3D", "http://h/my set?X-Sig=a%2Fb%3D", "train 00+x.tar"),
        ("http://h/%ff.tar", "http://h", "\udcff.tar"),
        ("s3://bucket/a%20b/c?d.tar", "s3://bucket/a%20b", "c?d.tar"),
    ],
)
def test_the_place_of_one_file(text, base, name):
    assert Location.of_file(text) == (Location.parse(base), name)


@pytest.mark.parametrize("text", ["http://h", "http://h/", "s3://bucket/"])
def test_a_place_is_not_a_file(text):
    with pytest.raises(ConfigError, match="names no file"):
        Location.of_file(text)

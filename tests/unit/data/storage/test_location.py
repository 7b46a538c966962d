from __future__ import annotations

import base64

import pytest
import requests.utils

from pretrain.data.storage.location import (
    Location,
    Request,
    decoded_name,
    encoded_name,
    is_web_address,
    request_for,
    same_origin,
)
from pretrain.errors import ConfigError, DataError


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
        ("ftp://host/x", "ftp:// is not known"),
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


@pytest.mark.parametrize(
    "address",
    [
        "http://h/a b.jpg",
        "http://h/고양이/ü.jpg",
        "http://h/a%20b.jpg",
        "http://h/50%25.jpg",
        "http://h/a%2Fb?x=a%2Fb%3D&e=1",
        "http://h/a?q=a b&r=é",
        "http://h/(1)~!$&'*+,;=:@.jpg",
        "https://h:8443/x",
    ],
)
def test_an_address_is_encoded_once(address):
    assert request_for(address) == Request(requests.utils.requote_uri(address), "")


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://h", "http://h/"),
        ("http://b\u00fccher.example/x", "http://xn--bcher-kva.example/x"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("http://h/\udcff.jpg", "http://h/%FF.jpg"),  # a byte that is not UTF-8
        (" http://h/x ", "http://h/x"),
    ],
)
def test_hosts_and_bytes(address, url):
    assert request_for(address).url == url


def test_credentials_become_a_header_and_leave_the_address():
    url, authorization = request_for("https://us%40er:p%3Aw@host/x")
    assert url == "https://host/x"
    assert base64.b64decode(authorization.removeprefix("Basic ")) == b"us@er:p:w"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://h/a\x1b[31m", "control characters"),
        ("http://h/a\r\nX: y", "control characters"),
        ("http://h/a#b", "write %23"),
        ("http://h:x/", "cannot be read"),
        ("http://h:99999/", "cannot be read"),
        ("http:///x", "names no host"),
        ("ftp://h/x", "names no host; write http://"),
        ("http://[::1/x", "cannot be read"),
    ],
)
def test_what_is_not_an_address_is_refused(address, message):
    with pytest.raises(DataError, match=message):
        request_for(address)


@pytest.mark.parametrize("name", ["a b.tar", "50%.tar", "a%20b", "x+y?#&.tar", "고양이", "\udcff.tar"])
def test_a_name_in_a_path_comes_back(name):
    assert decoded_name(encoded_name(name)) == name
    assert encoded_name(name).isascii() and not set(encoded_name(name)) & set(" ?#&+")


def test_which_texts_are_addresses():
    assert [is_web_address(text) for text in ("HTTP://h", "https://h", "http:/h", "a/http://h")] == [
        True,
        True,
        False,
        False,
    ]
    assert same_origin("http://h:1/a", "http://h:1/b") and not same_origin("http://h/a", "https://h/a")

"""What is sent to a server, against requests' own quoting."""

from __future__ import annotations

import base64

import pytest
import requests.utils

from pretrain.data.storage.web_address import (
    Request,
    decoded_name,
    encoded_name,
    is_web_address,
    request_for,
    same_origin,
)
from pretrain.errors import DataError


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

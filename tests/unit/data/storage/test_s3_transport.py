"""An S3 store's answers are compared with the request before their bytes are awaited."""

from __future__ import annotations

import threading

import pytest

from pretrain.data.storage.location import Location
from pretrain.data.storage.transport import Refused, TransportError
from pretrain.data.storage.transports import S3Transport
from pretrain.errors import DataError
from tests.s3_server import client_of, s3_server
from tests.unit.data.storage.test_http_client import Handler, serving

KEPT = b"0123456789" * 1000


def transport(endpoint: str) -> S3Transport:
    return S3Transport(Location.parse("s3://images/train"), timeout_s=60, endpoint=endpoint, anonymous=False)


@pytest.mark.parametrize(
    ("part", "message"),
    [((9_000, 2_000), r"ends at byte 10,000, before byte 11,000: truncated, or not the file"), ((10_000, 1), "ends")],
)
def test_an_object_that_is_too_short_is_not_asked_for_again(part, message):
    """``DataError`` is not retried, a short read is."""
    with s3_server() as endpoint:
        client = client_of(endpoint)
        client.create_bucket(Bucket="images")
        client.put_object(Bucket="images", Key="train/a.tar", Body=KEPT)
        reader = transport(endpoint)
        assert reader.get("a.tar", 9_000, 1_000) == KEPT[9_000:] and reader.get("a.tar") == KEPT
        with pytest.raises(DataError, match=rf"s3://images/train/a\.tar: the object {message}"):
            reader.get("a.tar", *part)
        with pytest.raises(Refused, match="longer than 9,999 bytes; given up"):
            reader.get("a.tar", most_bytes=9_999)


@pytest.mark.parametrize(
    ("part", "status", "length", "error", "message"),
    [
        ((), 200, 10**12, Refused, "longer than 50,000 bytes; given up"),
        ((0, 50), 200, 10**6, DataError, "the store ignores Range requests"),
        ((100, 50), 206, 10**6, TransportError, "1000000 bytes instead of the 50 that were asked for"),
        ((100, 50), 206, 20, TransportError, "20 bytes instead of the 50 that were asked for"),
    ],
)
def test_a_length_is_judged_before_the_bytes_come(part, status, length, error, message):
    """The bytes never come, so that waiting for them would end in another error."""
    done = threading.Event()

    def promising(handler: Handler) -> None:
        handler.give(status, b"x", Content_Length=str(length))
        done.wait()

    with serving(promising) as (url, seen):
        try:
            with pytest.raises(error, match=message):
                transport(url).get("a.tar", *part, **({} if part else {"most_bytes": 50_000}))
        finally:
            done.set()
        assert sum(seen.values()) == 1

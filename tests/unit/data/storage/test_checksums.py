from __future__ import annotations

import zlib

import numpy as np
import pytest

from pretrain.data.storage.checksums import crc32


@pytest.mark.parametrize(("data", "expected"), [(b"", 0), (b"123456789", 0xCBF43926), (b"\0" * 32, 0x190A55AD)])
def test_published_values(data: bytes, expected: int) -> None:
    """The check value of CRC-32/ISO-HDLC in the catalogue of parametrised CRC algorithms, and of zeros."""
    assert crc32(data) == expected


@pytest.mark.parametrize("size", [1, 15, 16, 255, 256, 4097, 100_000, 3_000_001])
def test_any_length_gives_what_zlib_gives(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert crc32(data) == zlib.crc32(data)

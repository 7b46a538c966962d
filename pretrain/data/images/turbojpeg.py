"""libjpeg-turbo through ctypes, for functions that no Python package offers: decoding a part, rotating a file.

The rows above a region are skipped (their bits are read, but not transformed), the rows below are not read, and inside
the region's rows only the columns near the region are transformed. The shared library is part of the wheel of the
package ``turbojpeg``; the system's library also works, from version 3 on. Calls release the GIL.

Legend: iMCU = the smallest block of pixels that a JPEG codes together, 8 or 16 wide.
Source: libjpeg-turbo 3, ``turbojpeg.h``.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MARGIN = 4  # pixels around a region, since chroma is interpolated between neighbours

_DECOMPRESS, _TRANSFORM, _RGB = 1, 2, 0  # TJINIT_…, TJPF_RGB
_STOP_ON_WARNING, _WIDTH, _HEIGHT, _SUBSAMPLING, _COLORSPACE, _SCAN_LIMIT = 0, 5, 6, 4, 8, 13  # TJPARAM_…
_PROGRESSIVE = 12
_NOTHING = 0  # TJXOP_…
_OPERATIONS = {2: 1, 3: 6, 4: 2, 5: 3, 6: 5, 7: 4, 8: 7}  # EXIF orientation → TJXOP_… that undoes it
_ONLY_PERFECT, _AS_PROGRESSIVE, _NO_METADATA, _OPTIMISED = 1, 32, 64, 256  # TJXOPT_…
_MAX_SCANS = 500  # as opening.MAX_SCANS
_FRACTIONS = {1: (1, 8), 2: (1, 4), 3: (3, 8), 4: (1, 2), 5: (5, 8), 6: (3, 4), 7: (7, 8), 8: (1, 1)}
_IMCU_WIDTH = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8}  # by TJSAMP_…


class _Fraction(ctypes.Structure):
    _fields_ = (("num", ctypes.c_int), ("denom", ctypes.c_int))


class _Region(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int), ("y", ctypes.c_int), ("w", ctypes.c_int), ("h", ctypes.c_int))


class _Transform(ctypes.Structure):
    _fields_ = (
        ("r", _Region),
        ("op", ctypes.c_int),
        ("options", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("customFilter", ctypes.c_void_p),
    )


class Part(NamedTuple):
    """A decoded part of an image: its pixels and where its first pixel is in the complete (scaled) image."""

    pixels: NDArray[np.uint8]
    top: int
    left: int


class DecodeError(Exception):
    """libjpeg-turbo cannot decode this without an error or a warning."""


def available() -> bool:
    """Whether the library is installed."""
    return _library() is not None


def read_size(data: bytes) -> tuple[int, int]:
    """Height and width of a JPEG.

    Raises:
        DecodeError: not a JPEG, or one of an unsupported kind.
    """
    decoder = _decoder()
    decoder.open(data)
    return decoder.size


def decode_part(data: bytes, top: int, left: int, height: int, width: int, eighths: int = 8) -> Part:
    """Decodes a region and some pixels around it; they equal those of a full decode at the same scale.

    Args:
        data: a JPEG.
        top: first row of the region in the scaled image.
        left: first column.
        height: rows.
        width: columns.
        eighths: 1 … 8: the image is scaled by an eighth of this in the DCT, its sides rounded up.

    Raises:
        DecodeError: the file is damaged or of an unsupported kind.
    """
    decoder = _decoder()
    decoder.open(data)
    full_height, full_width = (-(-side * eighths // 8) for side in decoder.size)
    block = decoder.imcu_width * eighths // 8
    first_row, first_column = max(0, top - MARGIN), max(0, left - MARGIN) // block * block
    last_row, last_column = min(full_height, top + height + MARGIN), min(full_width, left + width + MARGIN)
    region = _Region(first_column, first_row, last_column - first_column, last_row - first_row)
    return Part(decoder.decode(data, region, eighths), first_row, first_column)


def turned_upright(data: bytes, orientation: int) -> bytes | None:
    """Losslessly rotates a JPEG upright by moving its coefficients, and removes its metadata.

    Args:
        data: a JPEG.
        orientation: EXIF, 2 … 8.

    Returns:
        The new file; None if the library is missing, the file is damaged, or a side is not a multiple of the iMCU.
    """
    return _transformed(data, _OPERATIONS[orientation], _ONLY_PERFECT | _NO_METADATA, keeps_scans=True)


def made_sequential(data: bytes) -> bytes | None:
    """Losslessly converts a progressive JPEG to a sequential one with optimal Huffman tables; keeps its metadata.

    Returns:
        The new file; None if the library is missing or the file is damaged.
    """
    return _transformed(data, _NOTHING, 0, keeps_scans=False)


def _transformed(data: bytes, operation: int, options: int, *, keeps_scans: bool) -> bytes | None:
    library = _library()
    if library is None:
        return None
    handle = library.tj3Init(_TRANSFORM)
    buffer, size = ctypes.c_void_p(), ctypes.c_size_t()
    try:
        library.tj3Set(handle, _STOP_ON_WARNING, 1)
        library.tj3Set(handle, _SCAN_LIMIT, _MAX_SCANS)
        if library.tj3DecompressHeader(handle, data, len(data)):
            return None
        if not keeps_scans:
            library.tj3Set(handle, _PROGRESSIVE, 0)  # the header has set it, and the result would have it too
        options |= _AS_PROGRESSIVE if library.tj3Get(handle, _PROGRESSIVE) else _OPTIMISED
        transform = _Transform(_Region(0, 0, 0, 0), operation, options, None, None)
        code = library.tj3Transform(
            handle, data, len(data), 1, ctypes.byref(buffer), ctypes.byref(size), ctypes.byref(transform)
        )
        return ctypes.string_at(buffer, size.value) if code == 0 and buffer.value else None
    finally:
        library.tj3Free(buffer)
        library.tj3Destroy(handle)


class _Decoder:
    """A decompressor. Not thread-safe."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._handle = library.tj3Init(_DECOMPRESS)
        library.tj3Set(self._handle, _STOP_ON_WARNING, 1)
        library.tj3Set(self._handle, _SCAN_LIMIT, _MAX_SCANS)
        self._opened: bytes | None = None
        self._eighths = 8
        self.size, self.imcu_width = (0, 0), 0

    def open(self, data: bytes) -> None:
        """Reads the header, unless the same bytes object is already open."""
        if self._opened is data:
            return
        self._opened = None
        self._check(self._library.tj3DecompressHeader(self._handle, data, len(data)))
        get, handle = self._library.tj3Get, self._handle
        imcu_width = _IMCU_WIDTH.get(get(handle, _SUBSAMPLING))
        if imcu_width is None or get(handle, _COLORSPACE) > 2:
            raise DecodeError("an unusual colour space or subsampling")
        self.size, self.imcu_width = (get(handle, _HEIGHT), get(handle, _WIDTH)), imcu_width
        self._opened = data

    def decode(self, data: bytes, region: _Region, eighths: int) -> NDArray[np.uint8]:
        library = self._library
        if eighths != self._eighths:
            self._check(library.tj3SetCroppingRegion(self._handle, _Region(0, 0, 0, 0)))  # the new scale must fit it
            self._check(library.tj3SetScalingFactor(self._handle, _Fraction(*_FRACTIONS[eighths])))
            self._eighths = eighths
        self._check(library.tj3SetCroppingRegion(self._handle, region))
        pixels = np.empty((region.h, region.w, 3), dtype=np.uint8)
        self._check(library.tj3Decompress8(self._handle, data, len(data), pixels.ctypes.data, 3 * region.w, _RGB))
        return pixels

    def _check(self, code: int) -> None:
        if code != 0:
            vars(_of_thread).pop("decoder", None)  # it would keep the warning and report it for the next image
            raise DecodeError(self._library.tj3GetErrorStr(self._handle).decode(errors="replace"))

    def __del__(self) -> None:
        self._library.tj3Destroy(self._handle)


_of_thread = threading.local()


def _decoder() -> _Decoder:
    if not hasattr(_of_thread, "decoder"):
        library = _library()
        assert library is not None, "ask available() first"
        _of_thread.decoder = _Decoder(library)
    return _of_thread.decoder


@lru_cache(maxsize=1)
def _library() -> Any:
    for path in _candidates():
        try:
            library = ctypes.CDLL(path)
            _declare(library)
        except (OSError, AttributeError):  # missing, or older than version 3
            continue
        return library
    return None


def _candidates() -> list[str]:
    package = importlib.util.find_spec("turbojpeg")
    bundled: list[str] = []
    if package is not None and package.origin:
        bundled = [str(path) for path in Path(package.origin).parent.glob("turbojpeg.libs/libturbojpeg*")]
    system = ctypes.util.find_library("turbojpeg")
    return [*bundled, *([system] if system else [])]


def _declare(library: Any) -> None:
    handle, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    reference = ctypes.POINTER
    buffers = [reference(handle), reference(size), reference(_Transform)]
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "tj3Init": (handle, [ctypes.c_int]),
        "tj3Destroy": (None, [handle]),
        "tj3Set": (ctypes.c_int, [handle, ctypes.c_int, ctypes.c_int]),
        "tj3Get": (ctypes.c_int, [handle, ctypes.c_int]),
        "tj3GetErrorStr": (text, [handle]),
        "tj3DecompressHeader": (ctypes.c_int, [handle, text, size]),
        "tj3SetScalingFactor": (ctypes.c_int, [handle, _Fraction]),
        "tj3SetCroppingRegion": (ctypes.c_int, [handle, _Region]),
        "tj3Transform": (ctypes.c_int, [handle, text, size, ctypes.c_int, *buffers]),
        "tj3Free": (None, [handle]),
        "tj3Decompress8": (ctypes.c_int, [handle, text, size, handle, ctypes.c_int, ctypes.c_int]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments

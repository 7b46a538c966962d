"""Damaged and hostile files: never other pixels than those that a full decode gives, and never a crash."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray

from pretrain.data.images import restarts, turbojpeg
from pretrain.data.images.decode import open_image
from pretrain.errors import BadSample
from tests.unit.data.images.test_restarts import jpeg, marked

NATIVE = Path(restarts.__file__).parent / "native"
NUM_DAMAGED = 150
BOX = (100, 120, 80, 90)

pytestmark = [
    pytest.mark.skipif(not restarts.available(), reason="the C extension is not built"),
    pytest.mark.skipif(not turbojpeg.available(), reason="libjpeg-turbo 3 is not there"),
]


def box_of(data: bytes) -> NDArray[np.uint8] | None:
    try:
        image = open_image(data)
        if (image.height, image.width) != (375, 500):
            return None
        return image.decode_box(BOX)
    except BadSample:
        return None


def full(data: bytes) -> NDArray[np.uint8] | None:
    """The box of a full decode; None if libjpeg warns or fails."""
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)[100:180, 120:210]
    except ValueError:
        return None


def places_of_markers(data: bytes) -> list[int]:
    start = data.index(b"\xff\xda")
    return [place for place in range(start, len(data) - 1) if data[place] == 0xFF and 0xD0 <= data[place + 1] <= 0xD9]


def damaged(data: bytes, rng: np.random.Generator, how: str) -> bytes:
    """The file with markers renumbered, removed, doubled or swapped, bits flipped, or its end cut off."""
    spoilt, places = bytearray(data), places_of_markers(data)
    place = places[int(rng.integers(len(places)))]
    if how == "renumbered":
        spoilt[place + 1] = 0xD0 + int(rng.integers(8))
    elif how == "removed":
        del spoilt[place : place + 2]
    elif how == "eight removed":
        for gone in reversed(places[20:28]):
            del spoilt[gone : gone + 2]
    elif how == "doubled":
        spoilt[place:place] = spoilt[place : place + 2]
    elif how == "moved":
        del spoilt[place : place + 2]
        target = place + int(rng.integers(-40, 40))
        spoilt[target:target] = data[place : place + 2]
    elif how == "interval removed":
        del spoilt[place : places[min(places.index(place) + 1, len(places) - 1)]]
    elif how == "cut":
        del spoilt[int(rng.integers(len(data))) :]
    elif how == "header":
        spoilt[int(rng.integers(data.index(b"\xff\xda") + 14))] = int(rng.integers(256))
    else:
        for _ in range(3):
            spoilt[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(spoilt)


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4", "grey"])
@pytest.mark.parametrize(
    "how",
    ["renumbered", "removed", "eight removed", "doubled", "moved", "interval removed", "cut", "header", "bits"],
)
def test_a_sound_file_is_decoded_alike_and_a_damaged_one_as_without_cutting(
    how: str, subsampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, rng = marked(jpeg(subsampling)), np.random.default_rng(len(how))
    num_readable = 0
    for _ in range(NUM_DAMAGED // 3):
        spoilt = damaged(data, rng, how)
        expected, made = full(spoilt), box_of(spoilt)
        if expected is not None and made is not None:
            assert np.array_equal(made, expected)
            num_readable += 1
        if made is not None and how in ("removed", "eight removed", "doubled", "interval removed", "cut"):
            with monkeypatch.context() as patch:
                patch.setattr(restarts, "cut", lambda *_: None)
                other = box_of(spoilt)
                assert other is not None and np.array_equal(made, other), "a wrong number of markers is never cut"
    assert num_readable or how not in ("renumbered", "bits", "header")


@pytest.mark.parametrize("how", ["cut", "header", "bits"])
def test_a_damaged_file_is_left_alone_or_keeps_its_pixels(how: str) -> None:
    data, rng = jpeg(size=(200, 180)), np.random.default_rng(3)
    for _ in range(NUM_DAMAGED):
        spoilt = damaged(data, rng, how)
        made = restarts.add_restarts(spoilt)
        if made is None or made is spoilt:
            continue
        try:
            expected = simplejpeg.decode_jpeg(spoilt, colorspace="RGB", strict=True)
        except ValueError:
            continue
        assert np.array_equal(simplejpeg.decode_jpeg(made, colorspace="RGB", strict=True), expected)


def test_noise_is_refused() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        noise = b"\xff\xd8" + rng.integers(0, 256, int(rng.integers(0, 400)), dtype=np.uint8).tobytes()
        assert restarts.cut(noise, 0, 0, 5, 5) is None
        assert restarts.add_restarts(noise) is None


@pytest.mark.slow
def test_no_byte_outside_is_touched(tmp_path: Path) -> None:
    """The C code with the sanitizers of addresses and undefined behaviour, on thousands of damaged files."""
    compiler = shutil.which("cc")
    sanitizers = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    if compiler is None:
        pytest.skip("no C compiler")
    sources = [path for path in NATIVE.glob("*.c") if path.name != "module.c"]
    program = tmp_path / "fuzz"
    command = [
        compiler,
        *sanitizers,
        "-I",
        NATIVE,
        *sources,
        Path(__file__).with_name("restarts_fuzz.c"),
        "-o",
        program,
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "asan" in built.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    files = []
    for number, (subsampling, size) in enumerate([("4:2:0", (500, 375)), ("4:4:4", (200, 180)), ("grey", (301, 170))]):
        for name, data in (("plain", jpeg(subsampling, size)), ("marked", marked(jpeg(subsampling, size)))):
            files.append(tmp_path / f"{number}-{name}.jpg")
            files[-1].write_bytes(data)
    done = subprocess.run([program, "1500", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    num_cut, num_marked = map(int, done.stdout.split())
    assert num_cut > 100 and num_marked > 100

"""How a file is seen: orientation wherever its tag is, colour profiles, formats that are not opened, rare modes."""

from __future__ import annotations

import io
import shutil
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, features

from pretrain.data.images.colour import conversion, png_profile
from pretrain.data.images.decode import open_image
from pretrain.data.images.opening import decode_strictly
from pretrain.errors import BadSample

HEIGHT, WIDTH = 48, 64


def picture(mode: str = "RGB") -> Image.Image:
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    pixels = np.stack([rows * 5, columns * 4 - 1, 250 - rows - columns], axis=2).clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def encode(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def tiff(*entries: tuple[int, int, int, bytes], order: str = ">") -> bytes:
    """A TIFF structure of (tag, type, count, value of at most 4 bytes)."""
    rows = b"".join(struct.pack(f"{order}HHI", *row[:3]) + row[3].ljust(4, b"\0") for row in entries)
    start = b"MM\0\x2a" if order == ">" else b"II\x2a\0"
    return start + struct.pack(f"{order}IH", 8, len(entries)) + rows + bytes(4)


JPEG = encode(picture(), "JPEG", quality=95)
SIX = tiff((0x0112, 3, 1, b"\0\6"))
EXIF = segment(0xE1, b"Exif\0\0" + SIX)
XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation=%s/></x:xmpmeta>"
BEFORE: dict[str, bytes] = {
    "nothing": b"",
    "Photoshop 5 kB": segment(0xED, b"Photoshop 3.0\0" + bytes(5000)),
    "comment 60 kB": segment(0xFE, b"x" * 60_000),
    "XMP 9 kB": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>" + b" " * 9000),
    "ICC 130 kB": segment(0xE2, b"ICC_PROFILE\0\1\2" + bytes(65_000))
    + segment(0xE2, b"ICC_PROFILE\0\2\2" + bytes(65_000)),
    "fill bytes": b"\xff\xff\xff",
    "the word Exif": segment(0xFE, b"Exif\0\0 is the word"),
}
TURNED: dict[str, bytes] = {
    **{f"{name} before Exif": before + EXIF for name, before in BEFORE.items()},
    "XMP only": segment(0xE1, XMP % b'"6"'),
    "Exif 8 and XMP 3": segment(0xE1, b"Exif\0\0" + tiff((0x0112, 3, 1, b"\0\x08"))) + segment(0xE1, XMP % b'"3"'),
    "little endian": segment(0xE1, b"Exif\0\0" + tiff((0x0112, 3, 1, b"\6\0"), order="<")),
    "stored as long": segment(0xE1, b"Exif\0\0" + tiff((0x0112, 4, 1, b"\0\0\0\6"))),
    "tag 0": segment(0xE1, b"Exif\0\0" + tiff((0x0112, 3, 1, b"\0\0"))),
    "tag 9": segment(0xE1, b"Exif\0\0" + tiff((0x0112, 3, 1, b"\0\x09"))),
    "damaged Exif": segment(0xE1, b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff" + b"\1" * 40),
    "no TIFF": segment(0xE1, b"Exif\0\0garbage"),
    "in two segments": segment(0xE1, b"Exif\0\0" + SIX[:12]) + segment(0xE1, b"Exif\0\0" + SIX[12:]),
}

SIX_TO_ALL = ("XMP only", "in two segments")  # orientation 6, which old versions of Pillow do not see


@pytest.mark.parametrize("name", TURNED)
def test_pack_and_training_turn_a_jpeg_as_pillow_does(name: str) -> None:
    data = JPEG[:2] + TURNED[name] + JPEG[2:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow remarks on damaged metadata
        image = Image.open(io.BytesIO(data))
        seen = image.transpose(Image.Transpose.ROTATE_270) if name in SIX_TO_ALL else ImageOps.exif_transpose(image)
        wanted = np.asarray(seen)
    np.testing.assert_array_equal(decode_strictly(data).pixels, wanted)
    image = open_image(data)
    assert (image.height, image.width) == wanted.shape[:2]
    np.testing.assert_array_equal(image.decode(), wanted)
    np.testing.assert_array_equal(image.decode_box((5, 7, 30, 20)), wanted[5:35, 7:27])
    small = open_image(data).decode(6, 6)
    assert small.shape[0] < wanted.shape[0] and (small.shape[0] > small.shape[1]) == (wanted.shape[0] > wanted.shape[1])


def profile(red: tuple, green: tuple, blue: tuple, gamma: float = 2.2) -> bytes:
    """A profile of given primaries, by the function that the PNG test below checks against a formula."""
    return png_profile(1 / gamma, (0.3127, 0.329, *red, *green, *blue))


PROFILES = {
    "Display P3": profile((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    "Adobe RGB": profile((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
    "linear": profile((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), gamma=1.0),
}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def managed(image: Image.Image, icc: bytes) -> np.ndarray:
    """The result of littlecms, called without our code."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    made = ImageCms.profileToProfile(image, opened, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert made is not None
    return np.asarray(made)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_wide_colours_become_srgb(name: str, image_format: str) -> None:
    icc = PROFILES[name]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encode(picture(), image_format, icc_profile=icc, **options)
    with Image.open(io.BytesIO(data)) as image:
        raw, wanted = np.asarray(image).astype(int), managed(image, icc)
    assert np.abs(raw - wanted).max() > 20, "the conversion moves colours, so this test can fail"
    decoded = decode_strictly(data)
    np.testing.assert_array_equal(decoded.pixels, wanted)
    assert "converted to sRGB" in decoded.oddities
    np.testing.assert_array_equal(open_image(data).decode(), wanted)
    np.testing.assert_array_equal(open_image(data).decode_box((8, 16, 20, 30)), wanted[8:28, 16:46])


def test_a_scaled_decode_is_converted_too() -> None:
    icc = PROFILES["Display P3"]
    data = encode(picture().resize((640, 480)), "JPEG", icc_profile=icc, quality=95)
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (80, 60))
        wanted = managed(image, icc).astype(int)
    assert np.abs(open_image(data).decode(60, 80).astype(int) - wanted).max() <= 2


def test_srgb_profiles_change_nothing() -> None:
    for icc in (SRGB, profile((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))):
        data = encode(picture(), "JPEG", icc_profile=icc)
        plain = encode(picture(), "JPEG")
        same = np.array_equal(open_image(data).decode(), open_image(plain).decode())
        assert same == (icc in (SRGB, b"")), "sRGB's own curve and a power of 2.2 differ in dark colours"
    assert decode_strictly(encode(picture(), "JPEG", icc_profile=SRGB)).is_plain


def test_a_profile_in_several_segments_and_any_order() -> None:
    icc = PROFILES["Display P3"]
    pieces = [icc[:200], icc[200:400], icc[400:]]
    chunks = [segment(0xE2, b"ICC_PROFILE\0" + bytes([k + 1, 3]) + piece) for k, piece in enumerate(pieces)]
    data = JPEG[:2] + chunks[2] + chunks[0] + chunks[1] + JPEG[2:]
    with Image.open(io.BytesIO(JPEG)) as image:
        wanted = managed(image, icc)
    np.testing.assert_array_equal(open_image(data).decode(), wanted)
    incomplete = JPEG[:2] + chunks[0] + chunks[2] + JPEG[2:]
    np.testing.assert_array_equal(open_image(incomplete).decode(), open_image(JPEG).decode())


@pytest.mark.parametrize(
    ("mode", "icc"),
    [("RGB", b"not a profile" * 20), ("L", b"x"), ("RGB", "GRAY"), ("CMYK", "RGB")],
    ids=["damaged", "one byte", "grey for colours", "colours for CMYK"],
)
def test_profiles_that_do_not_fit_are_ignored_and_said(mode: str, icc: bytes | str) -> None:
    profile_bytes = {"GRAY": grey_profile(1.0), "RGB": PROFILES["linear"]}[icc] if isinstance(icc, str) else icc
    decoded = decode_strictly(encode(picture(mode), "JPEG", icc_profile=profile_bytes))
    assert "unreadable colour profile ignored" in decoded.remarks
    np.testing.assert_array_equal(decoded.pixels, decode_strictly(encode(picture(mode), "JPEG")).pixels)


def grey_profile(gamma: float) -> bytes:
    """A version 2 profile of one curve. Source: ICC.1:2001-04, section 6.3.2."""
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"grey\0" + bytes(81)
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256))
    head, table, body = bytearray(128), struct.pack(">I", 3), b""
    for name, content in ((b"desc", text), (b"wtpt", white), (b"kTRC", curve)):
        table += name + struct.pack(">II", 132 + 36 + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head[:4] = struct.pack(">I", 168 + len(body))
    head[8:12], head[12:24], head[36:40] = b"\2\x20\0\0", b"mntrGRAYXYZ ", b"acsp"
    head[68:80] = struct.pack(">3i", 63190, 65536, 54061)
    return bytes(head) + table + body


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
def test_grey_profiles_follow_their_curve_and_stay_grey(image_format: str) -> None:
    data = encode(picture("L"), image_format, icc_profile=grey_profile(1.0))
    with Image.open(io.BytesIO(data)) as image:
        linear = np.asarray(image) / 255
    wanted = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    for pixels in (decode_strictly(data).pixels, open_image(data).decode()):
        assert np.abs(pixels[:, :, 1] - wanted).max() <= 1
        assert (pixels[:, :, 0] == pixels[:, :, 1]).all() and (pixels[:, :, 2] == pixels[:, :, 1]).all()


def png(depth: int, colour: int, rows: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with any chunks between its header and its pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def gamma_chunk(value: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(value * 100_000))


def test_a_pngs_gamma_and_primaries() -> None:
    pixels = np.asarray(picture())
    linear = pixels / 255
    wanted = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(open_image(png(8, 2, pixels, gamma_chunk(1.0))).decode() - wanted).max() <= 1
    for chunks in ([gamma_chunk(0.45455)], [(b"sRGB", b"\0"), gamma_chunk(1.0)], [gamma_chunk(0)]):
        np.testing.assert_array_equal(open_image(png(8, 2, pixels, *chunks)).decode(), pixels)
    p3 = (0.3127, 0.329, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
    primaries = (b"cHRM", b"".join(struct.pack(">I", round(value * 100_000)) for value in p3))
    seen = open_image(png(8, 2, pixels, gamma_chunk(0.45455), primaries)).decode()
    # Display P3 (D65) to sRGB in linear light, as CSS Color 4 gives the matrices
    to_xyz = [[0.4865709, 0.2656677, 0.1982173], [0.2289746, 0.6917385, 0.0792869], [0, 0.0451134, 1.0439444]]
    from_xyz = [
        [3.2409699, -1.5373832, -0.4986108],
        [-0.9692436, 1.8759675, 0.0415551],
        [0.0556301, -0.2039770, 1.0569715],
    ]
    light = ((pixels / 255) ** 2.2) @ (np.array(from_xyz) @ np.array(to_xyz)).T
    light = light.clip(0, 1)
    wanted = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(seen - wanted).max() <= 3


# CSS Color 4: linear light in these primaries → XYZ (D65), and XYZ → linear sRGB
P3_TO_XYZ = [[0.4865709, 0.2656677, 0.1982173], [0.2289746, 0.6917385, 0.0792869], [0, 0.0451134, 1.0439444]]
REC2020_TO_XYZ = [[0.6369580, 0.1446169, 0.1688810], [0.2627002, 0.6779981, 0.0593017], [0, 0.0280727, 1.0609851]]
XYZ_TO_SRGB = [
    [3.2409699, -1.5373832, -0.4986108],
    [-0.9692436, 1.8759675, 0.0415551],
    [0.0556301, -0.2039770, 1.0569715],
]


def in_srgb(pixels: np.ndarray, to_xyz: list[list[float]], curve: int) -> np.ndarray:
    """Levels in sRGB, by the formulas of CSS Color 4 and ITU-T H.273; curve 1 is BT.709's, 13 sRGB's."""
    values = pixels / 255
    if curve == 13:
        light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    else:
        light = np.where(values < 0.081243, values / 4.5, ((values + 0.099297) / 1.099297) ** (1 / 0.45))
    light = (light @ (np.array(XYZ_TO_SRGB) @ np.array(to_xyz)).T).clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(("points", "to_xyz"), [((12, 13), P3_TO_XYZ), ((9, 1), REC2020_TO_XYZ)])
def test_a_pngs_code_points_are_converted_and_precede_all_else(points: tuple[int, int], to_xyz: Any) -> None:
    pixels = np.asarray(picture())
    data = png(8, 2, pixels, (b"cICP", bytes([*points, 0, 1])), (b"sRGB", b"\0"))
    decoded = decode_strictly(data)
    assert np.abs(decoded.pixels - in_srgb(pixels, to_xyz, points[1])).max() <= 3
    assert decoded.oddities == ("converted to sRGB",) and decoded.remarks == ()


@pytest.mark.parametrize(
    ("chunk", "remarks"),
    [
        (bytes([1, 13, 0, 1]), ()),
        (bytes([9, 16, 0, 1]), ("colours in a coding that is not converted",)),  # PQ
        (bytes([9, 18, 0, 1]), ("colours in a coding that is not converted",)),  # HLG
        (bytes([12, 13, 0, 0]), ("colours in a coding that is not converted",)),  # narrow range
        (bytes([12, 13]), ()),  # not a cICP chunk
    ],
)
def test_code_points_that_change_no_pixel(chunk: bytes, remarks: tuple[str, ...]) -> None:
    pixels = np.asarray(picture())
    decoded = decode_strictly(png(8, 2, pixels, (b"cICP", chunk)))
    np.testing.assert_array_equal(decoded.pixels, pixels)
    assert decoded.remarks == remarks and decoded.is_plain


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_an_avifs_code_points_are_converted() -> None:
    data = bytearray(encode(picture(), "AVIF", quality=100, subsampling="4:4:4"))
    pixels = open_image(bytes(data)).decode()  # sRGB, as Pillow writes it
    data[data.index(b"colrnclx") + 9] = 12
    decoded = decode_strictly(bytes(data))
    assert np.abs(decoded.pixels - in_srgb(pixels, P3_TO_XYZ, 13)).max() <= 3
    assert np.abs(decoded.pixels.astype(int) - pixels).max() > 10
    data[data.index(b"colrnclx") + 11] = 16
    decoded = decode_strictly(bytes(data))
    np.testing.assert_array_equal(decoded.pixels, pixels)
    assert decoded.remarks == ("colours in a coding that is not converted",)


def test_floats_without_a_number_are_no_black_picture() -> None:
    with pytest.raises(BadSample, match="all NaN"):
        decode_strictly(encode(Image.fromarray(np.full((4, 5), np.nan, np.float32)), "TIFF"))
    some = np.full((4, 5), np.nan, np.float32)
    some[1, 2] = 1.0
    seen = decode_strictly(encode(Image.fromarray(some), "TIFF")).pixels
    assert seen[1, 2].tolist() == [255] * 3 and seen.sum() == 3 * 255


def test_sixteen_bit_grey_with_a_transparent_value() -> None:
    grey = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 20).astype(">u2")
    seen = open_image(png(16, 0, grey, (b"tRNS", struct.pack(">H", 2000)))).decode()[:, :, 0]
    wanted = (grey >> 8).astype(np.uint8)
    wanted[grey == 2000] = 255
    np.testing.assert_array_equal(seen, wanted)


@pytest.mark.parametrize(
    "chunk",
    [(b"tEXt", b"Comment\0hello"), (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000))), (b"eXIf", b"MM")],
    ids=["wrong checksum", "3 MB of text", "short Exif"],
)
def test_metadata_cannot_spoil_a_png(chunk: tuple[bytes, bytes]) -> None:
    pixels = np.asarray(picture())
    data = png(8, 2, pixels, chunk, gamma_chunk(0.45455))
    if chunk[0] == b"tEXt":
        data = data.replace(b"hello", b"jello")
        assert "damaged metadata ignored" in decode_strictly(data).remarks
    np.testing.assert_array_equal(open_image(data).decode(), pixels)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 10 10
%%EndComments
newpath 0 0 moveto 10 10 lineto stroke
showpage
%%EOF
"""


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_picture_of_which_a_part_is_missing(progressive: bool, orientation: int) -> None:
    """Cut, and perhaps given an end marker again: Pillow shows grey there. Zeros could be a camera's padding."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8))
    data = encode(noise, "JPEG", quality=95, progressive=progressive, exif=exif.tobytes())
    half = data[: len(data) // 2]
    filled = half + bytes(len(data) - len(half) - 2) + b"\xff\xd9"
    assert decode_strictly(filled).remarks == ("read with a warning",)
    for broken in (half + b"\xff\xd9", half):
        with pytest.raises(BadSample, match="decode: "):
            decode_strictly(broken)
        with pytest.raises(BadSample, match="decode: "):
            open_image(broken).decode()
    np.testing.assert_array_equal(open_image(data[:-2]).decode(), open_image(data).decode())
    assert decode_strictly(data[:-2]).remarks == ("end marker added",)


def test_a_warning_about_a_complete_picture_is_counted() -> None:
    data = JPEG.replace(b"JFIF\0\1", b"JFIF\0\3", 1)
    assert decode_strictly(data).remarks == ("read with a warning",) and decode_strictly(data).is_plain
    np.testing.assert_array_equal(open_image(data).decode(), open_image(JPEG).decode())


def test_endless_scans_are_refused_before_they_are_decoded() -> None:
    """Each costs a pass over all blocks of the picture; the file is small."""
    data = encode(Image.new("L", (6000, 6000)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    for mode in ("L", "CMYK"):
        bomb = data[:-2] + data[last:-2] * 3000 + data[-2:]
        if mode == "CMYK":
            small = encode(picture("CMYK"), "JPEG", progressive=True)
            bomb = small[:-2] + small[small.rindex(b"\xff\xda") : -2] * 600 + small[-2:]
        begun = time.process_time()
        for look in (decode_strictly, open_image):
            with pytest.raises(BadSample, match="scans; the limit is 500"):
                look(bomb)
        assert time.process_time() - begun < 20, "of a hang, which would take minutes"
    np.testing.assert_array_equal(open_image(data).decode(1, 1)[0, 0], [0, 0, 0])


def tiny(image_format: str) -> Callable[[], bytes]:
    return lambda: encode(Image.new("RGB", (8, 8)), image_format)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EPS, "it looks like PostScript"),
        (lambda: b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 32, len(EPS), 0, 0, 0, 0) + bytes(4) + EPS, "PostScript"),
        (lambda: b"%PDF-1.7 ...", "it looks like PDF"),
        (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it looks like HTML, SVG or XML"),
        (lambda: b"\0\0\0\x18ftypheic" + bytes(99), "it looks like HEIC"),
        (lambda: b"", "an empty file"),
        (tiny("ICO"), "formats that are read: "),
        (tiny("TGA"), "formats that are read: "),
        (tiny("SGI"), "formats that are read: "),
        (tiny("DDS"), "formats that are read: "),
    ],
    ids=["eps", "dos eps", "pdf", "svg", "heic", "empty", "ico", "tga", "sgi", "dds"],
)
def test_other_formats_are_not_opened(make: Callable[[], bytes], message: str, monkeypatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: started.append(args))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    for look in (decode_strictly, lambda data: open_image(data).decode()):
        with pytest.raises(BadSample, match=message):
            look(make())
    assert not started, "Ghostscript was started"


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_counts(image_format: str) -> None:
    frames = [picture().quantize(16).convert("RGB"), Image.new("RGB", (WIDTH, HEIGHT), "red")]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encode(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    decoded = decode_strictly(data)
    assert "first frame of several" in decoded.oddities
    np.testing.assert_array_equal(decoded.pixels, np.asarray(frames[0]))


def test_cmyk_without_a_profile_is_what_pillow_makes_of_it() -> None:
    data = encode(picture("CMYK"), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(open_image(data).decode(), wanted)
    assert "mode CMYK" in decode_strictly(data).oddities


def cmyk_profile() -> bytes:
    """A printer profile of a table with two steps an ink, in which inks are stronger than Pillow's formula has them.

    Source: ICC.1:2001-04, section 6.5.7 (lut8Type); values are Lab of 8 bits, with a* and b* + 128.
    """
    ramp = bytes(range(256))
    table = b""
    for inks in np.ndindex(2, 2, 2, 2):
        cyan, magenta, yellow, black = inks
        light = max(0, 250 - 60 * cyan - 80 * magenta - 20 * yellow - 200 * black)
        table += bytes([light, 128 - 40 * cyan + 60 * magenta, 128 - 30 * cyan + 80 * yellow])
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(65536 * (k % 4 == 0) for k in range(9)))
    lut += ramp * 4 + table + ramp * 3
    text = b"desc\0\0\0\0" + struct.pack(">I", 4) + b"ink\0" + bytes(82)
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    head, tags, body = bytearray(128), struct.pack(">I", 3), b""
    for name, content in ((b"desc", text), (b"wtpt", white), (b"A2B0", lut)):
        tags += name + struct.pack(">II", 168 + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head[:4] = struct.pack(">I", 168 + len(body))
    head[8:12], head[12:24], head[36:40] = b"\2\x20\0\0", b"prtrCMYKLab ", b"acsp"
    head[68:80] = struct.pack(">3i", 63190, 65536, 54061)
    return bytes(head) + tags + body


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk_with_a_profile_goes_through_it(image_format: str) -> None:
    data = encode(picture("CMYK"), image_format, icc_profile=cmyk_profile())
    with Image.open(io.BytesIO(data)) as image:
        wanted, without = managed(image, cmyk_profile()), np.asarray(image.convert("RGB"))
    assert np.abs(wanted.astype(int) - without).max() > 30
    decoded = decode_strictly(data)
    np.testing.assert_array_equal(decoded.pixels, wanted)
    np.testing.assert_array_equal(open_image(data).decode(), wanted)
    assert decoded.oddities == ("mode CMYK", "converted to sRGB")


def test_lab_is_refused() -> None:
    """Eight bits of L*a*b* cannot give saturated sRGB colours back: blue is wrong by 24 levels of red."""
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    data = encode(picture(), "PNG")
    made = ImageCms.profileToProfile(Image.open(io.BytesIO(data)), srgb, lab, outputMode="LAB")
    assert made is not None
    with pytest.raises(BadSample, match="mode LAB: convert it to sRGB"):
        open_image(encode(made, "TIFF"))


def test_the_same_profile_is_read_once() -> None:
    assert conversion(PROFILES["Display P3"]) is conversion(bytes(bytearray(PROFILES["Display P3"])))


def test_pngs_of_every_kind_of_text_and_orientation() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    data = encode(picture(), "PNG", pnginfo=info)
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(open_image(data).decode(), wanted)

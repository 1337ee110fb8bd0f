"""Bad and odd files, made anew by every test, each with what must become of it.

    expected = write_corpus(folder)

Every file is USED (it counts as an image), LISTED (in problems.csv, with its reason), IGNORED (it is no
image by its name, and nothing is said) or EITHER (damaged at random: an image or a line in problems.csv, as
the decoder finds, but nothing else).
"""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from finetune.images.names import HAS_AVIF

Verdict = Enum("Verdict", "USED LISTED IGNORED EITHER")
USED, LISTED, IGNORED, EITHER = Verdict
Write = Callable[[Path], object]

DAMAGED, NO_IMAGE, TOO_MANY = "damaged image", "no image in a format", "too many pixels"
FLIPS = 100  # files with flipped bits, over all formats


@dataclass(frozen=True, slots=True)
class Odd:
    """One file: its name, how it is written, what must become of it, and the word for why."""

    name: str
    write: Write
    verdict: Verdict
    reason: str = ""


def noise(width: int = 48, height: int = 40, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def of_bytes(name: str, content: bytes, verdict: Verdict, reason: str = "") -> Odd:
    return Odd(name, lambda path: path.write_bytes(content), verdict, reason)


SAVED: dict[str, tuple[str, dict[str, Any]]] = {
    "jpg": ("JPEG", {}),
    "progressive.jpg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "webp": ("WEBP", {}),
    "tif": ("TIFF", {}),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
    **({"avif": ("AVIF", {})} if HAS_AVIF else {}),
}


def corpus() -> list[Odd]:
    """Return all of it; the same files every time."""
    return [
        *cut_short(),
        *bits_flipped(),
        *no_images(),
        *under_other_names(),
        *large(),
        *odd_pictures(),
        *odd_metadata(),
        *odd_names(),
        *no_files(),
    ]


def cut_short() -> Iterator[Odd]:
    for index, (ending, (form, options)) in enumerate(SAVED.items()):
        content = encoded(noise(seed=10 + index), form, **options)
        for tenth in range(1, 10):
            reason = "" if tenth == 1 else DAMAGED
            yield of_bytes(f"cut-{tenth}.{ending}", content[: len(content) * tenth // 10], LISTED, reason)


def bits_flipped() -> Iterator[Odd]:
    rng = random.Random(0)
    for number in range(FLIPS):
        ending, (form, options) = list(SAVED.items())[number % len(SAVED)]
        content = bytearray(encoded(noise(seed=100 + number), form, **options))
        for _ in range(rng.choice([1, 3, 20])):
            place = rng.randrange(len(content) if rng.random() < 0.5 else 150)
            content[place] ^= 1 << rng.randrange(8)
        yield of_bytes(f"flip-{number:03}.{ending}", bytes(content), EITHER)


def no_images() -> Iterator[Odd]:
    yield of_bytes("zero.jpg", b"", LISTED, "the file is empty")
    yield of_bytes("zeros.png", bytes(2000), LISTED, NO_IMAGE)
    yield of_bytes("heic.jpg", struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(99), LISTED, "HEIC")
    yield of_bytes("text.jpg", b"hello\n" * 100, LISTED, NO_IMAGE)
    yield of_bytes("page.gif", b"<!doctype html><script>alert(1)</script>", LISTED, NO_IMAGE)
    yield of_bytes("drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", LISTED, NO_IMAGE)
    yield of_bytes("script.bmp", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", LISTED, NO_IMAGE)
    yield of_bytes("archive.jpg", zipped(), LISTED, NO_IMAGE)
    yield of_bytes("random.webp", random.Random(1).randbytes(3000), LISTED, NO_IMAGE)
    yield of_bytes("notes.txt", b"no image by its name", IGNORED)
    yield of_bytes("picture.svg", b"<svg/>", IGNORED)
    yield of_bytes("Thumbs.db", b"\0", IGNORED)
    yield of_bytes(".hidden.jpg", encoded(noise(seed=1), "JPEG"), IGNORED)
    yield of_bytes("jpg", encoded(noise(seed=1), "JPEG"), IGNORED)


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../../out-of-here.txt", "unpacked")
    return stream.getvalue()


def under_other_names() -> Iterator[Odd]:
    """What a file is, its first bytes tell, not its name; what follows an image is not looked at."""
    yield of_bytes("a-png.jpg", encoded(noise(seed=2), "PNG"), USED)
    yield of_bytes("a-jpeg.png", encoded(noise(seed=3), "JPEG"), USED)
    yield of_bytes("a-webp.gif", encoded(noise(seed=4), "WEBP"), USED)
    yield of_bytes("SHOUTED.JPEG", encoded(noise(seed=5), "JPEG"), USED)
    yield of_bytes("a-ppm.png", encoded(noise(seed=6), "PPM"), LISTED, NO_IMAGE)
    yield of_bytes("a-jpeg2000.jpg", jpeg2000_header(), LISTED, NO_IMAGE)
    yield of_bytes("with-zip.jpg", encoded(noise(seed=7), "JPEG") + zipped(), USED)
    yield of_bytes("with-html.gif", encoded(noise(seed=8), "GIF") + b"<script>alert(1)</script>", USED)
    html = b"*/=1;/*<script>alert(1)</script>*/"
    yield of_bytes("html-inside.jpg", encoded(noise(seed=9), "JPEG", comment=html), USED)


def jpeg2000_header() -> bytes:
    return b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100)


def large() -> Iterator[Odd]:
    yield of_bytes("one-pixel.png", encoded(noise(1, 1, seed=20), "PNG"), USED)
    yield of_bytes("one-pixel.gif", encoded(noise(1, 1, seed=21), "GIF"), USED)
    yield of_bytes("one-column.png", encoded(noise(1, 65_500, seed=22), "PNG"), USED)
    yield of_bytes("one-row.png", encoded(noise(65_500, 1, seed=23), "PNG"), USED)
    yield of_bytes("wide.jpg", encoded(noise(65_500, 8, seed=24), "JPEG"), USED)
    yield of_bytes("wide.tif", encoded(noise(65_500, 3, seed=25), "TIFF"), USED)
    yield of_bytes("bomb.png", png_bomb(60_000, 60_000), LISTED, TOO_MANY)
    yield of_bytes("bomb.gif", gif_bomb(), LISTED, TOO_MANY)
    yield of_bytes("bomb.bmp", bmp_bomb(), LISTED, TOO_MANY)
    yield of_bytes("bomb.tif", with_tiff_size(encoded(noise(), "TIFF"), 50_000, 50_000), LISTED, TOO_MANY)
    yield of_bytes("says-more.png", png_bomb(4000, 4000), LISTED, DAMAGED)
    yield of_bytes("text-bomb.png", png_text_bomb(), LISTED, DAMAGED)
    yield Odd("hole.jpg", lambda path: sparse(path, 2**31), LISTED, "2.0 GiB is not an image")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def png_bomb(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return png(header, chunk(b"IDAT", zlib.compress(bytes(1000))))


def png_text_bomb() -> bytes:
    """A small image beside 100 MB of text, in 100 KB."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9))
    return png(header, text, chunk(b"IDAT", zlib.compress(bytes(4 * 13))))


def gif_bomb() -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(6) + b"," + bytes(50)


def bmp_bomb() -> bytes:
    content = bytearray(encoded(noise(), "BMP"))
    content[18:26] = struct.pack("<ii", 65_000, 65_000)
    return bytes(content)


def with_tiff_size(content: bytes, width: int, height: int) -> bytes:
    made = bytearray(content)
    start = struct.unpack("<I", content[4:8])[0]
    for number in range(struct.unpack("<H", content[start : start + 2])[0]):
        place = start + 2 + 12 * number
        size = {256: width, 257: height}.get(struct.unpack("<H", made[place : place + 2])[0])
        if size is not None:
            made[place + 2 : place + 12] = struct.pack("<HII", 4, 1, size)
    return bytes(made)


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as stream:
        stream.truncate(size)


def odd_pictures() -> Iterator[Odd]:
    rng = np.random.default_rng(30)
    deep = Image.fromarray(rng.integers(0, 65536, (40, 48), dtype=np.uint16))
    yield of_bytes("16-bit.png", encoded(deep, "PNG"), USED)
    yield of_bytes("16-bit.tif", encoded(deep, "TIFF"), USED)
    yield of_bytes("16-bit-colours.png", png_of_16_bits(), USED)
    # Floats beside more files of whole numbers: no one range of values fits both.
    yield of_bytes(
        "float.tif", encoded(Image.fromarray(rng.random((40, 48), dtype=np.float32)), "TIFF"), LISTED, "holds floats"
    )
    strange = np.full((40, 48), np.nan, dtype=np.float32)
    strange[0, :3] = np.inf, -np.inf, 1e38
    yield of_bytes("not-a-number.tif", encoded(Image.fromarray(strange), "TIFF"), LISTED, "holds floats")
    yield of_bytes("32-bit.tif", encoded(Image.fromarray(rng.integers(-9, 9, (40, 48), dtype=np.int32)), "TIFF"), USED)
    yield of_bytes("one-bit.png", encoded(noise(seed=31).convert("1"), "PNG"), USED)
    yield of_bytes("fax.tif", encoded(noise(seed=32).convert("1"), "TIFF", compression="group4"), USED)
    yield of_bytes("grey.jpg", encoded(noise(seed=33).convert("L"), "JPEG"), USED)
    yield of_bytes("cmyk.jpg", encoded(noise(seed=34).convert("CMYK"), "JPEG"), USED)
    yield of_bytes("cmyk.tif", encoded(noise(seed=35).convert("CMYK"), "TIFF"), USED)
    yield of_bytes("lab.tif", encoded(noise(seed=36).convert("LAB"), "TIFF"), USED)
    yield of_bytes("alpha.png", encoded(translucent(37), "PNG"), USED)
    yield of_bytes("alpha.webp", encoded(translucent(38), "WEBP"), USED)
    if HAS_AVIF:
        yield of_bytes("alpha.avif", encoded(translucent(52), "AVIF"), USED)
    yield of_bytes("nothing-to-see.png", encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 0)), "PNG"), USED)
    indexed = noise(seed=39).convert("P")
    yield of_bytes("palette.png", encoded(indexed, "PNG"), USED)
    yield of_bytes("see-through-palette.png", encoded(indexed, "PNG", transparency=bytes(range(256))), USED)
    yield of_bytes("see-through.gif", encoded(noise(seed=40).convert("P"), "GIF", transparency=3), USED)
    for form in ("GIF", "WEBP", "PNG", "TIFF", "MPO", *(("AVIF",) if HAS_AVIF else ())):
        frames = [noise(seed=41 + number + len(form)) for number in range(3)]
        ending = {"TIFF": "tif", "MPO": "jpg"}.get(form, form.lower())
        content = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        yield of_bytes(f"moves-{form}.{ending}", content, USED)
    jumps = encoded(noise(seed=50), "TIFF")
    yield of_bytes("next-is-itself.tif", with_itself_as_next(jumps), USED)


def png_of_16_bits() -> bytes:
    rows = np.random.default_rng(51).integers(0, 256, (9, 6 * 8), dtype=np.uint8)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 9, 16, 2, 0, 0, 0))
    return png(header, chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))))


def translucent(seed: int) -> Image.Image:
    image = noise(seed=seed).convert("RGBA")
    image.putalpha(noise(seed=seed + 1000).convert("L"))
    return image


def with_itself_as_next(content: bytes) -> bytes:
    """A TIFF whose first directory says that the next one is itself."""
    made = bytearray(content)
    start = struct.unpack("<I", content[4:8])[0]
    end = start + 2 + 12 * struct.unpack("<H", content[start : start + 2])[0]
    made[end : end + 4] = struct.pack("<I", start)
    return bytes(made)


def odd_metadata() -> Iterator[Odd]:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield of_bytes("profile.jpg", encoded(noise(seed=60), "JPEG", icc_profile=profile), USED)
    yield of_bytes("profile.png", encoded(noise(seed=61), "PNG", icc_profile=profile), USED)
    yield of_bytes("broken-profile.jpg", encoded(noise(seed=62), "JPEG", icc_profile=profile[:77]), USED)
    yield of_bytes("broken-profile.webp", encoded(noise(seed=63), "WEBP", icc_profile=b"\xff" * 500), USED)
    whole = encoded(noise(seed=64), "PNG")
    bad = chunk(b"iCCP", b"name\0\0no zlib stream")
    yield of_bytes("broken-profile.png", whole[:33] + bad + whole[33:], USED)
    for orientation in (1, 3, 6, 8, 0, 77):
        exif = Image.Exif()
        exif[0x112] = orientation
        yield of_bytes(f"turned-{orientation}.jpg", encoded(noise(seed=70 + orientation), "JPEG", exif=exif), USED)
    yield of_bytes("huge-exif.jpg", encoded(noise(seed=65), "JPEG", exif=b"Exif\0\0" + bytes(65_000)), USED)
    yield of_bytes("broken-exif.jpg", encoded(noise(seed=66), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), USED)
    content = encoded(noise(seed=67), "JPEG")
    remarks = b"".join(b"\xff\xfe" + struct.pack(">H", 65_535) + b"x" * 65_533 for _ in range(40))
    yield of_bytes("many-remarks.jpg", content[:2] + remarks + content[2:], USED)


def odd_names() -> Iterator[Odd]:
    names = [
        "a\nb.jpg", "a\tb.jpg", "a\rb.jpg", "\x1b[31mred\x07.jpg", "🐜.jpg", "e\u0301.jpg", "\u202egpj.jpg", " .jpg",
        os.fsdecode(b"\xff\xfe.jpg"), "n" * 251 + ".jpg", "-rf.jpg", "--help.png", "=cmd|' -C calc'!A0.jpg",
        "+1.jpg", "@sum.jpg", "'=quoted.jpg", "<script>alert(1)<|script>.jpg", "[bold]markup[/].jpg", "a,b;c.jpg",
        'say "hi".jpg', "$HOME;`id`.jpg", "%00.jpg", "back\\slash.jpg", "| a | b.jpg", "![x](y).jpg", "con.jpg",
    ]  # fmt: skip
    for number, name in enumerate(names):
        bare = name.replace("/", "∕")
        yield of_bytes(bare, encoded(noise(seed=200 + number), "JPEG"), USED)
        short = f"{bare[:100]}.bad.jpg" if len(os.fsencode(bare)) < 200 else f"{bare[:243]}.bad.jpg"
        yield of_bytes(short, b"no image", LISTED, NO_IMAGE)


def no_files() -> Iterator[Odd]:
    """What stands where a file should; a folder that is named like an image is a folder."""
    yield Odd("folder.jpg", lambda path: path.mkdir(), IGNORED)
    yield Odd("loop.jpg", lambda path: path.symlink_to(path.name), LISTED, "cannot be read")
    yield Odd("round.jpg", ring, LISTED, "cannot be read")
    yield Odd("dangling.jpg", lambda path: path.symlink_to("nowhere"), LISTED, "cannot be read: No such file")
    yield Odd("pipe.jpg", os.mkfifo, LISTED, "not a regular file")
    yield Odd("socket.jpg", bound, LISTED, "not a regular file")
    yield Odd("device.jpg", lambda path: path.symlink_to("/dev/zero"), LISTED, "not a regular file")
    yield Odd("myself", lambda path: path.symlink_to("."), IGNORED)
    yield Odd("upwards", lambda path: path.symlink_to(".."), IGNORED)


def ring(path: Path) -> None:
    other = path.with_name("ring")
    path.symlink_to(other.name)
    other.symlink_to(path.name)


def bound(path: Path) -> None:
    """A socket in the folder; made from inside of it, as an address must be short."""
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def write_corpus(folder: Path) -> dict[str, Odd]:
    """Write all of it into a folder, and yield it by name."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {odd.name: odd for odd in corpus()}
    for odd in made.values():
        odd.write(folder / odd.name)
    return made


def deep_png(values: np.ndarray) -> bytes:
    """Return a PNG of 16 bits a channel, which Pillow itself writes in grey only: (H, W, C) of uint16."""
    kinds = {1: 0, 2: 4, 3: 2, 4: 6}
    height, width, channels = values.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, kinds[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    )


def tiff_of_bands(num_bands: int, *, extra: int = 0) -> bytes:
    """Return a TIFF of 4x4 pixels whose bands beyond three are of an unknown kind (0) or transparency (2)."""
    pixels = bytes(range(16)) * num_bands
    extras = max(0, num_bands - 3)
    entries = [(256, 3, 1, 4), (257, 3, 1, 4), (262, 3, 1, 2 if num_bands >= 3 else 1), (277, 3, 1, num_bands)]
    entries += [(273, 4, 1, 0), (278, 3, 1, 4), (279, 4, 1, len(pixels))]
    arrays = {258: [8] * num_bands} | ({338: [extra] * extras} if extras else {})
    start = 8 + 2 + 12 * (len(entries) + len(arrays)) + 4
    blob, table = b"", []
    for tag, values in arrays.items():
        data = struct.pack(f"<{len(values)}H", *values)
        inline = len(data) <= 4
        table.append((tag, struct.pack("<HHI", tag, 3, len(values)) + (data.ljust(4, b"\0") if inline else b"")))
        if not inline:
            table[-1] = (tag, table[-1][1] + struct.pack("<I", start + len(blob)))
            blob += data
    for tag, kind, count, value in entries:
        value = start + len(blob) if tag == 273 else value
        table.append((tag, struct.pack("<HHII", tag, kind, count, value)))
    # The strip lies behind the arrays, whose length is known by now.
    table = [(tag, struct.pack("<HHII", 273, 4, 1, start + len(blob)) if tag == 273 else row) for tag, row in table]
    rows = b"".join(row for _, row in sorted(table))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(table)) + rows + b"\0\0\0\0" + blob + pixels

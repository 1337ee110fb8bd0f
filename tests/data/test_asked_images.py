"""Images by name: files, folders, patterns, tables, addresses and standard input, in order."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from finetune.data import addresses
from finetune.data.asked_images import AskedImages, asked_images
from finetune.errors import DataError, RecipeError
from finetune.images.decode import UndecodableError
from finetune.images.files import FORMATS
from tests.support import lay, warned


def png(side: int = 4, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(stream, form)
    return stream.getvalue()


def below(root: Path, images: AskedImages) -> list[str]:
    return [os.path.relpath(source.name, root) for source in images]


def test_files_and_folders_come_in_order_and_as_often_as_they_are_asked_for(tmp_path: Path) -> None:
    root = lay(tmp_path, ["z.jpg", "d/2.jpg", "d/1.png", "d/e/3.gif", "d/notes.txt", "odd"])
    images = asked_images([root / "z.jpg", root / "d", root / "odd"])
    assert images.total == 5
    assert below(root, images) == ["z.jpg", "d/1.png", "d/2.jpg", "d/e/3.gif", "odd"]
    assert below(root, images) == below(root, images)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["1.jpg", "2.jpg"]),
        ("**/*.jpg", ["1.jpg", "2.jpg", "d/3.jpg"]),
        ("[2]*", ["2.jpg"]),
        ("[x].jpg", ["[x].jpg"]),
        ("d*", ["d/3.jpg"]),
    ],
)
def test_a_pattern_is_what_a_shell_would_make_of_it_unless_a_file_is_called_so(
    tmp_path: Path, pattern: str, found: list[str]
) -> None:
    names = ["1.jpg", "2.jpg", "d/3.jpg", *["[x].jpg"] * (pattern == "[x].jpg")]
    assert below(tmp_path, asked_images([lay(tmp_path, names) / pattern])) == found


def test_nothing_there_is_an_error_that_says_what_is(tmp_path: Path) -> None:
    lay(tmp_path, ["d/notes.txt", "e/a.heic"])
    for path, said in (("d", "no images found"), ("e", r"1 \.heic"), ("*.png", "nothing matches"), ("f", "no such")):
        with pytest.raises(DataError, match=said):
            asked_images([tmp_path / path])
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError):
        asked_images([tmp_path / "loop" / "x"])
    lay(tmp_path, ["e/a.jpg"])
    _, said = warned(asked_images, [tmp_path / "e"])
    assert "1 .heic" in str(said)


@pytest.mark.parametrize(
    ("name", "text", "column"),
    [
        ("a.csv", "label,Image Path\nx,1.png\ny,d/2.png\n", "auto"),
        ("a.tsv", "label\tfile\nx\t1.png\ny\td/2.png\n", "auto"),
        ("a.csv", "only\n1.png\nd/2.png\n", "auto"),
        ("a.csv", "image,other\nx,1.png\ny,d/2.png\n", "other"),
    ],
)
def test_a_column_of_a_table_is_found_by_its_name_or_named(tmp_path: Path, name: str, text: str, column: str) -> None:
    lay(tmp_path, ["1.png", "d/2.png"])
    (tmp_path / name).write_text(text)
    images = asked_images([tmp_path / name], column=column)
    assert (images.total, below(tmp_path, images)) == (2, ["1.png", "d/2.png"])


def test_a_table_without_such_a_column_is_an_error_that_names_those_it_has(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("one,two\nx,y\n")
    (tmp_path / "b.csv").write_text("image,image\nx,y\n")
    with pytest.raises(RecipeError, match="no column with a usual name") as caught:
        asked_images([tmp_path / "a.csv"])
    assert "It has one, two" in caught.value.hint and "--column" in caught.value.hint
    with pytest.raises(RecipeError, match=r"no column 'tow'\. Did you mean 'two'"):
        asked_images([tmp_path / "a.csv"], column="tow")
    with pytest.raises(DataError, match="2 columns named 'image'"):
        asked_images([tmp_path / "b.csv"])
    with pytest.raises(RecipeError, match="for tables, and no table is given"):
        asked_images([tmp_path], column="two")


def test_rows_without_an_image_stand_in_their_place(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png())
    (tmp_path / "a.csv").write_text("label,image\nx,1.png\ny,\nz,gone.png\nw\n'=q,'=q.png\n")
    (tmp_path / "=q.png").write_bytes(png())
    first, empty, gone, short, guarded = asked_images([tmp_path / "a.csv"])
    assert first.read() == png() == guarded.read()
    assert (empty.name, short.name) == ("a.csv line 3", "a.csv line 5")
    with pytest.raises(UndecodableError, match="no image in its row"):
        empty.read()
    with pytest.raises(FileNotFoundError):
        gone.read()


def test_parquet_holds_names_or_the_images_themselves(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png())
    kinds: dict[str, list[Any]] = {
        "names": ["1.png", None],
        "bytes": [png(), b""],
        "both": [{"bytes": png(), "path": "x"}, {"bytes": None, "path": ""}],
    }
    for name, column in kinds.items():
        parquet.write_table(pyarrow.table({"image": column}), tmp_path / f"{name}.parquet")
        images = asked_images([tmp_path / f"{name}.parquet"])
        first, second = images
        assert images.total == 2 and first.read() == png()
        with pytest.raises(UndecodableError):
            second.read()


def of_stdin(content: bytes) -> AskedImages:
    return asked_images(["-"], stdin=io.BytesIO(content))


@pytest.mark.parametrize("form", FORMATS)
def test_standard_input_may_be_one_image(form: str) -> None:
    (source,) = of_stdin(png(form=form))
    assert (source.name, source.read()) == ("standard input", png(form=form))


def test_standard_input_may_be_names_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lay(tmp_path, ["BMW/1.jpg", "d/2.jpg", "\udcff.jpg"]))
    images = of_stdin(b"BMW/1.jpg\r\n\nd\ngone.png\nhttp://127.0.0.1/x.png\n\xff.jpg")
    assert images.total is None
    expected = ["BMW/1.jpg", "d/2.jpg", "gone.png", "http://127.0.0.1/x.png", "\udcff.jpg"]
    assert [source.name for source in images] == expected
    with pytest.raises(DataError, match="no images found"):
        list(of_stdin(b"\n"))
    with pytest.raises(RecipeError, match="named twice"):
        asked_images(["-", "-"], stdin=io.BytesIO())


class Server(BaseHTTPRequestHandler):
    """Answers with an image, or otherwise as the path says."""

    def do_GET(self) -> None:
        kind = self.path.strip("/")
        if kind == "gone":
            self.send_error(404)
            return
        if kind in ("there", "ftp"):
            self.send_response(302)
            self.send_header("Location", "/a.png" if kind == "there" else "ftp://127.0.0.1/a.png")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if kind == "page" else "image/png")
        if kind in ("short", "huge"):
            self.send_header("Content-Length", "5000" if kind == "short" else str(2**40))
        self.end_headers()
        if kind == "slow":
            self.wfile.flush()
            time.sleep(0.6)
        self.wfile.write(png())
        for _ in range(40 if kind in ("endless", "drops") else 0):
            self.wfile.write(bytes(4096))
            self.wfile.flush()
            time.sleep(0.02 if kind == "drops" else 0)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    httpd.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that has enough hangs up
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("no_proxy", "127.0.0.1")
        yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_addresses_are_fetched_when_they_are_read(server: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"url\n{server}/a.png\n")
    images = asked_images([f"{server}/a.png", tmp_path / "a.csv", f"{server}/there"])
    assert images.total == 3
    assert [source.read() for source in images] == [png()] * 3
    assert next(source.name for source in images) == f"{server}/a.png"


@pytest.mark.parametrize(
    ("path", "said", "limits"),
    [
        ("gone", "the server says 404 Not Found", {}),
        ("page", "it is text/html, not an image", {}),
        ("short", "the connection ends after", {}),
        ("huge", "more than 256 MiB", {}),
        ("ftp", "cannot be fetched", {}),
        ("endless", "more than 0.03125 MiB", {"LARGEST": 2**15}),
        ("slow", "no answer within 0.2 seconds", {"SILENCE": 0.2}),
        ("drops", "not complete after 0.1 seconds", {"MOST_SECONDS": 0.1}),
    ],
)
def test_what_cannot_be_fetched_says_why(
    server: str, monkeypatch: pytest.MonkeyPatch, path: str, said: str, limits: dict[str, Any]
) -> None:
    for name, limit in limits.items():
        monkeypatch.setattr(addresses, name, limit)
    with pytest.raises(UndecodableError, match=said):
        addresses.fetched(f"{server}/{path}")


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/a.png", "http://[bad/a.png", "http://", "http://127.0.0.1:x/"])
def test_an_address_where_nobody_answers_says_so(address: str) -> None:
    with pytest.raises(UndecodableError, match="cannot be fetched"):
        addresses.fetched(address)

"""Artefacts that were made to do harm: paths out of the root, absurd headers, markup and terminal codes in titles."""

from __future__ import annotations

import json
import shutil
import struct
import time
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.cli import main
from llmrec.runtime.manifest import MANIFEST, sha256_file
from tests.faults.line import Line
from tests.support.bad_input.damage import resealed

SECONDS = 60  # a refusal takes milliseconds, besides the first import of torch
TITLES = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "]]></style><svg onload=alert(1)>",
          "{{ 7 * 7 }}", "\x1b]0;owned\x07\x1b[2J", "\x9b31m", "\u202emoc.live", "<a_1><b_2>", "javascript:alert(1)",
          "a\n  1  0.0  forged", "'\"--></textarea><script>")  # fmt: skip


def copied(line: Line, name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(line.root / name, tmp_path / name))


def edited(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "..", "sub/../../x.parquet"])
def test_a_manifest_that_names_files_elsewhere(name, line, tmp_path, capsys):
    catalog = copied(line, "catalog", tmp_path)
    (tmp_path / "secret").write_text("secret")
    digest = sha256_file(tmp_path / "secret")
    edited(catalog / MANIFEST, lambda manifest: manifest["files"].update({name: digest}))
    assert main(["embed", "--catalog", str(catalog), "--text-encoder", "tfidf", "--out", str(tmp_path / "v")]) == 2
    assert "is not a manifest of llmrec" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/stdin", "/proc/self/mem", "loop"])
def test_links_to_what_is_no_file(target, line, tmp_path, capsys):
    """Reading one of them would never end."""
    catalog = copied(line, "catalog", tmp_path)
    (catalog / "items.parquet").unlink()
    (catalog / "items.parquet").symlink_to(catalog / "items.parquet" if target == "loop" else target)
    started = time.monotonic()
    assert main(["embed", "--catalog", str(catalog), "--text-encoder", "tfidf", "--out", str(tmp_path / "v")]) == 2
    assert time.monotonic() - started < SECONDS
    said = capsys.readouterr().err
    assert "items.parquet" in said and ("is missing" in said or "was changed" in said or "cannot be read" in said)


def test_an_out_that_links_elsewhere_is_not_written_through(line, tmp_path, capsys):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("years of work")
    (tmp_path / "views").symlink_to(tmp_path / "theirs")
    argv = ["embed", "--catalog", str(line.root / "catalog"), "--text-encoder", "tfidf", "--overwrite"]
    assert main([*argv, "--out", str(tmp_path / "views")]) == 2
    assert "not written by llmrec" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["thesis.tex"]


HEADERS = {
    "a length beyond the file": struct.pack("<Q", 2**63) + b"{}",
    "a length of everything": struct.pack("<Q", 2**64 - 1),
    "no header": b"",
    "a header that is no JSON": struct.pack("<Q", 4) + b"{{{{",
    "a tensor beyond the file": struct.pack("<Q", 100) + json.dumps(
        {"vectors": {"dtype": "F32", "shape": [10**9, 10**3], "data_offsets": [0, 4 * 10**12]}}).ljust(100).encode(),
    "a shape that overflows": struct.pack("<Q", 120) + json.dumps(
        {"vectors": {"dtype": "F32", "shape": [2**32, 2**32, 2**32], "data_offsets": [0, 0]}}).ljust(120).encode(),
    "a negative offset": struct.pack("<Q", 120) + json.dumps(
        {"vectors": {"dtype": "F32", "shape": [1, 1], "data_offsets": [-4, 0]}}).ljust(120).encode(),
    "nested without end": struct.pack("<Q", 100_000) + b"[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("file", ["views/text.safetensors", "base/model.safetensors", "ranker/ranker.safetensors"])
def test_headers_of_absurd_size(file, header, line, tmp_path, capsys):
    """In directories whose manifest agrees with them, as a stranger would hand them out."""
    name, _, tensors = file.partition("/")
    directory = copied(line, name, tmp_path)
    tensors = tensors if (directory / tensors).is_file() else next(directory.glob("*.safetensors")).name
    (directory / tensors).write_bytes(HEADERS[header])
    resealed()(directory)
    root, out = line.root, str(tmp_path / "out")
    command = {
        "views": ["tokenize", "--catalog", str(root / "catalog"), "--views", str(directory), "--codebook-size", "4"],
        "base": ["sft", "--catalog", str(root / "catalog"), "--model", str(directory), "--max-steps", "1"],
        "ranker": ["evaluate", "--catalog", str(root / "catalog"), "--model", str(root / "checkpoint"), "--baselines",
                   str(directory)],
    }[name]  # fmt: skip
    started = time.monotonic()
    assert main([*command, "--device", "cpu", "--out", out]) == 2
    assert time.monotonic() - started < SECONDS
    said = capsys.readouterr().err
    assert str(directory) in said and "did not foresee" not in said, said


class Scripts(HTMLParser):
    """Collects what a browser would run in a page."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.found.append(tag)
        self.found += [f"{tag} {name}" for name, value in attributes
                       if name.startswith("on") or "javascript:" in (value or "").lower()]  # fmt: skip


def test_titles_do_nothing_in_pages_and_on_the_terminal(line, tmp_path, capsys, monkeypatch):
    """prepare, tokenize and recommend show titles; so does the model card of a checkpoint."""
    log = [
        f"u{user},i{item},{time}" for user in range(12) for time, item in enumerate((user + s) % 11 for s in range(5))
    ]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(log) + "\n")
    pq.write_table(pa.table({"item_id": [f"i{i}" for i in range(11)], "title": TITLES}), tmp_path / "items.parquet")
    common = ["--catalog", str(tmp_path / "catalog")]
    for argv in (
        ["prepare", "--interactions", str(tmp_path / "log.csv"), "--items", str(tmp_path / "items.parquet"), "--k-core",
         "0", "--out", str(tmp_path / "catalog")],
        ["embed", *common, "--text-encoder", "tfidf", "--collaborative-dim", "2", "--out", str(tmp_path / "views")],
        ["tokenize", *common, "--views", str(tmp_path / "views"), "--codebook-size", "4", "--num-levels", "2",
         "--device", "cpu", "--out", str(tmp_path / "sid")],
        ["extend", *common, "--sid", str(tmp_path / "sid"), "--model", "micro", "--micro-hidden", "32",
         "--micro-layers", "1", "--out", str(tmp_path / "base")],
        ["recommend", *common, "--model", str(tmp_path / "base"), "--history", "i1", "i2", "-k", "8", "--device",
         "cpu"],
    ):  # fmt: skip
        status = main(argv)
        shown = capsys.readouterr()
        assert status == 0, shown.err
        assert not set(shown.out + shown.err) & {"\x1b", "\x07", "\x9b", "\u202e"}, argv[0]
        assert "\n  1  0.0  forged" not in shown.out
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= 2
    for page in pages:
        scripts = Scripts()
        scripts.feed(page.read_text(encoding="utf-8"))
        assert scripts.found == [], page
        assert ">49<" not in page.read_text(encoding="utf-8")

"""Known datasets: their files, the places to find them, and their readers.

A file is looked up in `$LLMREC_DATA/<folder>`, then in llmrec's cache (`$LLMREC_CACHE`, else `~/.cache/llmrec`), then
downloaded into the cache. A known name means known content: the SHA-256 of the uncompressed content must be the
one below, wherever a file comes from, so that numbers on a dataset are comparable. A file may be plain or .xz.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmrec.configs.options import suggestion
from llmrec.data.public_formats import (
    Dataset,
    read_bytes,
    read_foursquare,
    read_lcrec,
    read_minionerec,
    read_movietweetings,
    read_s3rec,
)
from llmrec.runtime.console import say

GITHUB = "https://raw.githubusercontent.com"
MOVIETWEETINGS = f"{GITHUB}/RodolfoViana/MovieTweetings/004a80f1b271e900eea5a5e4b8b7ac6111db8095/snapshots/100K"
S3REC = f"{GITHUB}/aHuiWang/CIKM2020-S3Rec/49a890dcb516c9ed3126564495234ea74d5cd566/data"
GENREC = f"{GITHUB}/WncFht/GenRec/6b50a813e071f6e31b4052319f1b723ea01a934f/data/Games"
GNPR = f"{GITHUB}/wds1996/GNPR-SID/f516ff14e332025cecd41ae2f7689f70d98bd780/datasets/NYC"
DOWNLOAD_TIMEOUT_S = 60


@dataclass(frozen=True)
class File:
    """A file of a known dataset.

    Attributes:
        name: Path within the dataset's folder, without .xz.
        sha256: Hash of the uncompressed content.
        folder_url: Public address of the uncompressed file, without its name; None if no stable address is known.
    """

    name: str
    sha256: str
    folder_url: str | None = None


@dataclass(frozen=True)
class Source:
    """A known dataset: its folder, its files in the order of the reader's arguments, and the reader."""

    folder: str
    files: tuple[File, ...]
    read: Callable[..., Dataset]


KNOWN: dict[str, Source] = {
    "movietweetings": Source(
        "movietweetings-100k",
        (
            File("ratings.dat", "c0dd868c2632d10002ebc928ddc5345f33adeaa59eca52c2941c26a2c5e36fd6", MOVIETWEETINGS),
            File("movies.dat", "e63fb84bc734e3c574f135634a40d3cbafab22b8f94f5fc0b80f80d1d2076efc", MOVIETWEETINGS),
        ),
        read_movietweetings,
    ),
    "amazon14-beauty": Source(
        "amazon14-beauty",
        (
            File("Beauty.txt", "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8", S3REC),
            File("items.parquet", "9fee3658b24c7f0c24ec8e5c4638049e719981667ed858bb0e6917258dcf7218"),
        ),
        read_s3rec,
    ),
    "amazon18-games": Source(
        "amazon18-games",
        (
            File("Games.inter.json", "18a1e1841f341b8589cb087046ddf15c7c7ab846e605521a9bcf90659465eff3", GENREC),
            File("items.parquet", "f83ea21d9a84f1bdcacff2cb22ee929c20099bd7c8de43633b1828c1dd46028e"),
        ),
        read_lcrec,
    ),
    "minionerec-industrial": Source(
        "amazon18-minionerec",
        (
            File(
                "index/Industrial_and_Scientific.item.json",
                "937600c7a03652f55864a1d12d6e9fe8ca3e24ecc4e255a88216b25c5f949496",
            ),
            File(
                "Industrial_and_Scientific.train_partial.parquet",
                "dae6b896b8f2ce4de4673d891d8ba25994afc128485170fcfee7d3db33c5ae8f",
            ),
            File(
                "valid/Industrial_and_Scientific_5_2016-10-2018-11.csv",
                "12bbb02bced0bd754a8b4e0f9ca4086416e30d12b0b73a2c95e7b195dd67385a",
            ),
            File(
                "test/Industrial_and_Scientific_5_2016-10-2018-11.csv",
                "973dd1db4fd549f3f2b40a0f039dbae157ebb92c716197cc246401e4e82c3a46",
            ),
        ),
        read_minionerec,
    ),
    "foursquare-nyc": Source(
        "foursquare-nyc-gnpr",
        (
            File("train_data.csv", "c882f8368ca02cecc6eea60bed648b12a7a233a05503afdf1d113cb6cf79ae87", GNPR),
            File("test_data.csv", "7119a7f747549cb67edaa49c0a3ab5f27824bd8ae3516baebb871ecc55a49cfe", GNPR),
        ),
        read_foursquare,
    ),
}


def known_source(name: str) -> Source:
    """Find a known dataset by its name.

    Raises:
        ValueError: If there is no such dataset; the message names the nearest one.
    """
    if name not in KNOWN:
        known = ["simulated:2000x500"] if name.startswith("simulated:") else [*KNOWN, "simulated"]
        raise ValueError(
            f"unknown dataset '{name}'; {suggestion(name, known)} For your own data, give --interactions and --items."
        )
    return KNOWN[name]


def locate(source: Source) -> dict[str, Path]:
    """Find the files of a known dataset; files that are not on this machine are downloaded if possible.

    Returns:
        File name -> path of the verified file, in the order of `source.files`.

    Raises:
        ValueError: If a file is not here and cannot be downloaded, or its content is not the known one.
    """
    local = {file.name: _local(source.folder, file) for file in source.files}
    by_hand = [file.name for file in source.files if local[file.name] is None and file.folder_url is None]
    if by_hand:
        raise ValueError(f"No download is known for {by_hand} of the dataset in '{source.folder}'. {_advice(source)}")
    return {file.name: local[file.name] or _download(source, file) for file in source.files}


def cache_dir() -> Path:
    """Directory that downloads are kept in."""
    return Path(os.environ.get("LLMREC_CACHE") or Path.home() / ".cache" / "llmrec")


def _local(folder: str, file: File) -> Path | None:
    data = os.environ.get("LLMREC_DATA")
    for root in ([Path(data)] if data else []) + [cache_dir()]:
        for name in (file.name, file.name + ".xz"):
            path = root / folder / name
            if path.is_file():
                _verify(path, file, "Replace the file, or read it as your own data with --interactions.")
                return path
    return None


def _verify(path: Path, file: File, remedy: str) -> None:
    actual = hashlib.sha256(read_bytes(path)).hexdigest()
    if actual != file.sha256:
        raise ValueError(
            f"'{path}' is not the known '{file.name}': SHA-256 of the uncompressed content is {actual}, "
            f"{file.sha256} is expected. {remedy}"
        )


def _download(source: Source, file: File) -> Path:
    """Download a file into the cache, where it appears only once it is complete and verified."""
    url, target = f"{file.folder_url}/{file.name}", cache_dir() / source.folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    say(f"Downloading {url}")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        part = Path(folder) / "part"
        try:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as answer, part.open("wb") as copy:
                shutil.copyfileobj(answer, copy)
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"Downloading {url} failed ({error}). {_advice(source)}") from error
        _verify(part, file, f"The download of {url} is incomplete or has changed. {_advice(source)}")
        part.replace(target)
    return target


def _advice(source: Source) -> str:
    names = ", ".join(file.name for file in source.files)
    return (
        f"Put {names} (plain or .xz) into '{cache_dir() / source.folder}', or set LLMREC_DATA to a folder that has "
        f"'{source.folder}/'; or use --dataset simulated, which needs no files."
    )

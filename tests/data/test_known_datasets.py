"""Readers, the lookup of known datasets and its downloader; counts of the real data where they are on the machine."""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec.data import known_datasets as datasets
from llmrec.data import public_formats as readers
from llmrec.data.known_datasets import KNOWN, File, Source, known_source, locate
from llmrec.data.split import check_no_leak, in_sequence, k_core
from llmrec.sid.published import minionerec_sids

CONTENT = b"u1 a b c\nu2 b c\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Empty data and cache folders; returns the cache's."""
    monkeypatch.setenv("LLMREC_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def source(*files: File) -> Source:
    return Source("tiny", files, readers.read_s3rec)


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / "tiny" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def upstream(tmp_path: Path, content: bytes = CONTENT) -> str:
    """A file:// address that serves log.txt."""
    return put(tmp_path / "upstream", "log.txt", content).parent.as_uri()


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


def test_lookup_prefers_data_then_cache_then_download(tmp_path, cache):
    known = source(File("log.txt", SHA256, upstream(tmp_path)))
    downloaded = locate(known)["log.txt"]
    assert downloaded == cache / "tiny" / "log.txt" and downloaded.read_bytes() == CONTENT
    assert files_below(cache) == [downloaded]
    put(tmp_path / "upstream", "log.txt", b"changed since")
    assert locate(known)["log.txt"] == downloaded  # no second download
    local = put(tmp_path / "data", "log.txt.xz", lzma.compress(CONTENT))
    assert locate(known)["log.txt"] == local  # the checksum is of the uncompressed content


@pytest.mark.parametrize("content", [b"", CONTENT[:-3], CONTENT + b"more"])
def test_download_with_wrong_checksum_leaves_nothing(tmp_path, cache, content):
    with pytest.raises(ValueError, match=r"incomplete or has changed.*simulated"):
        locate(source(File("log.txt", SHA256, upstream(tmp_path, content))))
    assert files_below(cache) == []


def test_failed_download_says_what_to_do(tmp_path, cache):
    with pytest.raises(ValueError, match=r"Downloading file:.* failed .*Put log.txt .*LLMREC_DATA.*'tiny/'.*simulated"):
        locate(source(File("log.txt", SHA256, (tmp_path / "nowhere").as_uri())))
    assert files_below(cache) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_download_leaves_nothing(tmp_path, cache, monkeypatch, error):
    def half(answer, copy):
        copy.write(answer.read(5))
        raise error

    monkeypatch.setattr(datasets.shutil, "copyfileobj", half)
    with pytest.raises((ValueError, KeyboardInterrupt)):
        locate(source(File("log.txt", SHA256, upstream(tmp_path))))
    assert files_below(cache) == []


def test_a_file_without_address_fails_before_any_download(tmp_path, cache):
    with pytest.raises(ValueError, match=r"No download is known for \['items.parquet'\]"):
        locate(source(File("log.txt", SHA256, upstream(tmp_path)), File("items.parquet", SHA256)))
    assert files_below(tmp_path / "cache") == []


def test_changed_or_damaged_local_file_is_refused(tmp_path, cache):
    put(tmp_path / "data", "log.txt", b"other")
    with pytest.raises(ValueError, match=r"not the known 'log.txt'.*--interactions"):
        locate(source(File("log.txt", SHA256)))
    put(tmp_path / "data", "other.txt.xz", lzma.compress(CONTENT)[:-9])
    with pytest.raises(ValueError, match=r"other.txt.xz' is not a whole .xz file"):
        locate(source(File("other.txt", SHA256)))


def test_unknown_dataset_names_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean 'amazon14-beauty'"):
        known_source("amazon-beauty")


def test_movietweetings_format(tmp_path):
    ratings, movies = tmp_path / "ratings.dat", tmp_path / "movies.dat.xz"
    ratings.write_text("1::0104257::8::1364690142\n2::0002844::10::1364118447\n")
    movies.write_bytes(
        lzma.compress("0002844::Fantômas (2) (1913)::Crime|Drama\n0104257::Odd:: one (1992)::\n".encode())
    )
    dataset = readers.read_movietweetings(ratings, movies)
    assert dataset.interactions.rows() == [("1", "0104257", 1364690142, 8.0), ("2", "0002844", 1364118447, 10.0)]
    assert dataset.items.rows() == [
        ("0002844", "Fantômas (2)", 1913, ["Crime", "Drama"], "Fantômas (2). 1913. Crime, Drama"),
        ("0104257", "Odd:: one", 1992, None, "Odd:: one. 1992"),
    ]


def test_s3rec_and_lcrec_formats_agree(tmp_path):
    table = {"item_id": [1, 2], "asin": ["B1", "B0"], "title": ["Soap", None], "s3rec_attribute_ids": [[3], []]}
    pl.DataFrame(table).write_parquet(tmp_path / "items.parquet")
    (tmp_path / "log.txt").write_text("7 2 1\n9 1\n")
    (tmp_path / "inter.json").write_text('{"7": [2, 1], "9": [1]}')
    s3rec = readers.read_s3rec(tmp_path / "log.txt", tmp_path / "items.parquet")
    lcrec = readers.read_lcrec(tmp_path / "inter.json", tmp_path / "items.parquet")
    assert s3rec.order_only and lcrec.order_only
    assert s3rec.interactions.equals(lcrec.interactions)
    assert s3rec.interactions.rows() == [("7", "2", 0, 1.0), ("7", "1", 1, 1.0), ("9", "1", 0, 1.0)]
    assert s3rec.items.columns == ["item_id", "title", "attributes", "text"]  # no ASIN
    assert lcrec.items.rows() == [("1", "Soap", "Soap"), ("2", None, "")]


def test_foursquare_takes_the_union_and_keeps_repeats(tmp_path):
    (tmp_path / "train.csv").write_text("Uid,Pid,Time\n1,9,2012-04-03 14:00\n1,9,2012-04-03 14:01\n")
    (tmp_path / "test.csv").write_text("Uid,Pid,Time\n1,9,2012-04-03 14:01\n1,8,2012-04-03 14:02\n")
    dataset = readers.read_foursquare(tmp_path / "train.csv", tmp_path / "test.csv")
    assert dataset.interactions["item_id"].to_list() == ["9", "9", "8"]
    assert dataset.interactions["timestamp"].diff().drop_nulls().to_list() == [60, 60]
    assert dataset.items.rows() == [("9", None, ""), ("8", None, "")]


def test_text_skips_what_an_item_lacks():
    items = pl.DataFrame({"title": ["Tea ", None, None], "brand": ["", "Acme", None], "colour": ["x", "y", "z"]})
    assert readers.compose_text(items)["text"].to_list() == ["Tea", "Acme", ""]


def test_minionerec_format_folds_pairs_into_sequences(tmp_path):
    (tmp_path / "item.json").write_text(
        '{"0": {"title": "Saw", "description": "[\'sharp\', \\"wood\\"]", "brand": "", "categories": ""}}'
    )
    train = {"user_id": [7, 7, 8], "history_item_id": [[0], [0, 1], [2]], "item_id": [1, 2, 0]}
    pl.DataFrame(train).write_parquet(tmp_path / "train.parquet")
    (tmp_path / "valid.csv").write_text('user_id,history_item_id,item_id\nA7,"[1, 2]",3\nA9,[4],5\n')
    (tmp_path / "test.csv.xz").write_bytes(lzma.compress(b'user_id,history_item_id,item_id\nA7,"[2, 3]",0\n'))
    paths = [tmp_path / name for name in ("item.json", "train.parquet", "valid.csv", "test.csv.xz")]
    dataset = readers.read_minionerec(*paths)
    assert dataset.items.rows() == [("0", "Saw", None, "sharp wood", "Saw. sharp wood")]
    assert dataset.split.rows() == [
        ("A7", "train", ["0", "1"], "2", 2),
        ("A8", "train", ["2"], "0", 1),
        ("A7", "valid", ["1", "2"], "3", 3),
        ("A9", "valid", ["4"], "5", 1),
        ("A7", "test", ["2", "3"], "0", 4),
    ]
    assert [row[:3] for row in dataset.interactions.rows()][:5] == [("A7", item, i) for i, item in enumerate("01230")]
    check_no_leak(dataset.split, in_sequence(dataset.interactions))


@pytest.mark.parametrize(
    ("name", "k", "counts"),
    [
        ("movietweetings", 5, (4_333, 2_414, 68_055)),
        ("amazon14-beauty", 5, (22_363, 12_101, 198_502)),
        ("amazon18-games", 5, (50_546, 16_859, 452_989)),
        ("foursquare-nyc", 0, (1_076, 5_126, 146_865)),
    ],
)
def test_real_counts(data_dir, name, k, counts):
    dataset = KNOWN[name].read(*locate(KNOWN[name]).values())
    log = k_core(dataset.interactions, k)
    assert (log["user_id"].n_unique(), log["item_id"].n_unique(), log.height) == counts
    assert dataset.interactions["item_id"].is_in(dataset.items["item_id"].implode()).all()
    assert dataset.items["item_id"].is_unique().all()


def test_minionerec_published_rows(data_dir):
    known = KNOWN["minionerec-industrial"]
    dataset = known.read(*locate(known).values())
    counts = dict(dataset.split["split"].value_counts().rows())
    assert dataset.items.height == 3_686 and counts["valid"] == 4_532 and counts["test"] == 4_533
    check_no_leak(dataset.split, in_sequence(dataset.interactions))
    train = pl.read_parquet(data_dir / known.folder / "Industrial_and_Scientific.train_partial.parquet")
    items = sum(len(history) for history in dataset.split.filter(pl.col("split") == "train")["history"])
    assert items == train.height  # a user's n pairs are one sequence of n + 1 items, n of them before the target


def test_minionerec_sids(data_dir):
    folder = data_dir / "amazon18-minionerec"
    table = minionerec_sids(folder)
    assert table.num_items == 3_686
    assert len(np.unique(table.all_codes, axis=0)) == 3_670
    info = readers.read_bytes(next(folder.glob("info/*.txt.xz"))).decode().splitlines()
    for row, line in enumerate(info):
        sid, _, item_id = line.split("\t")
        assert item_id == table.item_ids[row]
        assert sid == "".join(f"<{letter}_{code}>" for letter, code in zip("abc", table.codes([row])[0], strict=True))
    known = KNOWN["minionerec-industrial"]
    split = known.read(*locate(known).values()).split
    targets = split.filter(pl.col("split") == "test")["target"].cast(pl.Int64).to_numpy()
    assert (table.bucket_sizes[targets] > 1).sum() == 317
    backwards = minionerec_sids(folder, table.item_ids[::-1])
    assert (backwards.codes([0]) == table.codes([3_685])).all()


def test_minionerec_sids_name_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"holds 0 files index/\*.index.json"):
        minionerec_sids(tmp_path)
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "Toys.index.json").write_text('{"0": ["<a_1>", "<b_0>"], "1": ["<a_1>", "<b_0>"]}')
    assert minionerec_sids(tmp_path).bucket_sizes.tolist() == [2, 2]
    with pytest.raises(ValueError, match=r"no SID for 1 items; first: \['7'\]"):
        minionerec_sids(tmp_path, ["1", "7"])

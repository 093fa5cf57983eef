"""The tokenize stage through the command line: SIDs, report, determinism, and errors that come before any work."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llmrec.cli import main
from llmrec.configs import TokenizeConfig
from llmrec.runtime import device
from llmrec.runtime.manifest import read_manifest
from llmrec.sid.table import SidTable
from llmrec.stages import tokenize
from llmrec.tokenizers import Random, RQKMeans, Sorted, load_tokenizer
from llmrec.tokenizers.config import sized_for, suited_codebook_size
from llmrec.views import ItemViews, View
from tests.support.prepared import run_json, write_catalog


@pytest.fixture
def prepared(tmp_path, catalog):
    return write_catalog(tmp_path / "catalog", catalog.items, catalog._split)


@pytest.fixture
def views(tmp_path, prepared) -> Path:
    """Views made elsewhere: a directory without a manifest. Items 4 and 5 are the same, nothing is known of item 11."""
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=(12, dim)).astype(np.float32) for dim in (5, 3)]
    missing = np.arange(12) == 11
    for block in vectors:
        block[5], block[11] = block[4], 0
    (tmp_path / "views").mkdir()
    ItemViews(one=View(vectors[0], missing), two=View(vectors[1], missing)).save(tmp_path / "views")
    return tmp_path / "views"


def flags(prepared, views, out, *more: object) -> list[object]:
    return ["tokenize", "--catalog", prepared.source, "--views", views, "--out", out, "--codebook-size", 4,
            "--num-levels", 2, "--device", "cpu", *more]  # fmt: skip


@pytest.mark.parametrize("collision", ["suffix_ordinal", "suffix_if_collided", "sinkhorn_reassign", "accept"])
def test_every_policy_writes_what_it_promises(capsys, tmp_path, prepared, views, collision):
    report = run_json(capsys, *flags(prepared, views, tmp_path / "sid", "--collision", collision))
    table = SidTable.load(tmp_path / "sid")
    assert table.item_ids == prepared.item_ids
    assert report["sid_sha256"] == table.sha256
    assert report["before_policy"]["shared_items"] >= 2 / 12  # items 4 and 5
    assert (report["after_policy"]["max_bucket"] == 1) == (collision != "accept") == (table.bucket_sizes.max() == 1)
    assert [level["codebook_size"] for level in report["levels"]] == table.level_sizes
    assert report["items_without_any_view"] == 1 and report["collision"] == collision
    assert {path.name for path in (tmp_path / "sid").iterdir()} == {
        "sid_table.parquet", "codebooks.safetensors", "item_tokenizer.json", "report.json", "report.html",
        "manifest.json",
    }  # fmt: skip


@pytest.mark.parametrize("method", ["simcit", "rvq", "rq_kmeans"])
def test_the_report_has_the_log_of_training(capsys, tmp_path, prepared, views, method):
    options = ["--method", method, *([] if method == "rq_kmeans" else ["--max-epochs", 3])]
    report = run_json(capsys, *flags(prepared, views, tmp_path / "sid", *options))
    page = (tmp_path / "sid" / "report.html").read_text()
    if method == "rq_kmeans":
        assert report["training"] is None and "<h2>Training" not in page
        return
    assert [[reading["step"] for reading in log] for log in report["training"]] == [[0, 3]] * (
        2 if method == "rvq" else 1
    )
    assert page.count("<h2>Training") == len(report["training"])
    if method == "simcit":
        assert set(report["training"][0][0]) == {
            "step", "loss", "temperature", "noise", "perplexity", "mismatch", "sampled_nearest", "unique_per_item",
            "attention",
        }  # fmt: skip
        counts = read_manifest(tmp_path / "sid")["counts"]
        assert report["mismatch"] == counts["mismatch"] and len(counts["mismatch"]) == 2
        assert all(f"<figcaption>{name}</figcaption>" in page for name in ("loss", "perplexity", "attention"))


def test_law_12_same_seed_same_sids_and_the_saved_tokenizer_gives_them_again(capsys, tmp_path, prepared, views):
    reports = [run_json(capsys, *flags(prepared, views, tmp_path / f"sid{i}")) for i in range(2)]
    assert reports[0]["sid_sha256"] == reports[1]["sid_sha256"]
    other = run_json(capsys, *flags(prepared, views, tmp_path / "other"), "--seed", 1)
    assert other["sid_sha256"] != reports[0]["sid_sha256"]
    tokenizer = RQKMeans.from_pretrained(tmp_path / "sid0", device="cpu")
    codes = tokenizer.encode(prepared, ItemViews.load(views, prepared)).codes
    np.testing.assert_array_equal(SidTable.load(tmp_path / "sid0").codes(range(12))[:, :2], codes)


def test_finished_runs_are_kept_and_a_changed_view_is_another_run(capsys, tmp_path, prepared, views):
    run_json(capsys, *flags(prepared, views, tmp_path / "sid"))
    written = (tmp_path / "sid" / "manifest.json").stat().st_mtime_ns
    run_json(capsys, *flags(prepared, views, tmp_path / "sid"))
    assert (tmp_path / "sid" / "manifest.json").stat().st_mtime_ns == written
    changed = ItemViews.load(views, prepared)
    vectors = np.array(changed["one"].vectors)
    vectors[0] += 1
    changed["one"] = View(vectors, changed["one"].missing, changed["one"].provenance)
    changed.save(views)
    assert main([str(part) for part in flags(prepared, views, tmp_path / "sid")]) == 2
    assert "has changed" in capsys.readouterr().err


def test_tables_are_shown_to_a_person(capsys, tmp_path, prepared, views):
    assert main([str(part) for part in flags(prepared, views, tmp_path / "sid")]) == 0
    shown = capsys.readouterr().out
    assert "Codes per level" in shown and "2 (suffix)" in shown and "its low use is no collapse" in shown


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num-levels", 0, "--iterations", 0], "num_levels is 0; at least 1 is needed; iterations is 0"),
        (["--view-weights", 1, 2], "give one weight per name"),
        (["--view-names", "one", "two", "--view-weights", 1, -2], "view_weights is [1.0, -2.0]; more than 0 is needed"),
        (["--view-names", "one", "one"], "name each view once"),
        (["--view-names", "smell"], "holds ['one', 'two']"),
        (["--num-levels", 1, "--collision", "accept"], "12 items cannot be told apart by 1 levels of 4 codes"),
        (["--device", "abacus"], "Unknown device 'abacus'"),
        (["--collision", "knn_cap"], "collision is 'knn_cap'; removed: no recipe or paper here caps shared codes"),
        (["--kmeans", "faiss"], "unknown key 'kmeans' in the command line; removed: k-means runs in torch"),
        (["--probe"], "unknown key 'probe' in the command line; removed: the probe is an experiment now"),
        (["--method", "atomc"], "unknown method 'atomc'; did you mean 'atomic'?"),
    ],
)
def test_wrong_configs_leave_nothing_behind(capsys, tmp_path, prepared, views, more, message):
    assert main([str(part) for part in flags(prepared, views, tmp_path / "sid", *more)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sid").exists() and not (tmp_path / "sid.partial").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("method: [rq_kmeans]", "method is ['rq_kmeans']; text is needed"),
        ("method: {rq_kmeans: 1}", "method is {'rq_kmeans': '1'}; text is needed"),
        ("options: {null: 1}", "unknown key 'options.None'"),
    ],
)
def test_a_file_of_wrong_kinds_is_refused(capsys, tmp_path, prepared, views, line, message):
    (tmp_path / "run.yaml").write_text(line + "\n")
    argv = flags(prepared, views, tmp_path / "sid", "--config", tmp_path / "run.yaml")
    assert main([str(part) for part in argv]) == 2
    assert message in capsys.readouterr().err


def test_views_that_cannot_give_sids_are_refused(capsys, tmp_path, prepared, views):
    argv = [str(part) for part in flags(prepared, views, tmp_path / "sid", "--codebook-size", 11)]
    assert main(argv) == 2
    assert "Lower codebook_size to at most 10" in capsys.readouterr().err  # item 5 repeats item 4, 11 has no vector
    other = write_catalog(tmp_path / "other", prepared.items.slice(0, 11), pa.Table.from_pylist([
        {"user_id": "u", "split": "train", "history": ["item-0"], "target": "item-1"}
    ]))  # fmt: skip
    assert main([str(part) for part in flags(other, views, tmp_path / "sid2")]) == 2
    assert "has 12 vectors" in capsys.readouterr().err


def without_views(prepared, out, method: str, *more: object) -> list[object]:
    return ["tokenize", "--catalog", prepared.source, "--out", out, "--method", method, *more]


@pytest.mark.parametrize("method", ["atomic", "random", "sorted"])
def test_methods_without_views(capsys, tmp_path, prepared, method):
    sizes = [] if method == "atomic" else ["--codebook-size", 4, "--num-levels", 2]
    reports = [run_json(capsys, *without_views(prepared, tmp_path / f"sid{i}", method, *sizes)) for i in range(2)]
    assert reports[0]["sid_sha256"] == reports[1]["sid_sha256"]
    table = SidTable.load(tmp_path / "sid0")
    assert table.bucket_sizes.max() == 1
    loaded = load_tokenizer(tmp_path / "sid0")
    codes = loaded.encode(prepared, ItemViews()).codes
    np.testing.assert_array_equal(table.codes(range(12))[:, : codes.shape[1]], codes)


def test_a_method_that_tells_items_apart_gets_no_suffix(capsys, tmp_path, prepared):
    run_json(capsys, *without_views(prepared, tmp_path / "sid", "atomic"))
    assert SidTable.load(tmp_path / "sid").level_sizes == [12]
    assert json.loads((tmp_path / "sid" / "report.json").read_text())["collision"] == "accept"
    suffix = ["--collision", "suffix_ordinal"]
    assert main([str(word) for word in without_views(prepared, tmp_path / "no", "atomic", *suffix)]) == 2
    assert "method 'atomic' tells items apart itself" in capsys.readouterr().err
    run_json(capsys, *without_views(prepared, tmp_path / "random", "random", "--codebook-size", 4, "--num-levels", 2))
    assert json.loads((tmp_path / "random" / "report.json").read_text())["collision"] == "suffix_ordinal"


def test_sorted_items_share_prefixes_with_their_neighbours(prepared):
    """12 items over 16 SIDs: place p has cell 16 p / 12, written in base 4."""
    codes = Sorted(num_levels=2, codebook_size=4).fit(prepared, ItemViews()).encode(prepared, ItemViews()).codes
    order = sorted(range(12), key=lambda row: prepared.titles[row])
    cells = [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14]
    assert [tuple(codes[row]) for row in order] == [divmod(cell, 4) for cell in cells]


def test_options_of_another_method_are_unknown(capsys, tmp_path, prepared):
    argv = [str(part) for part in without_views(prepared, tmp_path / "sid", "atomic", "--codebook-size", 4)]
    assert main(argv) == 2
    assert "unknown key 'codebook_size'" in capsys.readouterr().err
    argv = [
        str(part) for part in without_views(prepared, tmp_path / "sid", "random", "--collision", "sinkhorn_reassign")
    ]
    assert main(argv) == 2
    assert "needs to know how far items are from codes" in capsys.readouterr().err
    argv = [str(part) for part in without_views(prepared, tmp_path / "sid", "rq_kmeans")]
    assert main(argv) == 2
    assert "method 'rq_kmeans' needs views" in capsys.readouterr().err


def test_options_of_the_method_stand_in_a_block_or_are_flags_that_win(capsys, tmp_path, prepared, views):
    stage = f"catalog: {prepared.source}\nviews: {views}\ndevice: cpu\nmethod: rq_kmeans\n"
    block = "options:\n  num_levels: 2\n  codebook_size: 3\n"
    (tmp_path / "run.yaml").write_text(stage + block)
    (tmp_path / "flat.yaml").write_text(stage + "num_levels: 2\ncodebook_size: 4\n")
    given = ["tokenize", "--config", tmp_path / "run.yaml", "--codebook-size", 4, "--out", tmp_path / "yaml"]
    flagged = run_json(capsys, *flags(prepared, views, tmp_path / "flags"))
    assert run_json(capsys, *given)["sid_sha256"] == flagged["sid_sha256"]
    options = read_manifest(tmp_path / "yaml")["config"]["options"]
    assert options == read_manifest(tmp_path / "flags")["config"]["options"]
    assert options == {
        "view_weights": None, "num_levels": 2, "codebook_size": 4, "iterations": 25, "balance": "none",
    }  # fmt: skip
    argv = ["tokenize", "--config", str(tmp_path / "flat.yaml"), "--out", str(tmp_path / "flat")]
    assert main(argv) == 2
    assert "is an option of the block 'options'; move it below `options:`" in capsys.readouterr().err


def test_a_config_made_in_python_says_which_options_a_method_has(tmp_path, prepared):
    given = {"out": str(tmp_path / "sid"), "catalog": prepared.source, "method": "random"}
    with pytest.raises(ValueError, match="method 'random' has no option 'codebok_size'; did you mean 'codebook_size'"):
        tokenize.main(TokenizeConfig(**given, options={"codebok_size": 4}))
    with pytest.raises(ValueError, match=r"unknown key 'num_groups' in .*; it is now called 'num_clusters'"):
        tokenize.main(TokenizeConfig(**given | {"method": "letter"}, options={"num_groups": 4}))
    with pytest.raises(ValueError, match="num_levels is 0; at least 1 is needed; codebook_size is 'x'; an integer"):
        tokenize.main(TokenizeConfig(**given, options={"num_levels": 0, "codebook_size": "x"}))


def test_a_collapsed_level_ends_the_stage_unless_allowed(capsys, tmp_path, prepared, monkeypatch):
    monkeypatch.setattr(Random, "codes", lambda self, catalog: np.zeros((12, 2), np.int64))
    argv = without_views(prepared, tmp_path / "sid", "random", "--codebook-size", 20, "--num-levels", 2)
    assert main([str(part) for part in argv]) == 2
    assert "level 0 uses 1 of 12 codes, level 1 uses 1 of 12 codes" in capsys.readouterr().err
    assert run_json(capsys, *argv, "--allow-collapse")["before_policy"]["max_bucket"] == 12


def test_compare_sets_finished_directories_beside_each_other(capsys, tmp_path, prepared, views):
    for name, size in (("small", 3), ("large", 4)):
        run_json(capsys, *flags(prepared, views, tmp_path / name), "--codebook-size", size)
    both = [tmp_path / "small", tmp_path / "large"]
    compared = run_json(capsys, "tokenize", "--compare", *both)
    assert compared["collision rate"].keys() == {str(path) for path in both}
    assert main([str(part) for part in ("tokenize", "--compare", *both)]) == 0
    assert "Comparison of semantic IDs" in capsys.readouterr().out
    for wrong, message in (([both[0]], "two different directories are needed"), ([*both, tmp_path], "manifest.json")):
        assert main([str(part) for part in ("tokenize", "--compare", *wrong)]) == 2
        assert message in capsys.readouterr().err
    assert main(["tokenize"]) == 2
    assert "'out' is required; 'catalog' is required" in capsys.readouterr().err


def test_append_gives_new_items_semantic_ids_and_moves_none(capsys, tmp_path, prepared, views):
    split = pa.Table.from_pylist([{"user_id": "u", "split": "train", "history": ["item-0"], "target": "item-1"}])
    fewer = write_catalog(tmp_path / "fewer", prepared.items.slice(0, 9), split)
    known = ItemViews.load(views, prepared)
    (tmp_path / "known").mkdir()
    ItemViews({name: View(v.vectors[:9], v.missing[:9]) for name, v in known.items()}).save(tmp_path / "known")
    run_json(capsys, *flags(fewer, tmp_path / "known", tmp_path / "old"))
    again = ["tokenize", "--append", tmp_path / "old", "--catalog", prepared.source, "--views", views]
    report = run_json(capsys, *again, "--out", tmp_path / "new")
    old, new = SidTable.load(tmp_path / "old"), SidTable.load(tmp_path / "new")
    assert new.item_ids == prepared.item_ids and new.bucket_sizes.max() == 1
    np.testing.assert_array_equal(new.codes(range(9)), old.codes(range(9)))
    assert report["notes"][0] == "3 new items; 9 keep their semantic IDs." and report["method"] == "rq_kmeans"
    further = ["tokenize", "--append", tmp_path / "new", "--catalog", fewer.source, "--views", tmp_path / "known"]
    assert main([str(part) for part in (*further, "--out", tmp_path / "less")]) == 2
    assert "lacks 3 of 12 published items" in capsys.readouterr().err
    same = ("--num-levels", 2, "--codebook-size", 4, "--method", "rq_kmeans", "--view-names", "one", "two")
    run_json(capsys, *again, *same, "--out", tmp_path / "same")
    other = ("--num-levels", 3, "--collision", "accept", "--view-names", "one")
    assert main([str(part) for part in (*again, *other, "--out", tmp_path / "other")]) == 2
    shown = capsys.readouterr().err
    assert "view_names is ['one'], there ['one', 'two']" in shown and "num_levels is 3, there 2" in shown
    assert "collision is 'accept', there 'suffix_ordinal'" in shown


@pytest.mark.parametrize(("items", "size"), [(2414, 128), (1050, 128), (500, 32), (30, 4), (5, 4), (10**6, 128)])
def test_a_code_of_a_suited_codebook_has_about_eight_items_or_more(items, size):
    assert suited_codebook_size(items, 128) == size


@pytest.mark.parametrize(("items", "size"), [(384, 48), (383, 32), (48, 4)])
def test_a_default_that_is_no_power_of_two_stays_where_there_are_enough_items(items, size):
    assert suited_codebook_size(items, 48) == size


@pytest.mark.parametrize("method", ["rq_kmeans", "opq", "rvq"])
def test_the_defaults_suit_a_small_catalogue_and_say_so(method, capsys, tmp_path, prepared, views):
    given = [str(part) for part in ("tokenize", "--catalog", prepared.source, "--views", views, "--method", method)]
    assert main([*given, "--device", "cpu", "--out", str(tmp_path / "sid"), "--num-levels", "2"]) == 0
    said = capsys.readouterr().err
    assert "4 codes per level instead of 256, because 12 items are few" in said and "--codebook-size" in said
    manifest = read_manifest(tmp_path / "sid")
    assert manifest["config"]["options"]["codebook_size"] == 4, "a later run with the size given is another run"
    assert main([*given, "--device", "cpu", "--out", str(tmp_path / "sid"), "--num-levels", "2"]) == 0


@pytest.mark.parametrize("method", ["atomic", "fsq", "hierarchical_kmeans", "gaoq", "p5_cid"])
def test_methods_without_a_codebook_size_stay_as_they_are(method):
    config = TokenizeConfig(out="o", catalog="c", method=method)
    assert sized_for(config, 12) == config


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("rq_kmeans", ["--balance", "capacity"]),
        ("hierarchical_kmeans", []),
        ("gaoq", []),
        ("letter", []),
        ("rec_forest", []),
    ],
)
def test_vectors_that_do_not_fit_are_refused_before_they_are_read(capsys, tmp_path, monkeypatch, method, more):
    """10^7 x 384: a file of 15 GB, of which the head alone is written. That there is no catalogue is said later."""
    (tmp_path / "views").mkdir()
    path, sizes = tmp_path / "views" / "text.safetensors", (10**7 * 384 * 4, 10**7)
    head = json.dumps({
        "vectors": {"dtype": "F32", "shape": [10**7, 384], "data_offsets": [0, sizes[0]]},
        "missing": {"dtype": "BOOL", "shape": [10**7], "data_offsets": [sizes[0], sum(sizes)]},
    }).encode()  # fmt: skip
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    os.truncate(path, path.stat().st_size + sum(sizes))
    command = ["tokenize", "--catalog", "absent", "--views", str(tmp_path / "views"), "--out", str(tmp_path / "out"),
               "--device", "cpu", "--method", method]  # fmt: skip
    monkeypatch.setattr(device, "memory_of", lambda _: 16 * 10**9)
    assert main([*command, *more]) == 2
    said = capsys.readouterr().err
    assert f"'{method}' holds the vectors of all 10,000,000 items" in said and "has 16.0 GB" in said
    assert "30.7 GB (30,720,000,000 bytes)" in said
    monkeypatch.setattr(device, "memory_of", lambda _: 64 * 10**9)
    assert main([*command, *more]) == 2 and "'absent' is not a directory" in capsys.readouterr().err


def test_a_sample_of_the_vectors_is_not_refused(capsys, tmp_path, prepared, views, monkeypatch):
    monkeypatch.setattr(device, "memory_of", lambda _: 1)
    assert main([str(word) for word in flags(prepared, views, tmp_path / "sid")]) == 0
    assert main([str(word) for word in flags(prepared, views, tmp_path / "even", "--balance", "onerec")]) == 2
    assert "holds the vectors of all 12 items" in capsys.readouterr().err

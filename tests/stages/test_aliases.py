"""Items with aliases through the stages: tokenize, append, extend, sft, evaluate, recommend, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llmrec.cli import main
from llmrec.configs import DpoConfig, ExtendConfig
from llmrec.recommender import Recommender
from llmrec.sid.aliases import aliases_of, join_aliases
from llmrec.sid.table import SidTable
from llmrec.stages import dpo, extend
from llmrec.views import ItemViews, View
from tests.conftest import CODES
from tests.support.extended import extended, fine_tune, same_weights, write_sid
from tests.support.prepared import run_json, write_catalog

ITEM_IDS = [f"item-{row}" for row in range(12)]
DISTINCT = np.array([[row // 4, row % 4, 0] for row in range(12)])
TURNED = DISTINCT[np.random.default_rng(0).permutation(12)]
LEARNING = {"train": "full", "max_steps": 80, "learning_rate": 5e-3, "batch_size": 24, "max_history": 10}
HISTORY = ["item-3", "item-4", "item-5"]


def aliased(share_codes: bool = False) -> SidTable:
    return join_aliases(ITEM_IDS, [DISTINCT, TURNED], [3, 4, 1], share_codes)


@pytest.fixture(scope="module")
def tuned_aliases(toy, tmp_path_factory) -> Path:
    """Checkpoint of the sft stage with two aliases; only read."""
    root = tmp_path_factory.mktemp("aliases")
    fine_tune(root / "sft", toy[0], extended(root, aliased()), **LEARNING)
    return root / "sft"


def test_it_learns_what_comes_next_in_both_aliases(capsys, tmp_path, toy, tuned_aliases):
    flags = [
        "--model",
        tuned_aliases,
        "--device",
        "cpu",
        "--baselines",
        "popularity",
        "--k",
        "3",
        "--exact-examples",
        "5",
    ]
    metrics = run_json(capsys, "evaluate", *flags, "--catalog", toy[0], "--out", tmp_path / "test")
    assert metrics["systems"]["ours"]["plain"]["ndcg@3"] > 0.8
    assert metrics["exact"]["plain"]["found"]["found@3"] == 1


def test_the_command_and_python_answer_alike(capsys, tuned_aliases):
    flags = ["--model", tuned_aliases, "--history", *HISTORY, "--k", "5", "--device", "cpu"]
    items = run_json(capsys, "recommend", *flags)["users"][0]["items"]
    recommender = Recommender.from_pretrained(tuned_aliases, device="cpu")
    item_ids, scores = recommender.recommend([HISTORY], k=5)
    assert [item["item_id"] for item in items] == item_ids[0] and len(set(item_ids[0])) == 5
    np.testing.assert_allclose([item["score"] for item in items], scores[0], atol=1e-5)
    assert item_ids[0][0] == "item-6"


def test_one_alias_trains_as_plain_semantic_ids(tmp_path, toy):
    outs = []
    for name, table in (
        ("one", join_aliases(ITEM_IDS, [np.array(CODES)], [4, 4, 4], share_codes=False)),
        ("plain", SidTable(ITEM_IDS, CODES, level_sizes=[4, 4, 4])),
    ):
        outs.append(tmp_path / name / "sft")
        fine_tune(outs[-1], toy[0], extended(tmp_path / name, table))
    assert same_weights(*outs)


def test_tasks_write_semantic_ids_in_an_alias_too(tmp_path, toy):
    counts = fine_tune(tmp_path / "sft", toy[0], extended(tmp_path, aliased()), tasks=["sid_to_title", "title_to_sid"])
    assert counts["task_examples"] > 0


def test_one_tree_trains_as_hierarchical_kmeans_bit_for_bit(capsys, tmp_path, toy):
    vectors = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
    (tmp_path / "views").mkdir()
    ItemViews(one=View(vectors, np.zeros(12, bool))).save(tmp_path / "views")
    source = ["--catalog", toy[0], "--views", tmp_path / "views", "--device", "cpu", "--collision", "accept"]
    trees = {"hierarchical_kmeans": [], "rec_forest": ["--num-trees", 1, "--features", 1]}
    for method, options in trees.items():
        run_json(capsys, "tokenize", "--method", method, *options, *source, "--out", tmp_path / method)
        fine_tune(
            tmp_path / f"sft-{method}", toy[0], extended(tmp_path / f"llm-{method}", SidTable.load(tmp_path / method))
        )
    assert same_weights(*(tmp_path / f"sft-{method}" for method in trees))


@pytest.mark.parametrize(
    "method",
    [
        ("rq_vae", "--aliases", 2, "--max-epochs", 400, "--patience", 3, "--codebook-size", 4),
        ("rec_forest", "--num-trees", 2),
    ],
)
def test_append_gives_new_items_a_semantic_id_in_each_alias(capsys, tmp_path, method):
    vectors = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    ids = [f"item-{row}" for row in range(40)]
    split = pa.Table.from_pylist([{"user_id": "u", "split": "train", "history": ids[:1], "target": ids[1]}])
    sources = {}
    for name, count in (("old", 36), ("new", 40)):
        items = pa.table({"item_id": ids[:count], "title": ids[:count], "text": ids[:count]})
        sources[name] = ["--catalog", write_catalog(tmp_path / name, items, split).source]
        (tmp_path / f"{name}-views").mkdir()
        ItemViews(one=View(vectors[:count], np.zeros(count, bool))).save(tmp_path / f"{name}-views")
        sources[name] += ["--views", tmp_path / f"{name}-views", "--device", "cpu"]
    sizes = ["--num-levels", 2, "--method", *method]
    report = run_json(capsys, "tokenize", *sources["old"], *sizes, "--out", tmp_path / "sid")
    assert report["notes"][0] == "Each item has 2 semantic IDs; this report is of the first."
    assert report["num_items"] == 36 and report["before_policy"]["collision_rate"] < 1
    assert all(level["codebook_size"] <= 6 for level in report["levels"])  # of one alias, not of all
    run_json(capsys, "tokenize", *sources["new"], "--append", tmp_path / "sid", "--out", tmp_path / "grown")
    old, new = (aliases_of(SidTable.load(tmp_path / name)) for name in ("sid", "grown"))
    assert len(old) == len(new) == 2
    for before, after in zip(old, new, strict=True):
        assert (before.all_codes == after.codes(range(36))).all() and after.bucket_sizes.max() == 1
    assert (old[0].all_codes != old[1].all_codes).any()
    base = ["extend", "--model", "micro", "--micro-layers", 1, "--micro-hidden", 32]
    run_json(capsys, *base, "--sid", tmp_path / "sid", "--catalog", tmp_path / "old", "--out", tmp_path / "base")
    run_json(capsys, "extend", "--model", tmp_path / "base", "--sid", tmp_path / "grown", "--out", tmp_path / "more")
    other = join_aliases(ids, [new[0].all_codes], new[0].level_sizes, share_codes=True)
    write_sid(tmp_path / "single", other)
    assert main(["extend", "--model", str(tmp_path / "base"), "--sid", str(tmp_path / "single"), "--out", "x"]) == 2
    assert "an item has 2 semantic IDs in the checkpoint, 1 in the SID table" in capsys.readouterr().err


def test_what_trains_one_semantic_id_of_each_item_refuses(tmp_path, toy, tuned_aliases):
    model = str(tuned_aliases)
    with pytest.raises(ValueError, match="dpo needs one semantic ID of each item, but each has 2"):
        dpo.main(DpoConfig(out=str(tmp_path / "dpo"), catalog=str(toy[0]), model=model, device="cpu"))
    sid = str(write_sid(tmp_path / "sid", aliased()))
    refusals = (
        ({"item_rows": True}, "item_rows needs one"),
        ({"head": "codes"}, "several semantic IDs"),
        ({"head": "projection"}, "head projection needs one"),
    )
    for options, message in refusals:
        with pytest.raises(ValueError, match=message):
            extend.main(ExtendConfig(out=str(tmp_path / "base"), sid=sid, model="micro", **options))


def test_policies_that_end_semantic_ids_early_are_refused(capsys, tmp_path):
    flags = ["--catalog", "c", "--views", "v", "--out", str(tmp_path / "sid"), "--collision", "suffix_if_collided"]
    assert main(["tokenize", "--method", "rq_vae", "--aliases", "2", *flags]) == 2
    assert "could be the beginning of another's; use suffix_ordinal" in capsys.readouterr().err

"""From keywords to recommendations with the micro model: every answer is an item, and what does not go is refused."""

import json

import pyarrow as pa
import pytest

from llmrec import Recommender, SidTable
from llmrec.cli import main
from llmrec.data.catalog import Catalog
from tests.conftest import TITLES
from tests.support.extended import fine_tune, losses, toy_sequences
from tests.support.prepared import run_json, write_catalog
from tests.support.titles import write_bpe_llm

pytestmark = pytest.mark.usefixtures("one_thread")


def llmrec(*words) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def line(tmp_path_factory, toy):
    """Catalogue and the outputs of tokenize and sft; only read."""
    root, catalog = tmp_path_factory.mktemp("keywords"), toy[0]
    words = ["--method", "keywords", "--llm", "micro", "--min-words", 1, "--collision", "accept"]
    assert llmrec("tokenize", *words, "--catalog", catalog, "--out", root / "sid") == 0
    small = ["--micro-layers", 2, "--micro-hidden", 64]
    assert llmrec("extend", "--sid", root / "sid", "--model", "micro", "--catalog", catalog, *small,
                  "--out", root / "base") == 0  # fmt: skip
    fine_tune(root / "sft", catalog, root / "base", train="full", max_steps=50, learning_rate=5e-3, batch_size=24,
              max_history=6, normalize_over="vocabulary")  # fmt: skip
    return {"catalog": catalog, "sid": root / "sid", "tuned": root / "sft"}


def test_the_report_counts_who_needed_further_words(line):
    report, table = json.loads((line["sid"] / "report.json").read_text()), SidTable.load(line["sid"])
    names = [table.words.text(table.codes([row])).split() for row in range(12)]
    assert {name[-1] for name in names} == {"</s>"}
    assert report["items_with_further_words"] == sum(len(name) > 2 for name in names) == 4
    assert (report["items_with_a_number"], report["collision"]) == (0, "accept")


def test_every_answer_is_an_item_and_the_next_one_is_learned(line):
    assert losses(line["tuned"])[-1] < losses(line["tuned"])[0] / 5
    recommender = Recommender.from_pretrained(line["tuned"], device="cpu")
    items = toy_sequences()[:12]
    answers, _ = recommender.recommend([[f"item-{row}" for row in own[:3]] for own in items], k=12, exclude=None)
    assert {len(set(found)) for found in answers} == {12}
    assert sum(found[0] == f"item-{(own[2] + 1) % 12}" for found, own in zip(answers, items, strict=True)) >= 10


def test_evaluate_answers_by_keywords(line, capsys, tmp_path):
    found = run_json(capsys, "evaluate", "--catalog", line["catalog"], "--model", line["tuned"], "--device", "cpu",
                     "--baselines", "popularity", "--out", tmp_path / "out")  # fmt: skip
    ours = found["systems"]["ours"]["seen_excluded"]
    assert ours["invalid_rate"] == 0 and ours["ndcg@5"] > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--llm", "micro", "--collision", "suffix_ordinal"],
            "method 'keywords' tells items apart itself; set collision to accept",
        ),
        (["--llm", "micro", "--min-words", 11], "min_words is 11; at most 10 is allowed"),
        (["--llm", "no/where", "--collision", "accept"], "cannot be loaded by AutoTokenizer"),
        (["--collision", "accept"], "'options.llm' is required"),
    ],
)
def test_bad_options_are_refused_in_one_line(line, tmp_path, capsys, options, message):
    assert llmrec("tokenize", "--method", "keywords", *options, "--catalog", line["catalog"],
                  "--out", tmp_path / "out") == 2  # fmt: skip
    assert message in capsys.readouterr().err


def test_new_items_are_appended_and_old_ones_keep_their_words(line, tmp_path, capsys):
    llm, old = write_bpe_llm(tmp_path / "llm"), Catalog.load(line["catalog"])
    titles = [*TITLES, "red tea", "plum juice"]  # the second is an old title
    items = pa.table({"item_id": [*old.item_ids, "new-1", "new-2"], "title": titles, "text": titles})
    grown = write_catalog(tmp_path / "grown", items, old._split).source
    first = ["--method", "keywords", "--llm", llm, "--collision", "accept", "--catalog", line["catalog"]]
    run_json(capsys, "tokenize", *first, "--out", tmp_path / "old")
    append = ["--append", tmp_path / "old", "--catalog", grown, "--out", tmp_path / "new"]
    assert run_json(capsys, "tokenize", *append)["notes"][0] == "2 new items; 12 keep their words."
    before, after = SidTable.load(tmp_path / "old"), SidTable.load(tmp_path / "new")
    assert (after.codes(range(12)) == before.codes(range(12))).all()
    assert [after.words.text(after.codes([row])).strip() for row in (12, 13)] == ["red tea;", "juice plum 2;"]

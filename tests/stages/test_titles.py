"""From titles to recommendations: tokenize, extend, sft, evaluate and recommend with items written in words."""

import json
import math

import pyarrow as pa
import pytest
import torch

from llmrec import Recommender, SidConfig, SidTable
from llmrec.cli import main
from llmrec.data.catalog import Catalog
from llmrec.decoding.grounding.popularity import POWERS
from llmrec.model.checkpoint import load_model, load_tokenizer
from llmrec.sid.table import EMPTY
from llmrec.sid.tokens.level_words import LevelWords
from tests.conftest import TITLES
from tests.stages.test_sft_teacher import Strider, finished
from tests.support.extended import fine_tune, losses, same_weights, toy_sequences, write_sid
from tests.support.prepared import run_json, write_catalog
from tests.support.titles import write_bpe_llm

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def line(tmp_path_factory, toy):
    """Catalogue, the LLM as it comes, and the output of tokenize and extend; only read."""
    root = tmp_path_factory.mktemp("titles")
    llm = write_bpe_llm(root / "llm")
    catalog = toy[0]
    for argv in (
        [
            "tokenize",
            "--method",
            "titles",
            "--llm",
            llm,
            "--collision",
            "accept",
            "--catalog",
            catalog,
            "--out",
            root / "sid",
        ],
        ["extend", "--sid", root / "sid", "--model", llm, "--out", root / "base"],
    ):
        assert main([str(part) for part in argv]) == 0
    return {"catalog": catalog, "llm": llm, "sid": root / "sid", "base": root / "base"}


@pytest.fixture(scope="module")
def tuned(line, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned_titles") / "sft"
    fine_tune(out, line["catalog"], line["base"], train="full", max_steps=50, learning_rate=1e-2, batch_size=24,
              max_history=6, normalize_over="vocabulary")  # fmt: skip
    return out


def test_a_model_gets_no_new_token_and_no_new_weight(line):
    assert same_weights(line["llm"], line["base"])
    assert len(load_tokenizer(line["base"])) == len(load_tokenizer(line["llm"]))
    sid_config, table, _ = SidConfig.load(line["base"])
    assert sid_config.length_penalty == 0
    assert sid_config.vocabulary.words == table.words == SidTable.load(line["sid"]).words
    report = json.loads((line["sid"] / "report.json").read_text())
    assert (report["collision"], report["told_apart_titles"], report["truncated_titles"]) == ("accept", 0, 0)


def test_the_model_learns_the_next_title(tuned, line):
    assert losses(tuned)[-1] < losses(tuned)[0] / 2
    recommender = Recommender.from_pretrained(tuned, device="cpu")
    histories = [[f"item-{row}" for row in items[:3]] for items in toy_sequences()[:12]]
    item_ids, scores = recommender.recommend(histories, k=3)
    asked = [f"item-{(items[2] + 1) % 12}" for items in toy_sequences()[:12]]
    assert [answers[0] for answers in item_ids] == asked
    assert all(row == sorted(row, reverse=True) for row in scores)


def test_scores_are_log_probabilities_of_titles(tuned):
    recommender = Recommender.from_pretrained(tuned, device="cpu")
    table, vocabulary = recommender.table, recommender.sid_config.vocabulary
    history = [0, 1, 2]
    item_ids, scores = recommender.recommend([[f"item-{row}" for row in history]], k=9)
    assert len(set(item_ids[0])) == 9
    prompt, _ = recommender.sid_config.encode([history], table, recommender.tokenizer)
    assert recommender.tokenizer.decode(prompt[0]).endswith("oldest first: red apple; green apple; ripe pear;")
    for item_id, score in zip(item_ids[0], scores[0], strict=True):
        tokens = vocabulary.token_ids(table.codes([table.row_of[item_id]]))[0]
        tokens = torch.from_numpy(tokens[tokens != EMPTY])
        with torch.no_grad():
            logits = recommender.model(torch.cat([prompt[0], tokens])[None]).logits[0, prompt.shape[1] - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(1, tokens[:, None])
        assert score == pytest.approx(float(log_probs.sum()), abs=1e-4)


def test_evaluate_and_recommend_answer_by_titles(tuned, line, capsys, tmp_path):
    base = ["evaluate", "--catalog", line["catalog"], "--model", tuned, "--device", "cpu", "--baselines", "popularity"]
    by_mean = run_json(capsys, *base, "--out", tmp_path / "mean", "--length-penalty", 1)
    by_sum = run_json(capsys, *base, "--out", tmp_path / "sum", "--exact-examples", 4)
    mean, total = (result["systems"]["ours"]["seen_excluded"] for result in (by_mean, by_sum))
    assert total["recall@5"] == 1
    assert mean["invalid_rate"] == total["invalid_rate"] == 0
    assert by_mean["systems"]["ours"]["plain"]["ndcg@5"] != by_sum["systems"]["ours"]["plain"]["ndcg@5"]
    assert by_sum["exact"]["seen_excluded"]["found"]["found@5"] == 1
    answer = run_json(
        capsys, "recommend", "--model", tuned, "--history", "item-0", "item-1", "--k", 2, "--device", "cpu"
    )
    assert "item-2" in json.dumps(answer)


def test_a_title_that_is_written_freely_finds_its_item(tuned, line, capsys, tmp_path):
    recommender = Recommender.from_pretrained(tuned, device="cpu", rank="ground")
    histories = [[f"item-{row}" for row in items[:3]] for items in toy_sequences()[:12]]
    item_ids, scores = recommender.recommend(histories, k=12, exclude=None)
    assert [answers[0] for answers in item_ids] == [f"item-{(items[2] + 1) % 12}" for items in toy_sequences()[:12]]
    assert {len(set(answers)) for answers in item_ids} == {12} and scores[0][0] == 0
    base = ["evaluate", "--catalog", line["catalog"], "--model", tuned, "--device", "cpu", "--baselines", "popularity"]
    grounded = run_json(capsys, *base, "--out", tmp_path / "ground", "--rank", "ground")
    assert grounded["rank"] == "ground" and grounded["popularity_power"] in POWERS
    assert grounded["systems"]["ours"]["seen_excluded"]["recall@5"] > 0.9


def test_a_saved_recommender_answers_alike(tuned, tmp_path):
    recommender = Recommender.from_pretrained(tuned, device="cpu")
    recommender.save_pretrained(tmp_path / "copy")
    again = Recommender.from_pretrained(tmp_path / "copy", device="cpu")
    history = [["item-3", "item-4"]]
    assert again.recommend(history, k=4) == recommender.recommend(history, k=4)
    filtered, _ = again.recommend(history, k=3, allow=["item-7", "item-8", "item-9"])
    assert set(filtered[0]) == {"item-7", "item-8", "item-9"}


def test_a_merged_lora_scores_like_the_adapter_and_no_embedding_trains(line, tmp_path):
    fine_tune(tmp_path / "sft", line["catalog"], line["base"], normalize_over="vocabulary", learning_rate=1e-2)
    before, after = load_model(line["base"]), load_model(tmp_path / "sft")
    assert before.get_input_embeddings().weight.equal(after.get_input_embeddings().weight)
    assert not same_weights(line["base"], tmp_path / "sft")


def test_a_teacher_teaches_along_the_trie_of_titles_and_without_weight_changes_nothing(line, tmp_path, monkeypatch):
    monkeypatch.setattr("llmrec.training.distil.distillation.load_teacher", lambda *_: Strider())
    taught = {"teacher": [str(finished(tmp_path / "taught", "teach"))]}
    runs = {"plain": {}, "off": {**taught, "teacher_weight": 0.0}, "on": {**taught, "drawn_answers": True}}
    for name, options in runs.items():
        fine_tune(tmp_path / name, line["catalog"], line["base"], train="full", max_steps=2,
                  normalize_over="vocabulary", **options)  # fmt: skip
    assert same_weights(tmp_path / "plain", tmp_path / "off")
    assert not same_weights(tmp_path / "plain", tmp_path / "on")


def test_preferences_are_learned_in_words(tuned, line, capsys, tmp_path):
    given = ["--catalog", line["catalog"], "--model", tuned, "--max-steps", 1, "--batch-size", 4, "--device", "cpu"]
    dpo = run_json(capsys, "dpo", *given, "--out", tmp_path / "dpo")
    assert dpo["loss"] == pytest.approx(math.log(4), abs=1e-4)  # of one title against three, where nothing has moved
    run_json(capsys, "grpo", *given, "--num-generations", 4, "--out", tmp_path / "grpo")
    item_ids, _ = Recommender.from_pretrained(tmp_path / "grpo", device="cpu").recommend([["item-0"]], k=11)
    assert sorted(item_ids[0]) == sorted(f"item-{row}" for row in range(1, 12))


def test_one_pass_has_the_loss_of_one_row_per_target(line, tmp_path):
    """Law 9: the first loss of both ways to cut, over all examples at once and without a step before it."""
    found = []
    for targets in ("every_item", "last_item"):
        fine_tune(tmp_path / targets, line["catalog"], line["base"], normalize_over="vocabulary", targets=targets,
                  max_steps=1, batch_size=128, learning_rate=1e-9, max_history=10)  # fmt: skip
        found.append(losses(tmp_path / targets)[0])
    assert found[0] == pytest.approx(found[1], abs=1e-4)


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("sft", ["--normalize-over", "level"], "items that are written in words, which all words of the model compete"),
        ("sft", ["--train", "sid_tokens", "--normalize-over", "vocabulary"], "so no token is new; set train to lora"),
        ("evaluate", ["--rank", "items"], "This checkpoint has no item rows"),
        ("extend", ["--item-rows"], "which have vectors already; leave out item_rows"),
        ("extend", ["--spare-codes", 3], "which have vectors already; leave out spare_codes"),
        (
            "tokenize",
            ["--collision", "suffix_ordinal"],
            "method 'titles' tells items apart itself; set collision to accept",
        ),
        ("tokenize", ["--max-tokens", 3, "--collision", "accept"], "max_tokens is 3; at least 8"),
    ],
)
def test_options_that_words_do_not_go_with_are_refused(line, tmp_path, capsys, stage, options, message):
    given = {
        "sft": ["--catalog", line["catalog"], "--model", line["base"], "--device", "cpu"],
        "evaluate": ["--catalog", line["catalog"], "--model", line["base"], "--device", "cpu"],
        "extend": ["--sid", line["sid"], "--model", line["llm"]],
        "tokenize": ["--method", "titles", "--llm", line["llm"], "--catalog", line["catalog"]],
    }[stage]
    assert main([str(part) for part in (stage, *given, *options, "--out", tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_new_items_are_appended_without_a_new_token_and_can_be_recommended(tuned, line, capsys, tmp_path):
    old = Catalog.load(line["catalog"])
    titles = [*TITLES, "red tea", "plum juice", "jasmine tea"]  # the second is an old title
    items = pa.table({"item_id": [*old.item_ids, "new-1", "new-2", "new-3"], "title": titles, "text": titles})
    grown = write_catalog(tmp_path / "grown", items, old._split).source
    append = ["tokenize", "--append", line["sid"], "--collision", "accept", "--out", tmp_path / "sid"]
    assert run_json(capsys, *append, "--catalog", grown)["notes"][0] == "3 new items; 12 keep their words."
    table, before = SidTable.load(tmp_path / "sid"), SidTable.load(line["sid"])
    assert (table.codes(range(12)) == before.codes(range(12))).all()
    run_json(capsys, "extend", "--sid", tmp_path / "sid", "--model", tuned, "--out", tmp_path / "more")
    assert same_weights(tuned, tmp_path / "more")
    recommender = Recommender.from_pretrained(tmp_path / "more", device="cpu")
    found = recommender.recommend([["item-0", "new-3"]], k=15, exclude=None)[0][0]
    assert sorted(found) == sorted([*old.item_ids, "new-1", "new-2", "new-3"])
    texts = [recommender.sid_config.vocabulary.text(table.codes([row])).strip() for row in (12, 13)]
    assert texts[0] == "red tea;" and texts[1].startswith("plum") and "(2)" in texts[1]


def test_words_of_another_table_are_refused(tuned, line, tmp_path, capsys):
    before = SidTable.load(line["sid"])
    moved = SidTable(before.item_ids, before.all_codes, words=LevelWords([ids[::-1] for ids in before.words.ids]))
    sid = write_sid(tmp_path / "sid", moved)
    assert main([str(part) for part in ("extend", "--sid", sid, "--model", tuned, "--out", tmp_path / "out")]) == 2
    assert "the words of the checkpoint's items are not those of the SID table" in capsys.readouterr().err


def test_another_model_is_refused(line, tmp_path, capsys):
    from tests.support.extended import write_llm

    other = write_llm(tmp_path / "other")
    assert (
        main([str(part) for part in ("extend", "--sid", line["sid"], "--model", other, "--out", tmp_path / "out")]) == 2
    )
    assert "Give the model whose tokenizer `llmrec tokenize` was run with" in capsys.readouterr().err

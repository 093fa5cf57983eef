"""The model card: what it tells, and that its code runs."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard

from llmrec.cli import main
from llmrec.configs import SftConfig
from llmrec.model.card import applicable, write_card
from llmrec.model.checkpoint import SidConfig
from llmrec.model.prompts import Prompt
from llmrec.recommender import Recommender
from llmrec.runtime.manifest import sha256_file
from llmrec.stages.extend import public_name
from llmrec.training.start import describe_recipe


@pytest.fixture(scope="module")
def metrics(toy, tuned, tmp_path_factory):
    """metrics.json of the evaluate stage on the toy checkpoint."""
    out = tmp_path_factory.mktemp("eval") / "eval"
    argv = ["evaluate", "--catalog", toy[0], "--model", str(tuned), "--out", str(out), "--device", "cpu",
            "-k", "1", "5", "--baselines", "popularity"]  # fmt: skip
    assert main(argv) == 0
    return out / "metrics.json"


def test_the_card_of_a_training_stage(tuned):
    card = (tuned / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: llmrec\n") and "\n# sft\n" in card
    assert ".partial" not in card and str(tuned.parent) not in card
    for fact in (
        "- base model: llm",
        "- items: 12",
        "- semantic IDs: 3 levels of [4, 4, 4] codes",
        "- split: leave_one_out",
        "- learning_rate: 0.005",
        "- steps: 30",
        "- train: full",
        "Nothing was measured for this card.",
    ):
        assert fact in card, fact
    assert not re.findall("^- (lora_|teacher|item_|eval_|patience|drawn|quantization).*", card, flags=re.MULTILINE)


OPTIONS = {"train": "lora", "lora_rank": 16, "sid_learning_rate": 1e-3, "quantization": "none", "epochs": 3.0,
           "max_steps": -1, "eval_steps": None, "eval_examples": 2000, "patience": None, "teacher": [],
           "teacher_weight": 0.5, "drawn_answers": False, "item_weight": 1.0, "tasks": []}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "has_items", "shown"),
    [
        ({}, False, "train lora_rank sid_learning_rate epochs"),
        ({"train": "full"}, True, "train epochs item_weight"),
        ({"max_steps": 20, "eval_steps": 5}, False,
         "train lora_rank sid_learning_rate max_steps eval_steps eval_examples"),
        ({"train": "sid_tokens", "teacher": ["/home/ann/run/sasrec"], "tasks": ["titles"]}, False,
         "train sid_learning_rate epochs teacher teacher_weight drawn_answers tasks"),
    ],
)  # fmt: skip
def test_only_options_with_an_effect_are_on_the_card(changes, has_items, shown):
    found = applicable(OPTIONS | changes, has_items)
    assert " ".join(found) == shown and "/home" not in str(found)


def test_measured_numbers_are_those_of_the_evaluation(tuned, metrics, tmp_path):
    Recommender.from_pretrained(tuned, device="cpu").save_pretrained(tmp_path / "shop", metrics)
    card = (tmp_path / "shop" / "README.md").read_text()
    found = json.loads(metrics.read_text())
    table = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    header, rows = table[0], {tuple(row[:2]): row[2:] for row in table[1:]}
    assert set(rows) == {(s, c) for s in ("ours", "popularity") for c in ("plain", "seen_excluded")}
    for (system, column), cells in rows.items():
        for name, cell in zip(header[2:], cells, strict=True):
            assert cell == f"{found['systems'][system][column][name]:.4f}"
    assert {"recall@1", "recall@5", "ndcg@5"} <= set(header)
    assert f"Split: test, full ranking, beam {found['num_beams']}." in card


def run_blocks(card: str) -> list[str]:
    """What the Python blocks of a card print, one after another; the working directory decides what they find."""
    printed = []
    for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block, "card", "exec"), {})
        printed.append(out.getvalue())
    return printed


def test_the_code_of_a_card_runs_and_answers_as_the_recommender(tuned, tmp_path, monkeypatch):
    recommender = Recommender.from_pretrained(tuned, device="cpu")
    recommender.save_pretrained(tmp_path / "shop")
    monkeypatch.chdir(tmp_path)
    printed = run_blocks((tmp_path / "shop" / "README.md").read_text())
    assert len(printed) == 2
    (best,), _ = recommender.recommend([["item-0"]], k=1, exclude=None, num_beams=1)
    codes = recommender.table.codes([recommender.table.item_ids.index(best[0])])[0]
    sid = "".join(recommender.sid_config.vocabulary.token(level, code) for level, code in enumerate(codes))
    assert printed[1].strip().replace(" ", "") == sid


def test_names_that_need_quoting_are_quoted_in_the_code_of_a_card(tuned, tmp_path, monkeypatch):
    """Quotes and braces in the instruction, an item id and the name end up in code that still runs."""
    import pyarrow.parquet as pq

    shutil.copytree(tuned, tmp_path / 'a "shop"')
    sid_config, table, details = SidConfig.load(tuned)
    odd = type(table)(['it"em\\{0}', *table.item_ids[1:]], table.all_codes, level_sizes=table.level_sizes)
    SidConfig(sid_config.vocabulary, Prompt('say "{next}" plum'), 5, "level").save(tmp_path / 'a "shop"', odd, details)
    (tmp_path / 'a "shop"' / "manifest.json").unlink()
    write_card(tmp_path / 'a "shop"', 'a "shop"')
    assert pq.read_table(tmp_path / 'a "shop"' / "sid_table.parquet")["item_id"][0].as_py() == 'it"em\\{0}'
    monkeypatch.chdir(tmp_path)
    assert len(run_blocks((tmp_path / 'a "shop"' / "README.md").read_text())) == 2


def test_an_extended_base_says_that_it_was_not_trained(toy, tmp_path):
    shutil.copytree(toy[1], tmp_path / "base")
    write_card(tmp_path / "base", "someone/base")
    card = (tmp_path / "base" / "README.md").read_text()
    assert "Not fine-tuned: extended only." in card and "Not recorded." in card
    assert sha256_file(toy[1] / "llmrec.json") == sha256_file(tmp_path / "base" / "llmrec.json")


@pytest.mark.parametrize(
    ("base", "shown"),
    [("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"), ("gpt2", "gpt2"), ("micro", "micro"),
     ("/home/me/secret/llm", "llm"), ("./llm", "llm"), ("runs/x/llm", "llm")],
)  # fmt: skip
def test_local_paths_are_not_published(base, shown):
    assert public_name(base) == shown


def test_a_directory_is_no_hub_id_though_it_looks_like_one(tmp_path, monkeypatch):
    (tmp_path / "runs" / "llm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("runs/llm") == "llm" and public_name("runs/other") == "runs/other"


def test_the_recipe_names_a_teacher_without_its_path():
    config = SftConfig(out="o", catalog="c", model="m", teacher=["/home/ann/run/sasrec"])
    assert describe_recipe(config)["teacher"] == ["sasrec"] and "/home" not in str(describe_recipe(config))


def test_the_head_of_a_card_is_read_by_the_parser_of_the_hub(tuned, metrics, tmp_path):
    shutil.copytree(tuned, tmp_path / "shop")
    values, (sid_config, table, details) = json.loads(metrics.read_text()), SidConfig.load(tuned)
    (tmp_path / "shop" / "manifest.json").unlink()
    sid_config.save(tmp_path / "shop", table, details | {"base_model": "someone/llm"})
    write_card(tmp_path / "shop", "ann/shop", values, "apache-2.0")
    data = ModelCard.load(tmp_path / "shop" / "README.md", ignore_metadata_errors=False).data
    assert (data.library_name, data.base_model, data.license) == ("llmrec", "someone/llm", "apache-2.0")
    assert data.tags == ["llmrec", "recommendation", "semantic-ids"] and data.model_name == "shop"
    found = {result.metric_name: result for result in data.eval_results}
    assert len(found) == 2 * 2 * 3  # columns, k, measures
    for column, words in (("plain", "seen items included"), ("seen_excluded", "seen items excluded")):
        result = found[f"recall@5, full ranking of 12 items, {words}"]
        assert result.metric_value == round(values["systems"]["ours"][column]["recall@5"], 4)
        assert (result.metric_type, result.dataset_split, result.task_type) == ("recall@5", "test", "recommendation")
        assert result.dataset_type == "unknown" and "leave one out split" in result.dataset_name


def test_a_card_claims_no_licence_no_base_and_no_result_that_nobody_gave(tuned):
    data = ModelCard.load(tuned / "README.md", ignore_metadata_errors=False).data
    assert data.license is None and data.base_model is None and data.eval_results is None


def test_a_card_says_what_its_files_show(tuned, toy, tmp_path):
    card = (tuned / "README.md").read_text()
    assert "the ids of all 12 items and their semantic IDs, a hash of each title and the number of training" in card
    assert "They hold no interaction and no user." in card
    shutil.copytree(toy[1], tmp_path / "base")
    write_card(tmp_path / "base", "someone/base")  # extended without a catalogue: nothing of the titles
    assert "hash of each title" not in (tmp_path / "base" / "README.md").read_text()


def test_a_published_card_names_no_local_path(tuned, tmp_path_factory):
    text = (tuned / "llmrec.json").read_text() + (tuned / "README.md").read_text()
    assert str(tmp_path_factory.getbasetemp()) not in text
    assert '"dataset"' in text and '"learning_rate"' in text

"""The stage evaluate: its files, its tables, resuming, and what it refuses, with a recommender without weights."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from llmrec.configs import CompareConfig, EvaluateConfig
from llmrec.configs.options import StageConfig
from llmrec.evaluation import metrics
from llmrec.evaluation.protocol import evaluate, per_batch
from llmrec.evaluation.verdict import of_evaluation
from llmrec.model.checkpoint import SidConfig
from llmrec.model.prompts import Prompt
from llmrec.runtime.stage_directory import run_stage
from llmrec.stages import compare
from llmrec.stages import evaluate as stage
from tests.evaluation.test_protocol import fake_rank, fake_stream
from tests.evaluation.test_strata import FAMILIES


@dataclasses.dataclass(kw_only=True)
class Plain(StageConfig):
    pass


def answer_with(monkeypatch, rank_batches) -> list[dict]:
    """Put a recommender without weights in the place of ours; the options that it is loaded with."""
    loaded = []

    def from_pretrained(path, **options):
        loaded.append(options)
        return SimpleNamespace(ranker=SimpleNamespace(rank_batches=rank_batches))

    module = SimpleNamespace(Recommender=SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setitem(sys.modules, "llmrec.recommender", module)
    return loaded


@pytest.fixture
def config(tmp_path, catalog, sid_table, vocabulary, monkeypatch) -> EvaluateConfig:
    """A finished catalogue directory, a model directory, and a recommender that needs no weights."""

    def write(directory):
        pq.write_table(catalog.items, directory / "items.parquet")
        pq.write_table(catalog._split, directory / "split.parquet")

    run_stage("prepare", Plain(out=str(tmp_path / "catalog")), {}, write)
    (tmp_path / "model").mkdir()
    SidConfig(vocabulary, Prompt(), 10, "level").save(tmp_path / "model", sid_table)
    answer_with(monkeypatch, fake_stream)
    monkeypatch.setenv("LLMREC_QUIET", "1")
    return EvaluateConfig(
        out=str(tmp_path / "eval"), catalog=str(tmp_path / "catalog"), model=str(tmp_path / "model"),
        k=[1, 3], batch_size=4,
    )  # fmt: skip


def test_stage_writes_metrics_and_per_user_results(config, catalog):
    result = stage.main(config)
    assert result == {"out": config.out, **json.loads((Path(config.out) / "metrics.json").read_text())}
    assert list(result["systems"]) == ["ours", *config.named]
    assert set(result["differences"]) == set(config.named)
    rows = catalog.examples("test")
    for column in ("plain", "seen_excluded"):
        position = evaluate(per_batch(fake_rank), rows, 3, column, 64).position
        ours = result["systems"]["ours"][column]
        assert ours["recall@3"] == pytest.approx(metrics.recall(position, 3).mean())
        assert ours["ndcg@3"] == pytest.approx(metrics.ndcg(position, 3).mean())
        assert ours["intervals"]["mrr@3"][0] <= ours["mrr@3"] <= ours["intervals"]["mrr@3"][1]
        markov = result["systems"]["markov"][column]["recall@3"]
        assert result["differences"]["markov"][column]["recall@3"]["mean"] == pytest.approx(ours["recall@3"] - markov)
    table = pq.read_table(Path(config.out) / "per_user.parquet")
    assert table.column_names == ["system", "column", "user_id", "example", "target", "start", "size", "group"]
    assert table.num_rows == 5 * 2 * len(rows)
    assert table["target"].to_pylist()[: len(rows)] == [catalog.item_ids[row] for row in rows.targets]


def test_baselines_without_a_model_reach_what_they_reach_beside_one(config, monkeypatch, capsys):
    """The same protocol on the same examples, by two routes; the first baseline is what the other is compared with."""
    beside = stage.main(config)
    answer_with(monkeypatch, lambda *_, **__: pytest.fail("there is no model to rank with"))
    alone = dataclasses.replace(config, model=None, baselines=["markov", "popularity"], out=config.out + "-alone")
    result = stage.main(alone)
    stage.show(result)
    printed, page = capsys.readouterr().out, (Path(alone.out) / "report.html").read_text(encoding="utf-8")
    assert list(result["systems"]) == ["markov", "popularity"] and list(result["differences"]) == ["popularity"]
    for column in ("plain", "seen_excluded"):
        for system in ("markov", "popularity"):
            found, expected = (run["systems"][system][column] for run in (result, beside))
            assert found["intervals"] == expected["intervals"]
            assert {name: value for name, value in found.items() if name != "examples_per_s"} == {
                name: value for name, value in expected.items() if name != "examples_per_s"
            }
        difference = result["differences"]["popularity"][column]["recall@3"]["mean"]
        means = [result["systems"][system][column]["recall@3"] for system in ("markov", "popularity")]
        assert difference == pytest.approx(means[0] - means[1])
    assert {stratum["family"] for stratum in result["strata"]} == {"popularity", "history", "transition"}
    assert result["num_beams"] is result["sid_usage"] is result["trained"] is result["exact"] is None
    told = page[page.index("<body>") :] + printed
    assert not re.search(r"\bours\b|\bbeam", told, re.IGNORECASE)
    assert pq.read_table(Path(alone.out) / "per_user.parquet").num_rows == 2 * 2 * result["num_examples"]


def test_a_run_without_a_model_is_compared_by_its_first_baseline(config):
    for out, baselines in (("markov", ["markov"]), ("popular", ["popularity", "markov"])):
        stage.main(dataclasses.replace(config, model=None, baselines=baselines, out=f"{config.out}-{out}"))
    stage.main(config)
    runs = [config.out, f"{config.out}-markov", f"{config.out}-popular"]
    result = compare.main(CompareConfig(runs=runs, names=["ours", "markov", "popularity"]))
    metrics = json.loads((Path(config.out) / "metrics.json").read_text())
    for name, columns in result["systems"].items():
        assert columns["plain"]["recall@3"]["mean"] == pytest.approx(metrics["systems"][name]["plain"]["recall@3"])


@pytest.mark.parametrize(("asked", "used"), [(None, 12), (5, 5)])
def test_the_beam_width_that_is_reported_is_the_one_used(config, monkeypatch, asked, used):
    """Law 10: min(items, max(50, 5k)) beams where none are asked for, the same in both columns."""
    widths = []

    def rank_batches(batches, k, num_beams):
        widths.append(num_beams)
        return fake_stream(batches, k)

    answer_with(monkeypatch, rank_batches)
    result = stage.main(dataclasses.replace(config, num_beams=asked, baselines=[]))
    assert result["num_beams"] == used and widths == [used, used]


def test_the_transitions_are_those_of_the_training_sequences(config, catalog):
    """Two routes: pairs of neighbours in Python sets."""
    result = stage.main(config)
    seen = {pair for sequence in catalog.train.sequences() for pair in itertools.pairwise(sequence.tolist())}
    expected = dict.fromkeys(("seen", "composable", "never seen"), 0)
    examples = catalog.examples(config.split)
    for i, target in enumerate(examples.targets.tolist()):
        last = int(examples.history(i)[-1])
        over_one = any((last, middle) in seen and (middle, target) in seen for middle in range(catalog.num_items))
        expected["seen" if (last, target) in seen else "composable" if over_one else "never seen"] += 1
    found = {s["name"]: s["num_examples"] for s in result["strata"] if s["family"] == "transition"}
    assert found == {name: count for name, count in expected.items() if count}


def test_stage_describes_strata_sids_and_what_was_trained(config, catalog):
    result = stage.main(config)
    for family, column in FAMILIES:
        strata = [s for s in result["strata"] if (s["family"], s["column"]) == (family, column)]
        assert sum(stratum["num_examples"] for stratum in strata) == result["num_examples"]
        assert all(list(stratum["systems"]) == list(result["systems"]) for stratum in strata)
    assert sum(group["num_items"] for group in result["exposure"]) == catalog.num_items
    assert [level["codebook_size"] for level in result["sid_usage"]] == [4, 4, 4]
    assert result["trained"] is None  # the checkpoint has no manifest, as a copy from the Hub has none
    page = (Path(config.out) / "report.html").read_text(encoding="utf-8")
    assert all(f">{system}<" in page for system in result["systems"]) and "<h2>Training</h2>" not in page


def test_the_training_log_of_the_checkpoint_is_drawn(config):
    log = [{"loss": 3.5, "step": 20}, {"loss": 2.25, "step": 40}, {"train_runtime": 1.0, "step": 40}]
    (Path(config.model) / "training_log.json").write_text(json.dumps(log))
    stage.main(config)
    page = (Path(config.out) / "report.html").read_text(encoding="utf-8")
    assert "<h2>Training</h2>" in page and "loss: 2.25<" in page


def test_one_model_is_loaded_as_asked_for_both_columns(config, monkeypatch):
    loaded = answer_with(monkeypatch, fake_stream)
    stage.main(dataclasses.replace(config, device="cpu", baselines=[]))
    assert loaded == [{"device": "cpu", "rank": "sid", "length_penalty": None}]


def test_a_verdict_and_one_table_of_80_columns_are_printed_and_the_rest_is_on_the_page(config, monkeypatch, capsys):
    monkeypatch.delenv("LLMREC_QUIET")
    result = stage.main(config)
    messages = capsys.readouterr().err
    assert "evaluate: ours, plain: 6 examples in 0." in messages and " examples/s\n" in messages
    stage.show(result)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == of_evaluation(result) and lines[2] == ""
    table = lines[3 : lines.index(next(line for line in lines if line.startswith("Lead: ")))]
    assert max(map(len, table)) <= 80 and table[0] == "6 test examples of 6 users, 12 items"
    assert len(table) == 3 + 2 * (1 + len(config.named))  # title, header, rule, and each system in both columns
    for name in ("ours", *config.named):
        assert sum(name in line[:40].split() for line in table) == 2, "a system that a baseline beats is not left out"
    assert lines[-1] == f"{config.out}/report.html has the rest."
    page = (Path(config.out) / "report.html").read_text(encoding="utf-8")
    for word in (
        "mrr@3",
        "By stratum",
        "never seen",
        "gini@3",
        result["examples"][0]["target"][1],
        "<h2>Examples</h2>",
    ):
        assert word in page


def test_an_interrupted_stage_keeps_the_finished_parts(config, monkeypatch):
    whole = stage.main(config)
    calls = []

    def counted(*arguments):
        calls.append(arguments[-1])
        if calls[-1] == "repeat, plain" and len(calls) == 5:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(stage, "evaluate", counted)
    again = dataclasses.replace(config, out=config.out + "-again")
    with pytest.raises(KeyboardInterrupt):
        stage.main(again)
    resumed = stage.main(again)
    assert calls == [
        *(f"{system}, {column}" for system in ("ours", "popularity") for column in ("plain", "seen_excluded")),
        "repeat, plain",  # interrupted, then done again
        *(
            f"{system}, {column}"
            for system in ("repeat", "markov", "item_knn")
            for column in ("plain", "seen_excluded")
        ),
    ]
    for columns in (*resumed["systems"].values(), *whole["systems"].values()):
        for found in columns.values():
            del found["examples_per_s"]
    del resumed["out"], whole["out"]
    assert resumed == whole
    assert sorted(path.name for path in Path(again.out).iterdir()) == [
        "manifest.json", "metrics.json", "per_user.parquet", "report.html",
    ]  # fmt: skip


def test_a_sample_of_examples_is_seeded_and_keeps_its_place_in_the_split(config, catalog):
    stage.main(dataclasses.replace(config, max_examples=3, baselines=[]))
    rows, table = catalog.examples("test"), pq.read_table(Path(config.out) / "per_user.parquet")
    positions = table["example"].to_pylist()[:3]
    assert len(set(positions)) == 3
    assert table["user_id"].to_pylist()[:3] == [rows.user_ids[position] for position in positions]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": [5, 5]}, "'k' is .* different positive integers"),
        ({"k": [0]}, "'k' is .* different positive integers"),
        ({"k": []}, "'k' is .* different positive integers"),
        ({"num_beams": 2}, "'num_beams' is 2; 3 or more"),
        ({"baselines": ["popularty"]}, "unknown baseline 'popularty'; did you mean 'popularity'"),
        ({"baselines": ["markov", "markov"]}, "2 rows called 'markov'"),
        ({"max_examples": 0, "batch_size": -1}, "max_examples is 0.*batch_size is -1"),
        ({"model": "no/such/model"}, "'no/such/model' is not a directory"),
        ({"model": None, "baselines": []}, "nothing to evaluate; give --model, a checkpoint, or --baselines"),
        ({"model": None, "num_beams": 20, "rank": "items"}, "rank, num_beams: only a model has this; give --model"),
        ({"model": None, "exact_examples": 5}, "exact_examples: only a model has this"),
    ],
)
def test_bad_configs_are_refused_before_anything_is_written(config, changes, message):
    with pytest.raises(ValueError, match=message):
        stage.main(dataclasses.replace(config, **changes))
    assert not list(Path(config.out).parent.glob("eval*"))


def test_an_empty_split_is_refused(catalog):
    catalog._split = catalog._split.slice(0, 0)
    with pytest.raises(ValueError, match="no 'test' examples"):
        stage.held_out(catalog, "test")

"""teach: what is kept and chosen on valid, mixtures, scores of one's own, and everything that it refuses."""

from __future__ import annotations

import json
import re

import numpy as np
import polars as pl
import pytest
import torch

from llmrec.baselines.taught import MEMBERS, RANKER, TENSORS, load_ranker
from llmrec.data.catalog import Catalog
from llmrec.evaluation.metrics import ndcg, target_position
from tests.support.prepared import run_json, write_catalog

CPU = torch.device("cpu")
SASREC = ("--ranker", "sasrec", "--hidden", 32, "--max-epochs", 12, "--learning-rate", 3e-3, "--device", "cpu")


@pytest.fixture(scope="module")
def kept(toy, tmp_path_factory):
    """Directories of three rankers of the toy catalogue; only read."""
    from llmrec.cli import main

    root = tmp_path_factory.mktemp("kept")
    flags = ["--catalog", toy[0], "--device", "cpu"]
    for name in ("markov", "popularity"):
        assert main(["teach", *flags, "--ranker", name, "--out", str(root / name)]) == 0
    assert main(["teach", *map(str, SASREC), *flags, "--out", str(root / "sasrec")]) == 0
    return root


def teach(capsys, toy, *flags) -> dict:
    return run_json(capsys, "teach", "--catalog", toy[0], "--device", "cpu", *flags)


def test_a_network_is_trained_measured_and_kept(kept, toy, capsys):
    facts = json.loads((kept / "sasrec" / RANKER).read_text())
    assert facts["ranker"] == "sasrec" and facts["options"]["hidden"] == 32 and facts["options"]["max_history"]
    assert {path.name for path in (kept / "sasrec").iterdir()} == {"manifest.json", RANKER, TENSORS}
    assert facts["seconds"] > 0 and len(facts["log"]) <= 12

    catalog = Catalog.load(toy[0])
    valid, ranker = catalog.examples("valid"), load_ranker(kept / "sasrec", catalog, CPU)
    histories = [valid.history(i) for i in range(len(valid))]
    for column, exclude in (("plain", None), ("seen_excluded", histories)):
        quality = ndcg(target_position(ranker.rank(histories, 10, exclude), valid.targets), 10).mean()
        assert facts["valid"][column]["ndcg@10"] == pytest.approx(quality, abs=1e-6)
    assert facts["valid"]["plain"]["ndcg@10"] == pytest.approx(
        max(epoch["quality"] for epoch in facts["log"]), abs=1e-5
    )

    before = (kept / "sasrec" / RANKER).stat().st_mtime_ns
    again = teach(capsys, toy, *SASREC, "--out", kept / "sasrec")  # skipped
    assert again["valid"] == facts["valid"] and (kept / "sasrec" / RANKER).stat().st_mtime_ns == before


@pytest.mark.parametrize(("target", "excludes"), [(0, False), (3, True)])
def test_valid_decides_whether_seen_items_are_excluded(tmp_path, capsys, target, excludes):
    """Users come back to their first item, or never to any; Repeat knows the first, the exclusion helps the second."""
    from tests.support.networks import split

    train = [[start, (start + 1) % 12, (start + 2) % 12] for start in range(12)]
    made = split(train, [[*walk, (walk[0] + target) % 12] for walk in train], [])
    catalog = write_catalog(tmp_path / "catalog", made.items, made._split)
    flags = ["--ranker", "repeat", "--device", "cpu", "--catalog", catalog.source]
    assert run_json(capsys, "teach", *flags, "--out", tmp_path / "kept")["exclude_seen"] is excludes


def test_options_are_a_block_in_yaml_and_flags_on_the_command_line(toy, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("ranker: item_knn\noptions:\n  decay: 0.7\n  shrink: 5\n")
    found = teach(capsys, toy, "--config", tmp_path / "run.yaml", "--shrink", 3, "--out", tmp_path / "kept")
    assert found["options"] == {**found["options"], "decay": 0.7, "shrink": 3.0, "neighbours": 200}


def test_valid_chooses_the_options_that_are_not_given(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("llmrec.baselines.counted.fitted.quality", lambda ranker, _: -abs(ranker.chosen.decay - 0.31))
    flags = ["--ranker", "item_knn", "--shrink", 7]
    found = teach(capsys, toy, *flags, "--out", tmp_path / "kept")
    assert found["options"] == {"power": 1.0, "decay": 0.3, "shrink": 7.0, "neighbours": 200}
    monkeypatch.setattr("llmrec.baselines.counted.fitted.quality", None)
    assert teach(capsys, toy, *flags, "--out", tmp_path / "kept") == found  # the same run: nothing is chosen again
    plain = teach(capsys, toy, *flags, "--search", "false", "--out", tmp_path / "plain")
    assert plain["options"]["decay"] == 0.5


def test_the_transition_graph_reads_views(toy, tmp_path, capsys):
    from llmrec.cli import main

    views = ["--catalog", toy[0], "--text-encoder", "tfidf", "--views", "text", "--out", str(tmp_path / "views")]
    assert main(["embed", *views]) == 0
    graph = ["--ranker", "transition_graph", "--weight", 0.5]
    found = teach(capsys, toy, *graph, "--views", tmp_path / "views", "--out", tmp_path / "kept")
    assert found["options"]["weight"] == 0.5 and found["valid"]["plain"]["recall@10"] > 0
    again = load_ranker(tmp_path / "kept", Catalog.load(toy[0]), CPU)
    assert again.rank([np.array([3])], 2).items.shape == (1, 2)


def test_a_mixture_is_at_least_as_good_as_its_members_and_stands_alone(kept, toy, tmp_path, capsys):
    members = [kept / "popularity", kept / "markov", kept / "sasrec"]
    found = teach(capsys, toy, "--ranker", "mixture", "--members", *members, "--out", tmp_path / "mix")

    def quality(facts) -> float:
        return sum(facts["valid"][column]["ndcg@10"] for column in ("plain", "seen_excluded")) / 2

    assert quality(found) >= max(quality(json.loads((path / RANKER).read_text())) for path in members) - 1e-6
    assert [part["ranker"] for part in found["mixture"]] == ["popularity", "markov", "sasrec"]
    assert sum(part["weight"] for part in found["mixture"]) == pytest.approx(1)
    assert sorted(path.name for path in (tmp_path / "mix" / MEMBERS).iterdir()) == ["0", "1", "2"]

    catalog, histories = Catalog.load(toy[0]), [np.array([3, 4]), np.array([], dtype=np.int64)]
    mixed = load_ranker(tmp_path / "mix", catalog, CPU)
    powers = [part["power"] for part in found["mixture"]]
    assert [getattr(member.ranker.chosen, "power", None) for member in mixed.ranker.members] == powers
    assert mixed.rank(histories, 3).items.shape == (2, 3)
    again = teach(
        capsys, toy, "--ranker", "mixture", "--members", tmp_path / "mix", kept / "markov", "--out", tmp_path / "more"
    )
    assert quality(again) >= quality(found) - 1e-6


def test_scores_of_ones_own_are_a_ranker(toy, tmp_path, capsys):
    catalog = Catalog.load(toy[0])
    valid = catalog.examples("valid")
    train = {user: len(catalog.train.sequence(i)) for i, user in enumerate(catalog.train.user_ids)}
    lines = {
        "user_id": valid.user_ids,
        "position": [train[user] for user in valid.user_ids],
        "item_id": [catalog.item_ids[row] for row in valid.targets],
        "score": np.ones(len(valid)),
    }
    pl.DataFrame(lines).write_parquet(tmp_path / "own.parquet")
    found = teach(capsys, toy, "--ranker", "scores", "--scores", tmp_path / "own.parquet", "--out", tmp_path / "own")
    by_history = {}
    for i in range(len(valid)):
        by_history.setdefault(valid.history(i).tobytes(), set()).add(int(valid.targets[i]))
    alone = np.mean([len(by_history[valid.history(i).tobytes()]) == 1 for i in range(len(valid))])
    assert found["valid"]["plain"]["ndcg@10"] >= alone  # a history that several share has several answers
    assert found["valid"]["plain"]["recall@10"] == 1


def test_evaluate_takes_a_directory_in_the_place_of_a_name(kept, toy, tmp_path, capsys, monkeypatch):
    from llmrec.baselines import by_name

    def unexpected(*_, **__):
        raise AssertionError("a ranker that was kept was fitted again")

    monkeypatch.setattr(by_name, "NeuralRanker", unexpected)
    flags = ["--catalog", toy[0], "--model", toy[1], "--device", "cpu", "--split", "valid", "--k", 10]
    baselines = ["--baselines", "markov", kept / "sasrec", f"{kept / 'popularity'}/"]
    found = run_json(capsys, "evaluate", *flags, *baselines, "--out", tmp_path / "eval")
    assert list(found["systems"]) == ["ours", "markov", "sasrec", "popularity"]
    assert list(found["learning"]) == ["ours", "sasrec"]
    facts = json.loads((kept / "sasrec" / RANKER).read_text())
    assert found["learning"]["sasrec"]["best"] == pytest.approx(max(epoch["quality"] for epoch in facts["log"]))
    for column in ("plain", "seen_excluded"):
        measured = found["systems"]["sasrec"][column]["ndcg@10"]
        value = measured["value"] if isinstance(measured, dict) else measured
        assert value == pytest.approx(facts["valid"][column]["ndcg@10"], abs=1e-6)


@pytest.mark.parametrize(
    ("baselines", "message"),
    [
        (["markov", "@markov"], r"'baselines' has 2 rows called 'markov'.*rename a directory"),
        (["@absent"], "absent' does not exist; give a directory written by `llmrec teach`"),
        (["@"], "is not a directory that llmrec finished"),
    ],
)
def test_baselines_that_are_no_rankers_are_refused(kept, toy, tmp_path, capsys, baselines, message):
    from llmrec.cli import main

    given = [str(kept / name[1:]) if name.startswith("@") else name for name in baselines]
    flags = ["--catalog", toy[0], "--model", str(toy[1]), "--device", "cpu", "--out", str(tmp_path / "eval")]
    assert main(["evaluate", *flags, "--baselines", *given]) == 2
    assert re.search(message, capsys.readouterr().err)

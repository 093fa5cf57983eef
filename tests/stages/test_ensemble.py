"""The stage ensemble: its files, the split that chooses, resuming, and what it refuses; its members have no weights."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from llmrec.baselines.counted import Markov
from llmrec.baselines.taught import Taught, load_ranker
from llmrec.configs import CompareConfig, EnsembleConfig, EvaluateConfig
from llmrec.data.catalog import Catalog
from llmrec.evaluation.metrics import ndcg
from llmrec.evaluation.protocol import evaluate as evaluation
from llmrec.evaluation.protocol import per_batch
from llmrec.evaluation.ranking import Ranking
from llmrec.model.checkpoint import SidConfig
from llmrec.model.prompts import Prompt
from llmrec.runtime.manifest import adopt
from llmrec.runtime.stage_directory import run_stage
from llmrec.stages import compare, ensemble, evaluate
from tests.stages.test_evaluate import Plain

USERS = 6


def distant(step: int):
    """A ranker of 12 items: first the one `step` after the last item, and so on, less likely by a third each."""

    def rank_batches(batches, k, num_beams):
        for histories, exclude in batches:
            items = np.full((len(histories), num_beams), -1)
            for i, history in enumerate(histories):
                best = [(history[-1] + step + place) % 12 for place in range(12)]
                best = [item for item in best if exclude is None or item not in exclude[i]][:num_beams]
                items[i, : len(best)] = best
            slots = np.broadcast_to(np.arange(num_beams), items.shape)
            yield Ranking(items, slots, np.where(items < 0, -np.inf, -1.0 - slots / 3))

    return rank_batches


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """Members without weights, which rank by their number; the names of those that were loaded."""
    found = []

    def from_pretrained(path, device, rank, length_penalty=None):
        found.append(Path(path).name if rank == "sid" else f"{Path(path).name}, {rank}")
        return SimpleNamespace(ranker=SimpleNamespace(rank_batches=distant(int(Path(path).name[-1]) + len(rank) - 3)))

    module = SimpleNamespace(Recommender=SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setitem(sys.modules, "llmrec.recommender", module)
    monkeypatch.setenv("LLMREC_QUIET", "1")
    return found


def save(catalog: Catalog, out: Path) -> None:
    def write(directory):
        pq.write_table(catalog.items, directory / "items.parquet")
        pq.write_table(catalog._split, directory / "split.parquet")

    run_stage("prepare", Plain(out=str(out)), {}, write)


@pytest.fixture
def config(tmp_path, catalog, sid_table, vocabulary, loaded) -> EnsembleConfig:
    """Users step by 1, 2 or 3 items: each of three members knows the next item of two of the six."""
    save(catalog, tmp_path / "catalog")
    for step in (1, 2, 3):
        (tmp_path / f"step-{step}").mkdir()
        SidConfig(vocabulary, Prompt(f"step {step}"), 10, "level").save(tmp_path / f"step-{step}", sid_table)
    return EnsembleConfig(
        out=str(tmp_path / "mix"), catalog=str(tmp_path / "catalog"),
        members=[str(tmp_path / f"step-{step}") for step in (1, 3)], names=["one", "three"], k=[1, 3],
    )  # fmt: skip


def test_stage_writes_the_choice_and_an_evaluation(config):
    result = ensemble.main(config)
    on_disk = json.loads((Path(config.out) / "ensemble.json").read_text())
    assert result == {
        "out": config.out,
        **on_disk,
        "metrics": json.loads((Path(config.out) / "metrics.json").read_text()),
    }
    assert [member["name"] for member in result["members"]] == ["one", "three"]
    assert len(result["grid"]) == 3 * 21 + 7 * 6
    for one in (*result["grid"], *result["members"]):
        assert one["valid"]["mean"] == pytest.approx((one["valid"]["plain"] + one["valid"]["seen_excluded"]) / 2)
    values = [one["valid"]["mean"] for one in result["grid"]]
    assert result["mixture"]["valid"]["mean"] == max(values) >= max(m["valid"]["mean"] for m in result["members"])
    assert [one["way"] for one in result["best_by_way"]] == ["probabilities", "ranks", "scores", "gate"]
    metrics = result["metrics"]
    assert list(metrics["systems"]) == ["ours", "one", "three"] and set(metrics["differences"]) == {"one", "three"}
    assert metrics["split"] == "test" and metrics["num_examples"] == USERS
    table = pq.read_table(Path(config.out) / "per_user.parquet")
    assert table.num_rows == 3 * 2 * USERS
    page = (Path(config.out) / "report.html").read_text(encoding="utf-8")
    assert "<h2>The mixture</h2>" in page and "share of one" in page and "<h2>SID usage</h2>" not in page


def test_members_have_the_figures_of_their_evaluations(config, monkeypatch):
    metrics = ensemble.main(config)["metrics"]
    for path, name in zip(config.members, config.names, strict=True):
        alone = evaluate.main(EvaluateConfig(
            out=f"{config.out}-{name}", catalog=config.catalog, model=path, k=[1, 3], baselines=[]))  # fmt: skip
        for column in ("plain", "seen_excluded"):
            ours, theirs = alone["systems"]["ours"][column], metrics["systems"][name][column]
            assert {**theirs, "examples_per_s": 0} == {**ours, "examples_per_s": 0}


def test_compare_reads_an_ensemble_beside_an_evaluation(config):
    ensemble.main(config)
    alone = EvaluateConfig(
        out=f"{config.out}-one", catalog=config.catalog, model=config.members[0], k=[1, 3], baselines=[]
    )
    evaluate.main(alone)
    runs = [alone.out, config.out, config.out]
    result = compare.main(CompareConfig(runs=runs, systems=["ours", "one", "ours"], names=["alone", "one", "mixture"]))
    assert result["differences"]["one"]["plain"]["ndcg@3"] == {"mean": 0, "low": 0, "high": 0}
    metrics = json.loads((Path(config.out) / "metrics.json").read_text())
    ours = metrics["differences"]["one"]["plain"]["ndcg@3"]
    assert result["differences"]["mixture"]["plain"]["ndcg@3"] == pytest.approx(ours)
    with pytest.raises(ValueError, match="has no system 'markov'; it has ours, one, three"):
        compare.main(CompareConfig(runs=runs, systems=["ours", "markov", "ours"]))


def test_law_1_test_targets_do_not_change_the_choice(config, catalog, tmp_path):
    chosen = ensemble.main(config)
    split = catalog._split.to_pylist()
    for row in split:
        if row["split"] == "test":
            row["target"] = "item-0"
    other = Catalog(catalog.items, type(catalog._split).from_pylist(split, schema=catalog._split.schema))
    save(other, tmp_path / "other")
    again = ensemble.main(dataclasses.replace(config, catalog=str(tmp_path / "other"), out=f"{config.out}-other"))
    assert {key: again[key] for key in ("grid", "mixture", "members")} == {
        key: chosen[key] for key in ("grid", "mixture", "members")
    }
    assert again["metrics"]["systems"]["ours"] != chosen["metrics"]["systems"]["ours"]


def test_three_members_and_the_ways_asked_for(config, tmp_path):
    three = [*config.members, str(tmp_path / "step-2")]
    result = ensemble.main(dataclasses.replace(config, members=three, names=None, ways=["ranks", "probabilities"]))
    assert [one["way"] for one in result["best_by_way"]] == ["probabilities", "ranks"]
    assert len(result["grid"]) == 2 * 66 and list(result["metrics"]["systems"]) == ["ours", *three]


def test_a_checkpoint_with_item_rows_may_be_two_members(config, loaded, monkeypatch):
    checked = []
    monkeypatch.setattr(ensemble, "check_rank", lambda path, rank: checked.append(path))
    both = dataclasses.replace(config, members=[config.members[0]] * 2, names=None, rank_by=["sid", "items"])
    result = ensemble.main(both)
    assert loaded == ["step-1", "step-1, items"] and checked == [config.members[0]]
    assert list(result["metrics"]["systems"])[1:] == [config.members[0], f"{config.members[0]} (items)"]
    assert [member["rank_by"] for member in result["members"]] == ["sid", "items"]
    monkeypatch.undo()
    with pytest.raises(ValueError, match="This checkpoint has no item rows"):
        ensemble.main(dataclasses.replace(both, out=f"{both.out}-again"))


@pytest.fixture
def markov(config, tmp_path) -> str:
    """A ranker in the form of `llmrec teach`."""
    catalog = Catalog.load(config.catalog)
    (tmp_path / "markov").mkdir()
    Taught(Markov(catalog), torch.device("cpu")).save(tmp_path / "markov", catalog)
    adopt(tmp_path / "markov", "teach")
    return str(tmp_path / "markov")


def test_a_taught_ranker_is_a_member_like_any_other(config, markov, monkeypatch):
    given, fuse = [], ensemble.Fusion
    monkeypatch.setattr(ensemble, "Fusion", lambda members, targets: given.append(members) or fuse(members, targets))
    mixed = dataclasses.replace(config, members=[markov, config.members[0]], names=["markov", "one"], device="cpu")
    metrics = ensemble.main(mixed)["metrics"]
    catalog = Catalog.load(config.catalog)
    examples, taught = catalog.examples("test"), load_ranker(markov, catalog, torch.device("cpu"))
    for column in ("plain", "seen_excluded"):
        alone = evaluation(per_batch(taught.rank), examples, 12, column, 64)
        assert metrics["systems"]["markov"][column]["ndcg@3"] == pytest.approx(ndcg(alone.position, 3).mean())
    for members in given:  # both columns of both splits: all probabilities of the ranker, which it normalises itself
        np.testing.assert_allclose(np.exp(members[0].scores).sum(axis=1), 1, atol=1e-5)


def test_only_what_a_checkpoint_excludes_is_normalised_anew(config, markov, monkeypatch):
    changed = []
    monkeypatch.setattr(
        ensemble, "without_seen", lambda excluded, plain, examples: changed.append(excluded) or excluded
    )
    ensemble.main(dataclasses.replace(config, members=[markov, config.members[0]], device="cpu"))
    assert len(changed) == 2  # the checkpoint, in both splits


def test_a_ranker_has_no_choice_of_what_it_ranks_by(config, markov):
    with pytest.raises(ValueError, match=r"markov' is a ranker of `llmrec teach`, which has no rank_by; give sid"):
        ensemble.main(dataclasses.replace(config, members=[markov, config.members[0]], rank_by=["items", "sid"]))


def test_a_ranker_of_another_catalogue_is_refused(config, markov, catalog, tmp_path):
    other = Catalog(catalog.items, catalog._split.slice(0, 15))
    save(other, tmp_path / "other")
    with pytest.raises(ValueError, match=r"markov' was taught on another catalogue than '.*other'"):
        ensemble.main(dataclasses.replace(config, catalog=str(tmp_path / "other"), members=[markov, config.members[0]]))


def test_an_interrupted_stage_ranks_only_what_is_missing(config, loaded, monkeypatch):
    whole = ensemble.main(config)
    calls, rank = [], ensemble.shortlist

    def counted(*arguments):
        calls.append(arguments[-1].split("/")[-1])
        if len(calls) == 6:
            raise KeyboardInterrupt
        return rank(*arguments)

    monkeypatch.setattr(ensemble, "shortlist", counted)
    again = dataclasses.replace(config, out=f"{config.out}-again")
    with pytest.raises(KeyboardInterrupt):
        ensemble.main(again)
    loaded.clear()
    resumed = ensemble.main(again)
    parts = [f"{split}, {column}" for split in ("valid", "test") for column in ("plain", "seen_excluded")]
    assert calls == [
        *(f"one, {part}" for part in parts),
        *(f"three, {part}" for part in (*parts[:2], *parts[1:])),
    ]
    assert loaded == ["step-3"]  # the first member is not even loaded
    for columns in (*resumed["metrics"]["systems"].values(), *whole["metrics"]["systems"].values()):
        for found in columns.values():
            del found["examples_per_s"]
    del resumed["out"], whole["out"]
    assert resumed == whole
    assert sorted(path.name for path in Path(again.out).iterdir()) == [
        "ensemble.json", "manifest.json", "metrics.json", "per_user.parquet", "report.html",
    ]  # fmt: skip


def test_the_terminal_names_the_choice_and_every_member(config, capsys):
    result = ensemble.main(config)
    ensemble.show(result)
    printed = capsys.readouterr().out
    assert "ours is the mixture that valid chose: " in printed
    assert "6 test examples of 6 users" in printed and max(map(len, printed.splitlines()[3:-3])) <= 80
    assert all(len(re.findall(rf"\s{name} ", printed)) >= 2 for name in ("ours", *config.labels))
    page = (Path(config.out) / "report.html").read_text(encoding="utf-8")
    assert "ndcg@3" in page and "<h2>The mixture</h2>" in page and "<h2>Examples</h2>" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": ["a"], "names": None}, r"'members' is \['a'\]; two or more are needed"),
        ({"members": ["a", "a"], "names": None}, "'members' repeats a; each counts once"),
        ({"names": ["x", "x"]}, "'names' repeats x"),
        ({"names": ["x"]}, "'names' has 1 names for 2 members"),
        ({"names": ["x", "ours"]}, "no member may be called 'ours'"),
        ({"rank_by": ["sid"]}, "'rank_by' has 1 values for 2 members"),
        ({"rank_by": ["sid", "item"]}, "unknown rank_by 'item'; did you mean 'items'"),
        ({"ways": ["gates"]}, "unknown way 'gates'; did you mean 'gate'"),
        ({"ways": []}, "one or more different ways"),
        ({"members": ["a", "b", "c"], "names": None, "ways": ["gate"]}, "the gate mixes two members, not 3"),
        ({"k": [5, 5]}, "'k' is .* different integers"),
        ({"depth": 2}, "'depth' is 2; 3 or more"),
        ({"members": ["no/such", "b"], "names": None}, "'no/such' is not a directory"),
    ],
)
def test_bad_configs_are_refused_before_anything_is_written(config, changes, message):
    with pytest.raises(ValueError, match=message):
        ensemble.main(dataclasses.replace(config, **changes))
    assert not list(Path(config.out).parent.glob("mix*"))


def test_the_same_member_by_another_path_is_refused(config, tmp_path):
    (tmp_path / "copy-1").symlink_to(config.members[0])
    with pytest.raises(ValueError, match=r"step-1' and '.*copy-1' are the same"):
        ensemble.main(dataclasses.replace(config, members=[*config.members, str(tmp_path / "copy-1")], names=None))


def test_what_is_no_finished_member_is_refused(config, tmp_path):
    (tmp_path / "mine.partial").mkdir()
    for member, message in (
        (config.catalog, "was written by `llmrec prepare`; the output of `llmrec extend`.* is needed here"),
        (str(tmp_path / "mine"), r"'.*mine' is unfinished"),
        (str(tmp_path / "mine.partial"), "is an unfinished result"),
    ):
        with pytest.raises(ValueError, match=message):
            ensemble.main(dataclasses.replace(config, members=[config.members[0], member], names=None))

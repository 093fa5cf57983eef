"""Comparison of runs: by hand, with itself, over seeds, and refused where runs did not measure the same thing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmrec.configs import CompareConfig, EvaluateConfig
from llmrec.data.catalog import Catalog
from llmrec.evaluation.bootstrap import paired_difference
from llmrec.evaluation.compare import convergence, learning_lines
from llmrec.evaluation.learning import learning
from llmrec.evaluation.metrics import Position, per_example
from llmrec.evaluation.protocol import COLUMNS, Outcome
from llmrec.evaluation.runs import Run, per_user, training_difference
from llmrec.runtime.manifest import adopt, write_json
from llmrec.runtime.stage_directory import run_stage
from llmrec.stages.compare import main, show
from tests.reports.test_evaluation_page import Balanced
from tests.support.prepared import run_json

USERS = 6  # test rows of the shared catalogue, one per user
TRAINED = {"stage": "sft", "config": {"epochs": 3.0, "seed": 0}, "inputs": {"catalog": "c", "model": "base"}}


@pytest.fixture
def write_run(tmp_path, catalog, monkeypatch):
    """A function that leaves an evaluation whose targets stand at the given places (-1: absent), those of baselines and
    of the column `seen_excluded` at the same unless told otherwise."""
    monkeypatch.setenv("LLMREC_QUIET", "1")
    monkeypatch.chdir(tmp_path)

    def write(
        name: str,
        start,
        trained: dict | None = TRAINED,
        on: Catalog = catalog,
        theirs=None,
        excluded=None,
        curves: dict[str, list] | None = None,
        **options,
    ) -> str:
        systems = ("ours", *options.get("baselines", ["popularity"]))
        outcomes = {}
        for system in systems:
            plain = start if system == "ours" or theirs is None else theirs
            for column, places in zip(COLUMNS, (plain, plain if excluded is None else excluded), strict=True):
                position = Position(np.array(places), np.ones(USERS, np.int64), np.array(places))
                items, invalid = np.zeros((USERS, 3), np.int64), np.zeros(USERS, np.int64)
                outcomes[system, column] = Outcome(position, items, invalid, 1.0)

        def build(workdir: Path) -> None:
            facts = {"trained": trained, "split": config.split, "systems": dict.fromkeys(systems)}
            facts["learning"] = {system: learning(curve) for system, curve in (curves or {}).items()}
            write_json(workdir / "metrics.json", facts)
            pq.write_table(per_user(outcomes, np.arange(USERS), on.examples("test"), on), workdir / "per_user.parquet")

        config = EvaluateConfig(**{"out": name, "catalog": "catalog", "model": f"model-{name}", "k": [2, 1]} | options)
        return str(run_stage("evaluate", config, {"catalog": config.catalog, "model": config.model}, build))

    return write


def compared(*runs: str, **options) -> dict:
    return main(CompareConfig(runs=list(runs), **options))


def test_differences_by_hand(write_run):
    result = compared(write_run("a", [0, 1, -1, 0, 1, 2]), write_run("b", [0, 0, -1, 1, -1, 0]))
    assert (result["split"], result["k"], result["num_examples"], result["num_users"]) == ("test", [1, 2], 6, 6)
    for column in COLUMNS:
        a, b = (result["systems"][name][column] for name in ("a", "b"))
        assert list(a) == ["recall@1", "recall@2", "ndcg@1", "ndcg@2"]
        assert a["recall@1"]["mean"] == pytest.approx(2 / 6) and b["recall@1"]["mean"] == pytest.approx(3 / 6)
        difference = result["differences"]["b"][column]
        assert difference["recall@1"]["mean"] == pytest.approx(1 / 6)
        assert difference["recall@2"]["mean"] == pytest.approx(0)  # four hits each
        second = 1 / np.log2(3)
        assert difference["ndcg@2"]["mean"] == pytest.approx((3 + second - 2 - 2 * second) / 6)
    assert result["differences"].keys() == {"b"}


def test_each_column_is_compared_with_itself(write_run):
    runs = (write_run(name, [0] * hits + [-1] * (6 - hits), excluded=[0] * (hits + 3) + [-1] * (3 - hits))
            for name, hits in (("a", 1), ("b", 2)))  # fmt: skip
    result = compared(*runs)
    for column, expected in zip(COLUMNS, ((1 / 6, 2 / 6), (4 / 6, 5 / 6)), strict=True):
        found = [result["systems"][name][column]["recall@1"]["mean"] for name in "ab"]
        assert found == pytest.approx(list(expected))


def test_intervals_are_those_of_the_paired_bootstrap(write_run, catalog):
    starts = [np.array([0, 1, -1, 0, 1, 2]), np.array([0, 0, -1, 1, -1, 0])]
    result = compared(*(write_run(name, start) for name, start in zip("ab", starts, strict=True)), seed=3)
    values = [per_example(Position(s, np.ones(6, int), s), [1, 2])["ndcg@2"] for s in starts]
    expected = paired_difference(values[1], values[0], catalog.examples("test").user_ids, seed=3)
    assert list(result["differences"]["b"]["plain"]["ndcg@2"].values()) == pytest.approx([float(e) for e in expected])


@pytest.mark.parametrize("seed", range(5))
def test_a_run_differs_from_itself_by_exactly_nothing(write_run, seed):
    run = write_run("a", np.random.default_rng(seed).integers(-1, 3, size=USERS))
    result = compared(run, run, names=["once", "again"])
    assert result["systems"]["once"] == result["systems"]["again"]
    for column in COLUMNS:
        for difference in result["differences"]["again"][column].values():
            assert difference == {"mean": 0, "low": 0, "high": 0}


def seeded(seed: int, **config) -> dict:
    return {**TRAINED, "config": {**TRAINED["config"], "seed": seed, **config}}


def test_seeds_of_one_name_are_averaged_and_their_spread_is_told(write_run):
    runs = [
        write_run("one", [0, 0, -1, -1, -1, -1]),
        write_run("s0", [0, -1, -1, -1, -1, -1], seeded(0)),
        write_run("s1", [0, 0, 0, -1, -1, -1], seeded(1)),
        write_run("s2", [0, 0, -1, -1, -1, -1], seeded(2)),
    ]
    result = compared(*runs, names=["base", "many", "many", "many"])
    assert result["num_seeds"] == {"base": 1, "many": 3}
    recall = result["systems"]["many"]["plain"]["recall@1"]
    assert recall["mean"] == pytest.approx(2 / 6)  # 1/6, 3/6 and 2/6
    assert recall["sd"] == pytest.approx(1 / 6)
    assert result["systems"]["base"]["plain"]["recall@1"]["sd"] is None
    assert result["differences"]["many"]["plain"]["recall@1"]["mean"] == pytest.approx(0, abs=1e-12)


def test_the_tables_name_the_runs_and_who_is_ahead(write_run, monkeypatch, capsys):
    show(compared(write_run("good", [0] * USERS), write_run("bad", [-1] * USERS)))
    printed = capsys.readouterr().out
    assert printed.startswith(
        "good is ahead of bad: ndcg@2 is 1.0000 against 0.0000 if items of the history may be returned.\n"
        "This is certain: the 95 % interval of the lead over 6 users, [+1.0000, +1.0000], excludes 0.\n"
    )
    assert "6 test examples of 6 users" in printed and max(map(len, printed.splitlines()[3:-2])) <= 80
    assert re.findall(r"(bad) +0.0000 +0.0000 +\[\+1.0000, \+1.0000\] +(\w+)", printed) == [("bad", "first")] * 2
    show(compared(write_run("worse", [-1] * USERS), write_run("better", [0] * USERS)))
    turned = capsys.readouterr().out
    assert re.findall(r"better +1.0000 +1.0000 +\[-1.0000, -1.0000\] +(\w+)", turned) == ["this"] * 2


def test_the_command_prints_json(write_run, capsys):
    runs = write_run("a", [0] * USERS), write_run("b", [1] * USERS)
    result = run_json(capsys, "compare", "--runs", *runs, "--names", "first one", "second")
    assert result["differences"]["second"]["plain"]["recall@1"] == {"mean": -1, "low": -1, "high": -1}


def test_the_page_has_every_run_and_a_file_of_that_name_is_kept(write_run, tmp_path):
    runs = write_run("a", [0] * USERS), write_run("b", [1] * USERS), write_run("b2", [0] * USERS, seeded(1))
    compared(*runs, names=["a", "<b>", "<b>"], html="page.html")
    page = Balanced((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.texts.count("a") == 2 and page.texts.count("<b>") == 4
    assert "sd 0.7071" in page.texts and "-0.5000" in page.texts
    with pytest.raises(ValueError, match=r"--html 'page\.html' exists"):
        compared(*runs[:2], html="page.html")


def curve(*points: tuple[int, float, float]) -> list[dict[str, float]]:
    """A learning curve from (targets, seconds, ndcg)."""
    return [dict(zip(("supervised", "seconds", "ndcg"), point, strict=True)) for point in points]


TEACHER = curve((100, 1, 0.02), (200, 2, 0.04), (300, 3, 0.05), (400, 4, 0.03))


@pytest.fixture
def three_curves(write_run) -> tuple[str, ...]:
    """SASRec, whose best is .05; two seeds that reach it after 900 and 1,500 targets; a run that never does."""
    found = [0] * USERS
    return (
        write_run("fast", found, seeded(0), curves={
            "ours": curve((300, 5, 0.01), (600, 10, 0.049), (900, 15, 0.06), (1200, 20, 0.05)), "sasrec": TEACHER,
        }, baselines=["sasrec"]),
        write_run("fast-1", found, seeded(1), curves={"ours": curve((500, 9, 0.03), (1500, 27, 0.05))}),
        write_run("slow", found, curves={"ours": curve((500, 9, 0.01), (1500, 27, 0.02))}),
        write_run("mixture", found, curves={"ours": None}),
    )  # fmt: skip


def test_the_training_to_a_baselines_level_by_hand(three_curves):
    fast, again, slow, mixture = three_curves
    options = {"systems": ["sasrec", *["ours"] * 4], "names": ["sasrec", "distilled", "distilled", "plain", "mixture"]}
    learned = compared(fast, fast, again, slow, mixture, **options)["learning"]
    assert learned["level"] == 0.05 and list(learned["runs"]) == ["sasrec", "distilled", "plain"]
    points = {name: of["reached"] for name, of in learned["runs"].items()}
    assert points["sasrec"] == curve((300, 3, 0.05))
    assert points["distilled"] == curve((900, 15, 0.06), (1500, 27, 0.05))
    assert points["plain"] == [None]
    assert learned["runs"]["distilled"]["best"] == pytest.approx(0.055)
    header, lines = learning_lines({"learning": learned, "systems": {"sasrec": None}})
    assert header[2:] == ["targets to reach sasrec", "seconds to reach sasrec", "seeds that do"]
    assert lines == [
        ["sasrec", "0.0500", "300", "3", "1 of 1"],
        ["distilled", "0.0550", "1,200", "21", "2 of 2"],
        ["plain", "0.0200", "-", "-", "0 of 1"],
    ]


def test_a_seed_that_stays_below_leaves_no_mean(three_curves):
    fast, again, *_ = three_curves
    result = compared(fast, fast, again, systems=["ours", "sasrec", "ours"], names=["best", "sasrec", "second"])
    assert result["learning"]["level"] == 0.06
    assert learning_lines(result)[1][1:] == [
        ["sasrec", "0.0500", "-", "-", "0 of 1"],
        ["second", "0.0500", "-", "-", "0 of 1"],
    ]
    below = convergence([Run("a", "", {}, "test", None, curve=c) for c in (curve((1, 1, 0.4)), curve((2, 2, 0.2)))])
    assert below["level"] == pytest.approx(0.3) and below["runs"]["a"]["reached"] == [curve((1, 1, 0.4))[0], None]
    assert learning_lines({"learning": below, "systems": {"a": None}})[1] == [["a", "0.3000", "-", "-", "1 of 2"]]


def test_without_a_curve_of_the_first_run_there_is_no_level(three_curves):
    fast, _, slow, mixture = three_curves
    result = compared(mixture, fast, slow, names=["mixture", "fast", "slow"])
    assert result["learning"]["level"] is None
    assert learning_lines(result) == (["run", "best valid ndcg@10"], [["fast", "0.0600"], ["slow", "0.0200"]])
    assert compared(mixture, mixture, names=["a", "b"])["learning"] is None


def test_the_page_shows_all_curves_and_the_terminal_all_runs(three_curves, tmp_path, capsys):
    fast, again, slow, mixture = three_curves
    options = {"systems": ["sasrec", *["ours"] * 4], "names": ["sasrec", "distilled", "distilled", "plain", "mixture"]}
    show(compared(fast, fast, again, slow, mixture, html="page.html", **options))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Balanced(text)
    assert page.tags.count("svg") == 2 and text.count("<polyline") == 2 * (4 + 1)  # four seeds and the level
    assert "best of sasrec" in page.texts and "targets to reach sasrec" in page.texts and "1,200" in page.texts
    shown = capsys.readouterr().out
    assert "distilled (2" in shown and max(map(len, shown.splitlines()[3:-2])) <= 80
    compared(mixture, mixture, names=["a", "b"], html="without.html")
    assert "<svg" not in (tmp_path / "without.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "split is test in 'a' and valid in 'b'; evaluate both with the same --split"),
        ({"k": [1, 3]}, r"k is \[1, 2\] in 'a' and \[1, 3\] in 'b'"),
        ({"max_examples": 6}, "max_examples is None in 'a' and 6 in 'b'"),
        ({"catalog": "another"}, "'a' and 'b' were evaluated on different catalogues"),
        ({"split": "valid", "catalog": "another"}, "split is .*; 'a' and 'b' were evaluated on different"),
    ],
)
def test_runs_that_measured_something_else_are_refused_with_every_reason(write_run, monkeypatch, options, message):
    runs = write_run("a", [0] * USERS), write_run("b", [0] * USERS, **options)
    monkeypatch.setattr("llmrec.evaluation.runs.pq.read_table", None)  # nothing is read before
    with pytest.raises(ValueError, match=f"cannot be compared: {message}"):
        compared(*runs)


def test_examples_drawn_with_different_seeds_are_refused(write_run):
    drawn = [write_run(f"seed-{seed}", [0] * USERS, max_examples=6, seed=seed) for seed in (0, 1)]
    with pytest.raises(ValueError, match="the seed that drew the examples is 0 in 'seed-0' and 1 in 'seed-1'"):
        compared(*drawn)
    whole = [write_run(f"whole-{seed}", [0] * USERS, seed=seed) for seed in (0, 1)]
    assert compared(*whole)["num_examples"] == USERS  # nothing was drawn: the seed is of the resampling alone


def test_the_order_of_cutoffs_is_no_difference(write_run):
    assert compared(write_run("a", [0] * USERS, k=[1, 2]), write_run("b", [0] * USERS))["k"] == [1, 2]


def test_other_examples_under_the_same_manifest_are_refused(write_run, catalog):
    order = np.roll(np.arange(catalog._split.num_rows), 3)
    other = Catalog(catalog.items, catalog._split.take(order))
    with pytest.raises(ValueError, match="'a' and 'b' hold different examples"):
        compared(write_run("a", [0] * USERS), write_run("b", [0] * USERS, on=other))


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        (seeded(1, epochs=5.0), "share the name 'x' but differ in more than the training seed: epochs is 3.0 and 5.0"),
        ({**TRAINED, "inputs": {"catalog": "c", "model": "z"}}, "training seed: the input 'model' is not the same"),
        ({"stage": "extend"}, "one was made by `llmrec sft`, the other by `llmrec extend`"),
        (None, "'b' shares the name 'x' but does not say how its checkpoint was made"),
    ],
)
def test_only_the_training_seed_may_differ_under_one_name(write_run, trained, message):
    runs = write_run("a", [0] * USERS), write_run("b", [0] * USERS, trained)
    with pytest.raises(ValueError, match=message):
        compared(*runs, names=["x", "x"])
    assert compared(*runs)["num_examples"] == USERS  # under two names they may be compared


def test_one_checkpoint_is_not_two_seeds(write_run):
    runs = write_run("a", [0] * USERS, model="m"), write_run("b", [0] * USERS, model="m", num_beams=3)
    with pytest.raises(ValueError, match="'a' and 'b' share the name 'x' and evaluate the same checkpoint"):
        compared(*runs, names=["x", "x"])


def test_the_first_seed_that_does_not_say_how_it_was_made_is_refused_too(write_run):
    runs = write_run("a", [0] * USERS, None), write_run("b", [0] * USERS)
    with pytest.raises(ValueError, match="'a' shares the name 'x' but does not say"):
        compared(*runs, names=["x", "x"])


def test_a_baseline_is_compared_and_its_seeds_are_those_of_the_runs(write_run):
    ours, starts = [-1, -1, -1, -1, -1, 0], {"e0": [0, 0, -1, -1, -1, -1], "e1": [0, 0, 0, 0, -1, -1]}
    runs = [
        write_run(name, ours, theirs=starts[name], seed=seed, baselines=["sasrec"]) for seed, name in enumerate(starts)
    ]
    result = compared(runs[0], *runs, systems=["ours", "sasrec", "sasrec"], names=["ours", "sasrec", "sasrec"])
    assert result["num_seeds"] == {"ours": 1, "sasrec": 2}
    assert result["systems"]["ours"]["plain"]["recall@1"]["mean"] == pytest.approx(1 / 6)
    assert result["systems"]["sasrec"]["plain"]["recall@1"]["mean"] == pytest.approx(3 / 6)  # 2/6 and 4/6
    assert result["differences"]["sasrec"]["plain"]["recall@1"]["mean"] == pytest.approx(2 / 6)
    assert list(compared(runs[0], runs[0], systems=["ours", "sasrec"])["systems"]) == ["e0", "e0 (sasrec)"]


@pytest.mark.parametrize(
    ("systems", "names", "seed", "message"),
    [
        (["sasrec", "gru4rec"], ["x", "y"], 1, "'b' has no system 'gru4rec'; it has ours, sasrec, popularity"),
        (["sasrec", "popularity"], ["x", "x"], 1, "the name 'x' is given to sasrec and popularity"),
        (["sasrec", "sasrec"], ["x", "x"], 0, "'a' and 'b' share the name 'x' and sasrec with the same seed, 0"),
        (["popularity", "popularity"], ["x", "x"], 1, "share the name 'x' and popularity, which is counted"),
        (["sasrec"], ["x", "x"], 1, "--systems has 1 systems for 2 --runs"),
    ],
)
def test_systems_that_are_not_in_the_runs_or_not_seeds_are_refused(write_run, systems, names, seed, message):
    runs = [
        write_run(name, [0] * USERS, seed=of, baselines=["sasrec", "popularity"])
        for name, of in (("a", 0), ("b", seed))
    ]
    with pytest.raises(ValueError, match=message):
        compared(*runs, systems=systems, names=names)


def test_training_differences_leave_the_seed_out():
    assert training_difference(seeded(0), seeded(7)) == ""


def test_an_adopted_directory_does_not_say_what_it_measured(tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "metrics.json").write_text(json.dumps({}))
    adopt(tmp_path / "eval", "evaluate")
    with pytest.raises(ValueError, match="does not say how it was evaluated"):
        Run.load("a", str(tmp_path / "eval"))


def test_an_evaluation_of_an_earlier_version_is_refused(write_run, tmp_path):
    run = write_run("a", [0] * USERS)
    manifest = tmp_path / "a" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"max_examples"', '"max_rows"'))
    with pytest.raises(ValueError, match="'a' was written by an earlier version of llmrec; run `llmrec eval"):
        Run.load("a", run)

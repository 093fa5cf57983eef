"""The grid of pipelines: shared stages run once, a failure leaves the others alone, results are taken up again.

The experiments themselves run at a tiny size, their stages in this process.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
import torch

from llmrec.baselines import SASRec
from llmrec.baselines.counted import Markov
from llmrec.baselines.networks.sasrec import SASRecOptions
from llmrec.baselines.taught import Taught
from llmrec.cli import main
from llmrec.data.catalog import Catalog
from llmrec.runtime.manifest import adopt
from llmrec.stages import embed
from llmrec.views.famae import TRAINING, famae_view

pytestmark = pytest.mark.slow  # experiments run on demand
FOLDER = Path(__file__).parents[2] / "scripts" / "experiments"
MODULES = [file.stem for file in FOLDER.glob("*.py")]


@pytest.fixture
def grid(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import grid

    yield grid
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def arguments(grid, tmp_path):
    def of(*more: str):
        words = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results.jsonl"), "--parallel", "2"]
        return grid.parser("").parse_args([*words, *more])

    return of


def pipelines(grid, seeds=(0,)) -> list:
    """Two that share their first stage, and one whose second stage fails."""
    first = ("tokenize", {"method": "random"})
    return [
        grid.Run(name, (first, ("extend", {"model": model})), seed)
        for seed in seeds
        for name, model in (("small", "micro"), ("large", "wide"), ("broken", "none"))
    ]


def pretend(grid, monkeypatch) -> list[list[str]]:
    """Stages that write a manifest and nothing else; what they were called with."""
    called: list[list[str]] = []

    def process(self, label, words):
        called.append(words)
        if "none" in words:
            raise grid.Failed("extend: 2: no such model")
        out = Path(words[words.index("--out") + 1])
        out.mkdir(parents=True)
        (out / "manifest.json").write_text("{}")

    monkeypatch.setattr(grid.Grid, "process", process)
    return called


@pytest.fixture
def run(grid, monkeypatch, tmp_path, capsys, one_thread):
    """Call the main function of an experiment on a small simulated catalogue, and return what it kept and printed."""
    import decoder

    def process(self, label, words):
        if main(words) != 0:
            raise grid.Failed(capsys.readouterr().err)

    monkeypatch.setattr(grid.Grid, "process", process)
    monkeypatch.setattr(decoder, "EXTEND", {"model": "micro", "micro_layers": 1, "micro_hidden": 32, "micro_words": 64})
    monkeypatch.setattr(decoder, "EVALUATE", {"baselines": [], "batch_size": 256})
    monkeypatch.setattr(SASRec, "options", functools.partial(SASRecOptions, max_epochs=1))
    short = dataclasses.replace(TRAINING, max_epochs=1)
    monkeypatch.setattr(embed, "famae_view", functools.partial(famae_view, training=short))
    catalog = tmp_path / "catalog"
    simulated = ["prepare", "--dataset", "simulated:50x32"]
    assert main([*simulated, "--k-core", "3", "--out", str(catalog)]) == 0

    def call(module: ModuleType, *flags: str) -> tuple[dict[str, dict], str]:
        given = ["--catalog", catalog, "--work", tmp_path / "work", "--results", tmp_path / "results.jsonl"]
        given += ["--epochs", 0.2, "--parallel", 1, "--device", "cpu", *flags]
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, given)])
        capsys.readouterr()
        module.main()
        lines = (tmp_path / "results.jsonl").read_text().splitlines()
        return {r["name"]: r for r in map(json.loads, lines)}, capsys.readouterr().out

    return call


def test_stages_in_common_run_once_and_a_failure_leaves_the_others_alone(grid, arguments, monkeypatch, tmp_path):
    called = pretend(grid, monkeypatch)
    made = grid.Grid(arguments(), lambda run, directories: {"seen": [path.name for path in directories]})
    made.run_all(pipelines(grid))
    assert sorted(words[0] for words in called) == ["extend", "extend", "extend", "tokenize"]
    extended = next(words for words in called if "micro" in words)
    assert extended[extended.index("--sid") + 1] == str(made.directory(pipelines(grid)[0], 1))
    results = {r["name"]: r for r in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())}
    assert results["small"]["seen"][0] == results["large"]["seen"][0]
    assert results["broken"]["error"] == "extend: 2: no such model"


def test_an_earlier_calls_results_are_not_run_again_but_failures_are(grid, arguments, monkeypatch, tmp_path):
    called = pretend(grid, monkeypatch)
    grid.Grid(arguments(), lambda run, directories: {}).run_all(pipelines(grid))
    done = tmp_path / "done.jsonl"
    (tmp_path / "results.jsonl").rename(done)
    called.clear()
    again = grid.Grid(arguments("--resume", str(done), "--work", str(tmp_path / "fresh")), lambda run, directories: {})
    again.run_all(pipelines(grid))
    assert [words[0] for words in called] == ["tokenize", "extend"] and "none" in called[1]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 3


def test_the_same_results_file_is_gone_on_with_and_what_is_open_is_listed(grid, arguments, monkeypatch, tmp_path):
    called = pretend(grid, monkeypatch)
    table, still_open = pipelines(grid, seeds=(0, 1)), tmp_path / "results.open.txt"
    grid.carry_out(arguments("--only", "small", "broken"), table, lambda run, directories: {}, lambda results: None)
    broken = "broken seed {}: extend: 2: no such model\n"
    assert still_open.read_text() == "".join(f"large seed {seed}\n{broken.format(seed)}" for seed in (0, 1))
    called.clear()
    grid.carry_out(arguments("--skip", "broken"), table, lambda run, directories: {}, lambda results: None)
    assert [words[words.index("--model") + 1] for words in called] == ["wide", "wide"]
    assert still_open.read_text() == "".join(broken.format(seed) for seed in (0, 1))
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 6


def test_nothing_is_started_beyond_the_budget(grid, arguments, monkeypatch, capsys):
    called = pretend(grid, monkeypatch)
    grid.Grid(arguments("--budget-s", "-1"), lambda run, directories: {}).run_all(pipelines(grid))
    assert not called and "not started, over --budget-s: small seed 0" in capsys.readouterr().out


def test_seeds_and_options_tell_runs_apart_and_what_changes_no_result_does_not(grid):
    def key(options, seed=0):
        return grid.Run("a", (("sft", options),), seed).key

    assert key({"epochs": 1}) != key({"epochs": 2}) != key({"epochs": 2}, seed=1)
    assert key({"epochs": 1}) == key({"epochs": 1, "compile": True, "device": "cuda"})
    assert grid.flags({"views": ["text", "image"], "allow_collapse": True, "seed": None, "max_history": 20}) == [
        "--views", "text", "image", "--allow-collapse", "true", "--max-history", "20",
    ]  # fmt: skip


def test_the_tokenizers_of_the_table_are_those_there_are(grid):
    from beauty_tokenizers import METHODS

    from llmrec.configs import TokenizeConfig
    from llmrec.configs.file import load_config
    from llmrec.tokenizers import TOKENIZERS
    from llmrec.tokenizers.config import make_tokenizer, option_blocks

    assert {options["method"] for options in METHODS.values()} == set(TOKENIZERS)
    for options in METHODS.values():
        given = {"out": "o", "catalog": "c", "views": "v", **options}
        make_tokenizer(load_config(TokenizeConfig, overrides=given, blocks=option_blocks(options["method"])))


def test_the_table_begins_with_what_matters_and_has_all_tokenizers(grid, monkeypatch, tmp_path):
    import beauty_tokenizers

    runs: list = []
    monkeypatch.setattr(sys, "argv", ["", "--work", str(tmp_path), "--results", str(tmp_path / "results.jsonl")])
    monkeypatch.setattr(beauty_tokenizers, "carry_out", lambda arguments, found, *functions: runs.extend(found))
    beauty_tokenizers.main()
    names, matter = [run.name for run in runs], beauty_tokenizers.MATTER
    assert names[:60] == [*matter] * 3 + [f"{name}, distilled" for name in matter] * 3
    assert [run.seed for run in runs[:60]] == ([0] * 10 + [1] * 10 + [2] * 10) * 2
    methods = beauty_tokenizers.METHODS
    assert set(names) == {*methods, *(f"{name}, distilled" for name in methods)} and len(runs) == 2 * len(methods) + 40
    assert {run.seed for run in runs[60:]} == {0} and len({run.key for run in runs}) == len(runs)
    kept = FOLDER / "results" / "beauty_tokenizers_flat"
    still_open = kept.with_suffix(".open.txt").read_text().splitlines()
    done = [f"{r['name']} seed {r['seed']}" for r in grid.read(kept.with_suffix(".jsonl")) if "error" not in r]
    assert sorted(f"{run.name} seed {run.seed}" for run in runs) == sorted(
        [*done, *(line.split(": ")[0] for line in still_open)]
    )
    plain, distilled = (dict(runs[place].steps) for place in (0, 30))
    sft = plain["sft"]
    assert (sft["epochs"], sft["dropout"], sft["max_history"], sft["eval_steps"]) == (30, 0.2, 50, 440)
    assert distilled["sft"] == {**sft, "teacher": ["runs/beauty/teacher"], "drawn_answers": True}
    assert runs[0].digest(2) == runs[30].digest(2)  # tokenize and extend are shared


def test_the_table_of_tokenizers_runs_and_goes_on(run, monkeypatch, tmp_path):
    import beauty_tokenizers

    monkeypatch.setitem(beauty_tokenizers.METHODS["rq_kmeans"], "codebook_size", 4)
    views = str(tmp_path / "views")
    embedded = ["--catalog", str(tmp_path / "catalog"), "--text-encoder", "tfidf"]
    assert main(["embed", *embedded, "--collaborative-dim", "8", "--out", views]) == 0
    catalog, teacher = Catalog.load(tmp_path / "catalog"), tmp_path / "teacher"
    teacher.mkdir()
    Taught(Markov(catalog), torch.device("cpu")).save(teacher, catalog)
    adopt(teacher, "teach")
    given = ["--views", views, "--teacher", teacher, "--seeds", 0]
    results, said = run(beauty_tokenizers, *given, "--only", "^atomic$", "^rq_kmeans(, distilled)?$")
    assert not [result["error"] for result in results.values() if "error" in result]
    done = {"atomic", "rq_kmeans", "rq_kmeans, distilled"}
    assert results.keys() == done and {"valid", "test"} < results["atomic"].keys()
    assert results["rq_kmeans"]["curve"]["best"] >= 0
    assert results["rq_kmeans"]["loss"] != results["rq_kmeans, distilled"]["loss"]
    assert {line[:34].strip() for line in said.splitlines()[-3:]} == done
    names = [line.split(" seed ")[0] for line in (tmp_path / "results.open.txt").read_text().splitlines()]
    methods = beauty_tokenizers.METHODS
    assert sorted([*names, *done]) == sorted([*methods, *(f"{name}, distilled" for name in methods)])
    again, _ = run(beauty_tokenizers, *given, "--only", "^atomic$", "^random$")
    assert again["atomic"] == results["atomic"] and again.keys() == {*done, "random"}


def test_beneath_the_llm_of_a_recipe_only_directories_are_the_runs_own(grid):
    from decoder import RECIPE, decoder_steps

    from llmrec.configs import ExtendConfig, SftConfig
    from llmrec.configs.file import load_config

    (_, extend), (_, sft), *_ = decoder_steps({"catalog": "c"}, 12, "cpu", "smollm2")
    written = load_config(SftConfig, RECIPE / "sft-full.yaml")
    own = {"catalog": "c", "model": "base", "out": "checkpoint", "device": "cpu"}
    assert SftConfig(**{**sft, **own}) == dataclasses.replace(written, **own)
    assert "model" not in sft and "out" not in sft
    written = load_config(ExtendConfig, RECIPE / "extend.yaml")
    assert ExtendConfig(**extend, sid="sid", out="base") == dataclasses.replace(
        written, catalog="c", sid="sid", out="base"
    )


def test_the_claim_of_the_probe_averages_seeds_and_draws_tokenizers(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    import probe_claim

    def run(name: str, recall: float, entropy: float, **more) -> str:
        probe = {"item_cross_entropy": entropy, "recall_at_50": 1 - recall, "ndcg_at_10": recall, "gain": [recall]}
        found = {"name": name, "test": {"plain": {"recall@10": recall}}, "probe": probe}
        return json.dumps(found | {"collision_rate": 0.1 * recall, "perplexity_share": [recall], **more})

    lines = [run("a", 0.1, 9.0), run("b", 0.2, 9.5), run("b", 0.4, 7.5), run("c", 0.5, 8.6), run("d", 0.6, 7.0)]
    (tmp_path / "runs.jsonl").write_text("\n".join([*lines, run("e", 0.9, 9.9, error="killed"), run("f", 0, 1)]))
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "runs.jsonl"), "--without", "f", "--samples", "50"])
    probe_claim.main()
    first, *measured = capsys.readouterr().out.splitlines()
    assert first == "4 tokenizers, 5 runs"
    assert measured[0].split()[:3] == ["probe:", "-item_cross_entropy", "+0.80"]  # b, by its mean, and c change places
    assert measured[1].split()[2:] == ["-1.00", "[-1.00,", "-1.00]"]


def test_minutes_count_the_views_that_a_method_reads(grid, monkeypatch, tmp_path):
    import beauty_tokenizers

    monkeypatch.setattr(beauty_tokenizers, "ROOT", tmp_path)
    for folder, counts in (("views", {"seconds": {"text": 60.0, "famae": 30.0}}), ("sid", {"fit_seconds": 6.0})):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "manifest.json").write_text(json.dumps({"counts": counts}))

    def minutes(**options) -> float | None:
        run = grid.Run("a", (("tokenize", {"views": "views", **options}),))
        return beauty_tokenizers.tokenization(run, tmp_path / "sid")["minutes"]

    assert minutes(view_names=["famae"]) == pytest.approx(0.6)
    assert minutes(view_names=["text", "famae"]) == pytest.approx(1.6)
    assert minutes() == pytest.approx(0.1)  # no view is read
    assert minutes(view_names=["sasrec"]) is None  # nobody knows what it took


def test_a_larger_share_of_dropped_fields_holds_the_smaller_one(grid):
    import field_drop

    items = pa.table({"item_id": list("abcdefghij"), "year": range(10), "genres": [["x"], ["x", "y"]] * 5})
    some, more = (field_drop.drop_fields(items, ["year", "genres"], rate, seed=1) for rate in (0.3, 0.6))
    lost, lost_more = (set(np.flatnonzero(table["year"].is_null().to_numpy())) for table in (some, more))
    assert (len(lost), len(lost_more)) == (3, 6) and lost < lost_more
    assert set(np.flatnonzero(some["genres"].is_null().to_numpy())) == lost
    kept = [row for row in range(10) if row not in lost]
    assert some.schema == items.schema and some.take(kept).equals(items.take(kept))
    assert field_drop.drop_fields(items, ["year"], 0.0, seed=1).equals(items)


def test_field_drop_runs_and_pairs_its_users(run):
    import field_drop

    only = ["--famae-dim", 4, "--rates", 0, 0.6, "--only", "^fields, 0%", "^fields and text, 60%", "^text"]
    results, said = run(field_drop, *only)
    assert not [result["error"] for result in results.values() if "error" in result]
    assert list(results) == ["fields, 0% dropped", "text, 0% dropped", "fields and text, 60% dropped"]
    whole, partial = results["fields, 0% dropped"], results["fields and text, 60% dropped"]
    assert len(whole["lost"]) == 0 < len(partial["lost"]) < partial["users"] == whole["users"]
    assert len(partial["hits"]) / partial["users"] == pytest.approx(partial["test"]["plain"]["recall@10"])
    assert partial["famae"].keys() == {"all_hidden", "item_hidden"} and results["text, 0% dropped"]["famae"] == {}
    (line,) = [line for line in said.splitlines() if line.startswith("fields, 0%")]
    assert "- all fields 0.0000 [0.0000, 0.0000]" in line and "targets without" not in line
    (line,) = [line for line in said.splitlines() if line.startswith("fields and text, 60%")]
    rows, hits, base = partial["lost"], field_drop.hits_of(partial), field_drop.hits_of(whole)
    assert f"targets without fields {hits[rows].mean():.4f}, with them {base[rows].mean():.4f}" in line


def test_the_backbone_sweep_gives_the_three_systems_one_size(run):
    import backbone_sweep

    backbone_sweep.SIZES["small"] = (1, 32)
    results, said = run(backbone_sweep, "--famae-dim", 4, "--sizes", "small", "--codebook-size", 4)
    assert not [result["error"] for result in results.values() if "error" in result]
    systems = {name: system for result in results.values() for name, system in result["systems"].items()}
    assert {name: list(system) for name, system in systems.items()} == {
        "ReSID, small": ["valid", "test", "backbone"],
        "SASRec, small": ["test", "backbone"],
        "TIGER, small": ["valid", "test", "backbone"],
    }
    assert systems["ReSID, small"]["backbone"] == systems["TIGER, small"]["backbone"]
    assert systems["SASRec, small"]["backbone"] == 12 * 32**2 + 13 * 32 + 2 * 32  # a block, and the norm at the end
    assert [line.split(",")[0] for line in said.splitlines()[-3:]] == ["ReSID", "SASRec", "TIGER"]


def test_etegrec_ablations_share_their_start_and_differ_in_their_turns(run, grid, monkeypatch, tmp_path):
    import etegrec_ablations

    small = {"codebook_size": 4, "encoder_layers": [8], "latent_dim": 8, "max_epochs": 2}
    monkeypatch.setattr(etegrec_ablations, "TOKENIZE", {**etegrec_ablations.TOKENIZE, **small})
    monkeypatch.setattr(etegrec_ablations, "ALTERNATE", {**etegrec_ablations.ALTERNATE, "cycle_steps": 1})
    views = str(tmp_path / "views")
    embedded = ["--catalog", str(tmp_path / "catalog"), "--views", "sasrec", "--collaborative-dim", "8"]
    assert main(["embed", *embedded, "--out", views, "--device", "cpu"]) == 0
    only = ["--only", "^frozen", "^alternating", "^final", "^joint"]
    results, said = run(etegrec_ablations, "--views", views, "--epochs", 5, *only)
    assert not [result["error"] for result in results.values() if "error" in result]
    assert len(list((tmp_path / "work").glob("tokenize-*"))) == 1
    assert (results["frozen"]["cycles"], results["alternating"]["cycles"]) == (0, 3)
    extended = [grid.load(path)["config"]["sid"] for path in (tmp_path / "work").glob("extend-*/manifest.json")]
    assert sorted(re.sub("-[0-9a-f]+", "", str(Path(sid).relative_to(tmp_path))) for sid in extended) == [
        "work/alternate/sid",
        "work/tokenize",
    ]
    names = [line[:24].strip() for line in said.splitlines()[-4:]]
    assert names == ["frozen", "alternating", etegrec_ablations.FRESH, "joint"]


def test_preferences_are_compared_with_the_checkpoint_they_start_from(run, monkeypatch, tmp_path):
    import beauty_preference

    tiny = {**beauty_preference.ADAPTER, "batch_size": 8, "micro_batch_size": 8, "eval_steps": 1, "warmup_steps": 0}
    methods = {
        "sft": None,
        "S-DPO": ("dpo", {**tiny, "negatives": 2, "learning_rate": 0.1}),
        "GRPO": ("grpo", {**tiny, "num_generations": 4}),
    }
    monkeypatch.setattr(beauty_preference, "METHODS", methods)
    monkeypatch.setattr(beauty_preference, "JUDGED", {"eval_steps": 1})
    monkeypatch.setattr(beauty_preference, "TOKENIZE", {**beauty_preference.TOKENIZE, "codebook_size": 4})
    views = str(tmp_path / "views")
    embedded = ["--catalog", str(tmp_path / "catalog"), "--text-encoder", "tfidf"]
    assert main(["embed", *embedded, "--collaborative-dim", "8", "--out", views]) == 0
    results, said = run(beauty_preference, "--views", views, "--epochs", 1, "--max-steps", 2)
    assert not [result["error"] for result in results.values() if "error" in result]
    start, tuned = results["sft"], results["S-DPO"]
    for metric in ("recall", "ndcg"):
        per_user = beauty_preference.per_user(tuned, "plain", metric)
        assert per_user.mean() == pytest.approx(tuned["test"]["plain"][f"{metric}@10"], abs=1e-4)
    assert len(list((tmp_path / "work").glob("sft-*"))) == 1
    *_, of_dpo, of_grpo = said.splitlines()
    gain = tuned["test"]["plain"]["recall@10"] - start["test"]["plain"]["recall@10"]
    assert f"S-DPO                    less sft, seeds [0]: plain recall {gain:+.4f}" in of_dpo
    assert of_grpo.startswith("GRPO")


def test_cold_items_are_measured_by_every_ranking(grid, tmp_path, monkeypatch, capsys):
    """30 simulated items of which three are appended; all test examples have one of these as the target."""
    import cold_items

    assert main(["prepare", "--dataset", "simulated:60x30", "--out", str(tmp_path / "catalog")]) == 0
    capsys.readouterr()
    words = ["--catalog", str(tmp_path / "catalog"), "--work", str(tmp_path / "work"), "--epochs", "0.5"]
    monkeypatch.setattr(cold_items, "CUTOFFS", [3, 10])
    monkeypatch.setattr(sys, "argv", ["cold_items.py", *words, "--codes", "4"])
    cold_items.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [(line["rows"], line["rank"]) for line in lines] == [
        ("mean", "sid"), ("mean", "items"), ("mean", "mixture"), ("drawn", "items"), ("drawn", "mixture")
    ]  # fmt: skip
    new = Catalog.load(tmp_path / "work" / "new" / "catalog")
    assert (new.training_counts[new.examples("test").targets] == 0).all() and len(new.examples("test")) > 0

    import new_item_places

    monkeypatch.setattr(sys, "argv", ["new_item_places.py", *words[:4], "--users", "20"])
    new_item_places.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["min_new"] for line in lines] == [0, 1, 2] * 3
    assert all(line["share of the catalogue"] == 0.1 and line["shown"] <= line["of"] == 3 for line in lines)
    shares = [line["share of the places"] for line in lines]
    for start in (0, 3, 6):  # users who have seen all new items keep no place for one
        assert shares[start] <= shares[start + 1] < shares[start + 2]

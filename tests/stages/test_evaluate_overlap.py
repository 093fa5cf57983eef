"""evaluate on a catalogue that is not the checkpoint's own, which is a later one, a part of it, or a stranger."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.cli import main
from llmrec.configs import EvaluateConfig, TeachConfig
from llmrec.configs.recommend import RankBy
from llmrec.data.catalog import Catalog
from llmrec.recommender import Recommender
from llmrec.stages import evaluate, teach
from tests.conftest import CODES, TITLES
from tests.support.extended import NUM_USERS, toy_sequences
from tests.support.prepared import run_json, write_catalog

IDS = [f"item-{row}" for row in range(12)]
GONE, NEW = ("item-0",), ("new-1", "new-2")


def later_catalog(path: Path, titles: tuple[str, ...] = TITLES) -> Catalog:
    """One item is gone, two are new, all rows are others; most users have gone on, a sixth lost their last item."""
    rows = []
    for user, items in enumerate(toy_sequences()):
        further = [NEW[user % 2], IDS[(items[-1] + 1) % 11 + 1], *(NEW[:1] if user % 6 == 0 else ())]
        ids = [IDS[row] for row in (items[:-1] if user % 6 == 1 else items)] + ([] if user % 6 == 1 else further)
        ids = [item_id for item_id in ids if item_id not in GONE]
        for name, back in (("train", 3), ("valid", 2), ("test", 1)):
            end = len(ids) - back
            rows.append({"user_id": f"user-{user}", "split": name, "history": ids[:end], "target": ids[end]})
    item_ids = [NEW[1], *(item_id for item_id in reversed(IDS) if item_id not in GONE), NEW[0]]
    known = dict(zip(IDS, titles, strict=True)) | dict.fromkeys(NEW, "mate")
    items = pa.table({"item_id": item_ids, "title": [known[item_id] for item_id in item_ids]})
    return write_catalog(path, items, pa.Table.from_pylist(rows))


def evaluated(capsys, model, catalog: Catalog, out: Path, *flags: object) -> dict:
    return run_json(capsys, "evaluate", "--catalog", catalog.source, "--model", model, "--out", out, "--k", 1, 3,
                    "--device", "cpu", *flags)  # fmt: skip


def check_places(capsys, model: Path, tmp_path: Path, *flags: object, rank: RankBy = "sid") -> dict:
    """Evaluate on the later catalogue; the places are those in the answers of `Recommender`, given the catalogue."""
    later = later_catalog(tmp_path / "later")
    result = evaluated(capsys, model, later, tmp_path / "later-eval", "--rank", rank, *flags)
    recommender = Recommender.from_pretrained(model, device="cpu", catalog=later, rank=rank)
    examples, lines = later.examples("test"), pq.read_table(tmp_path / "later-eval" / "per_user.parquet").to_pylist()
    ours = [line for line in lines if line["system"] == "ours"]
    for line in ours:
        place = line["example"]
        assert (examples.user_ids[place], later.item_ids[examples.targets[place]]) == (line["user_id"], line["target"])
        history = [later.item_ids[row] for row in examples.history(place) if later.item_ids[row] not in NEW]
        exclude = None if line["column"] == "plain" else "seen"
        ranked = recommender.recommend([history], k=11, exclude=exclude).item_ids[0]
        assert set(ranked) <= set(IDS) - set(GONE)
        if line["start"] >= 0:
            assert line["start"] <= ranked.index(line["target"]) < line["start"] + line["size"]
        else:
            assert line["target"] not in ranked
    assert len(ours) == 2 * result["num_examples"] > 0
    return result


def test_examples_and_items_of_both_are_evaluated(tuned, tmp_path, capsys):
    result = check_places(capsys, tuned, tmp_path, "--exact-examples", 10, "--baselines", "popularity", "markov")
    unknown, learned = (sum(user % 6 == kind for user in range(NUM_USERS)) for kind in (0, 1))
    assert result["overlap"]["examples"] == {
        "tested": NUM_USERS - unknown - learned, "unknown_target": unknown, "no_known_history": 0,
        "target_may_be_learned": learned,
    }  # fmt: skip
    assert result["overlap"]["items"] == {"shown": 11, "gone": 1, "new": 2, "retitled": 0}
    assert result["num_examples"] == NUM_USERS - unknown - learned and result["num_items"] == 11
    assert result["exact"]["plain"]["found"]["found@3"] == 1.0
    used = [level["catalog"]["used"] for level in result["sid_usage"]]
    assert used == [len({codes[level] for codes in CODES[1:].tolist()}) for level in range(3)]


def test_baselines_learn_the_items_of_both(tuned, tmp_path, capsys):
    """Two routes: the most frequent items of the training sequences, without those that the model does not know."""
    result = check_places(capsys, tuned, tmp_path, "--baselines", "popularity")
    later = Catalog.load(tmp_path / "later")
    seen = [later.item_ids[row] for sequence in later.train.sequences() for row in sequence]
    known = sorted(set(IDS) - set(GONE), key=lambda item_id: (-seen.count(item_id), later.row_of[item_id]))
    lines = pq.read_table(tmp_path / "later-eval" / "per_user.parquet").to_pylist()
    targets = [line["target"] for line in lines if line["system"] == "popularity" and line["column"] == "plain"]
    found = result["systems"]["popularity"]["plain"]["recall@3"]
    assert found == pytest.approx(np.mean([target in known[:3] for target in targets]))


def test_what_was_left_out_is_said_on_both_streams_and_on_the_page(tuned, tmp_path, capsys):
    later = later_catalog(tmp_path / "later")
    argv = ["evaluate", "--catalog", later.source, "--model", str(tuned), "--out", str(tmp_path / "eval"), "--device",
            "cpu", "--baselines", "markov"]  # fmt: skip
    assert main(argv) == 0
    said = capsys.readouterr()
    notes = json.loads((tmp_path / "eval" / "metrics.json").read_text())["overlap"]["notes"]
    assert len(notes) == 3 and "is not the catalogue that the model was trained on" in notes[0]
    page = (tmp_path / "eval" / "report.html").read_text(encoding="utf-8")
    flat = " ".join(said.out.split())
    for note in notes:
        assert note in flat and note.replace("'", "&#39;") in page
        assert note in " ".join(said.err.split())


def test_its_own_catalogue_is_evaluated_as_before(toy, tuned, tmp_path, capsys):
    own = Catalog.load(toy[0])
    result = evaluated(capsys, tuned, own, tmp_path / "eval")
    assert result["overlap"] is None and result["num_examples"] == len(own.examples("test"))


def test_a_part_with_other_rows_gives_the_places_of_the_whole(toy, tuned, tmp_path, capsys):
    """The same items in another order: every place is that of the evaluation on the own catalogue."""
    own = Catalog.load(toy[0])
    order = np.random.default_rng(0).permutation(12)
    part = write_catalog(tmp_path / "part", own.items.take(order), own._split.head(own._split.count_rows() // 2))
    for name, catalog in (("own", own), ("part", part)):
        evaluated(capsys, tuned, catalog, tmp_path / f"eval-{name}", "--baselines", "popularity")
    places = []
    for name in ("own", "part"):
        lines = pq.read_table(tmp_path / f"eval-{name}" / "per_user.parquet").to_pylist()
        places.append({(line["user_id"], line["column"]): (line["target"], line["start"], line["size"])
                       for line in lines if line["system"] == "ours"})  # fmt: skip
    assert 0 < len(places[1]) < len(places[0]) and places[1].items() <= places[0].items()


@pytest.fixture
def refusal(tuned, tmp_path):
    """What is said about a catalogue, before anything is written."""

    def refused(catalog: Catalog, model: object = tuned, *baselines: str) -> str:
        options = {"catalog": catalog.source, "model": str(model), "baselines": list(baselines)}
        with pytest.raises(ValueError) as error:
            evaluate.main(EvaluateConfig(out=str(tmp_path / "eval"), **options))
        assert not list(tmp_path.glob("eval*"))
        return str(error.value)

    return refused


def test_strangers_are_refused(refusal, tmp_path):
    stranger = later_catalog(tmp_path / "stranger", titles=tuple(f"film {row}" for row in range(12)))
    assert "is of other items than the model knows" in refusal(stranger)


def test_a_catalogue_whose_targets_may_all_be_learned_is_refused(refusal, toy, tmp_path):
    """The log of `toy` without each user's last item: every target is one that chose the weights."""
    own = Catalog.load(toy[0])
    split = own._split.to_table().to_pylist()
    before = {"train": "train", "valid": "test"}
    rows = [{**row, "split": before[row["split"]]} for row in split if row["split"] in before]
    earlier = write_catalog(tmp_path / "earlier", own.items, pa.Table.from_pylist(rows))
    assert f"{NUM_USERS} have a target that it may have learned" in refusal(earlier)


def test_a_checkpoint_whose_catalogue_is_not_here_is_refused(refusal, tuned, tmp_path):
    """As a copy from the Hub, which has no manifest: what it was trained on is not known."""
    shutil.copytree(tuned, tmp_path / "hub", ignore=shutil.ignore_patterns("manifest.json"))
    said = refusal(later_catalog(tmp_path / "later"), tmp_path / "hub")
    assert "nothing tells which targets it has learned. Put that catalogue back, or evaluate on it" in said


def test_a_kept_baseline_of_more_items_is_refused(refusal, tuned, tmp_path):
    later = later_catalog(tmp_path / "later")
    teach.main(TeachConfig(out=str(tmp_path / "kept"), catalog=later.source, ranker="markov"))
    assert "ranks all 13 items" in refusal(later, tuned, str(tmp_path / "kept"))

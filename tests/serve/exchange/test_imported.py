"""After an import: titles, the project's own test file, further training; and files that are refused."""

from __future__ import annotations

import json
import lzma

import pytest
import torch

from llmrec.cli import run
from llmrec.data.catalog import Catalog
from llmrec.model.checkpoint import SidConfig
from llmrec.recommender import Recommender
from llmrec.serve.exchange import foreign
from llmrec.sid.published import minionerec_sids
from tests.support.foreign import ALPHABETICAL, INDEX, byte_tokenizer, llama_tokenizer, save_foreign, save_onerec

TITLES = {item: {"title": f"Thing {item}", "description": "x"} for item in INDEX}
INTER = {"u": [3, 1, 0, 2, 5], "v": [0, 1, 2, 3, 4], "w": [5, 4, 3, 2, 1, 0], "x": [2, 4]}
# Industrial_and_Scientific of MiniOneRec, where the real data are.
CSV = "test/Industrial_and_Scientific_5_2016-10-2018-11.csv.xz"
INFO = "info/Industrial_and_Scientific_5_2016-10-2018-11.txt.xz"


@pytest.fixture
def lcrec(tmp_path, import_):
    save_foreign(tmp_path / "foreign", llama_tokenizer(), ALPHABETICAL, "llama")
    (tmp_path / "item.json").write_text(json.dumps(TITLES))
    (tmp_path / "inter.json").write_text(json.dumps(INTER))
    return import_("lcrec", tmp_path / "foreign", info=tmp_path / "item.json", test=tmp_path / "inter.json")


def test_titles_are_shown_and_the_own_test_file_is_evaluated(lcrec, tmp_path, capsys):
    catalog = lcrec / "catalog"
    run(["recommend", "--model", str(lcrec), "--catalog", str(catalog), "--history", "3", "1", "--k", "2"])
    shown = capsys.readouterr().out
    assert "history: Thing 3, Thing 1" in shown and shown.count("Thing") == 4
    assert Catalog.load(catalog).histories("test") == [["3", "1", "0", "2"], ["0", "1", "2", "3"], list("54321"), ["2"]]
    evaluate = ["evaluate", "--model", str(lcrec), "--catalog", str(catalog), "--k", "1", "3"]
    run([*evaluate, "--out", str(tmp_path / "eval"), "--device", "cpu"])
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["num_examples"] == 4
    values = metrics["systems"]["ours"]["plain"]
    assert values["sid_recall@3"] >= values["recall@3"] and values["sid_ndcg@3"] >= values["ndcg@3"]


def test_it_is_pushed_without_the_catalogue_in_it_and_answers_from_the_hub(hub, lcrec):
    run(["push", "--source", str(lcrec), "--repo-id", "ann/lcrec"])
    sent = hub.files("ann/lcrec")
    assert not any("catalog/" in name or str(lcrec.parent).encode() in content for name, content in sent.items())
    here, there = (Recommender.from_pretrained(source, device="cpu") for source in (lcrec, "ann/lcrec"))
    history = [here.table.item_ids[:2]]
    assert there.recommend(history) == here.recommend(history)


def test_training_goes_on_in_the_prompt_of_the_project(lcrec, tmp_path):
    sft = ["sft", "--model", str(lcrec), "--catalog", str(lcrec / "catalog"), "--out", str(tmp_path / "sft")]
    options = ["--device", "cpu", "--max-steps", "2", "--batch-size", "2", "--max-history", "4", "--train", "full"]
    with pytest.raises(ValueError, match="set targets to last_item"):
        run([*sft, *options])
    run([*sft, *options, "--targets", "last_item", "--warmup-steps", "0"])
    before, after = SidConfig.load(lcrec)[0], SidConfig.load(tmp_path / "sft")[0]
    with pytest.raises(ValueError, match="has tokens around its items, which the files for vLLM do not tell"):
        run(["export", "--model", str(tmp_path / "sft"), "--to", "vllm", "--out", str(tmp_path / "vllm")])
    refine = ["refine", "--model", str(tmp_path / "sft"), "--catalog", str(lcrec / "catalog"), "--device", "cpu"]
    with pytest.raises(ValueError, match="has tokens around its items, which refine does not write"):
        run([*refine, "--out", str(tmp_path / "refined")])
    assert after.prompt == before.prompt and after.vocabulary == before.vocabulary


def test_the_published_index_of_minionerec(tmp_path, data_dir, capsys):
    folder = data_dir / "amazon18-minionerec"
    index = folder / "index" / "Industrial_and_Scientific.index.json.xz"
    published = minionerec_sids(folder)
    tokens = sorted(
        {f"<{letter}_{code}>" for letter, codes in zip("abc", published.all_codes.T, strict=True) for code in codes}
    )
    save_foreign(tmp_path / "foreign", byte_tokenizer(), tokens)
    run(["import", "--layout", "minionerec", "--model", str(tmp_path / "foreign"), "--index", str(index), "--info",
         str(folder / INFO), "--test", str(folder / CSV), "--out", str(tmp_path / "out")])  # fmt: skip
    assert "3,686 items in 3,670 semantic IDs, 4,533 held-out examples" in capsys.readouterr().out
    sid_config, table, _ = SidConfig.load(tmp_path / "out")
    vocabulary = sid_config.vocabulary
    assert vocabulary.level_sizes == (48, 256, 256)
    names = [vocabulary.text(table.codes([row])) for row in range(3)]
    assert names == ["<a_236><b_231><c_226>", "<a_42><b_80><c_160>", "<a_42><b_194><c_177>"]
    catalog = Catalog.load(tmp_path / "out" / "catalog")
    assert catalog.titles[0].startswith("SUPCO SPP6") and len(catalog.examples("test")) == 4533
    assert all(catalog.titles)


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ([], "a JSON object with an entry for each item is needed"),
        ({}, "a JSON object with an entry for each item is needed"),
        ({"0": "<a_2>"}, "for item '0'; a list such as"),
        ({"0": ["<a_2>", "<c_7>"]}, "its letters in order"),
        ({"0": ["<a_2>", 7]}, "its letters in order"),
        ({"0": ["<a_2>"] * 10**5}, "for item '0'; a list such as"),
        ({"0": ["<a_-1>"]}, "for item '0'; a list such as"),
        ({"0": ["<a_99999999999999>"]}, "for item '0'; a list such as"),
        ({"0": ["<a_2>", "<b_0>", "<c_7>"], "1": ["<a_2>", "<b_0>"]}, "has 2 levels for item '1' and 3 for '0'"),
        ({"0": ["<a_2>", "<b_0>"]}, "of more than the 2 levels of the index"),
        ({"0": ["<a_3>", "<b_0>", "<c_7>"]}, "has no token '<a_3>', which the index has for item '0'"),
    ],
    ids=str,
)
def test_a_hostile_index_is_refused_in_one_line(tmp_path, import_, index, reason):
    save_foreign(tmp_path / "foreign", byte_tokenizer(), ALPHABETICAL)
    with pytest.raises(ValueError, match=reason) as refused:
        import_("minionerec", tmp_path / "foreign", index)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({"-1": [1]}, "has the key '-1'"),
        ({str(8192**3): [1]}, "an integer a \\* 8192\\^2"),
        ({"9" * 5000: [1]}, "has the key '9999"),
        ({"0": [7], "1": [7]}, "has two SIDs for item '7'"),
        ({"2": [7]}, "has no token '<s_c_2>'"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_hostile_packed_keys_are_refused_in_one_line(tmp_path, import_, index, reason):
    save_onerec(tmp_path / "foreign")
    with pytest.raises(ValueError, match=reason) as refused:
        import_("openonerec", tmp_path / "foreign", index)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_a_file_that_unfolds_without_end_is_refused(tmp_path, import_, monkeypatch):
    save_foreign(tmp_path / "foreign", byte_tokenizer(), ALPHABETICAL)
    monkeypatch.setattr(foreign, "MOST_BYTES", 10**5)
    (tmp_path / "info.txt.xz").write_bytes(lzma.compress(b"\t" * 10**6))
    with pytest.raises(ValueError, match="it has more than 100,000 bytes"):
        import_("minionerec", tmp_path / "foreign", info=tmp_path / "info.txt.xz")


def test_weights_that_could_run_code_or_are_no_model_are_refused(tmp_path, import_):
    model, _ = save_foreign(tmp_path / "foreign", byte_tokenizer(), ALPHABETICAL)
    (tmp_path / "foreign" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "foreign" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"cannot be loaded by AutoModelForCausalLM .*saved as safetensors"):
        import_("minionerec", tmp_path / "foreign")
    (tmp_path / "foreign" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is an adapter; merge it into its base first"):
        import_("minionerec", tmp_path / "foreign")


def test_files_that_do_not_go_together_are_refused(tmp_path, import_):
    save_foreign(tmp_path / "foreign", byte_tokenizer(), ALPHABETICAL)
    (tmp_path / "test.csv").write_text('user_id,history_item_id,item_id\nu,"[0, 1]",77\n')
    with pytest.raises(ValueError, match="names 1 items that the index lacks, first: '77'"):
        import_("minionerec", tmp_path / "foreign", test=tmp_path / "test.csv")
    (tmp_path / "test.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is not a CSV file of MiniOneRec"):
        import_("minionerec", tmp_path / "foreign", test=tmp_path / "test.csv")
    (tmp_path / "info.txt").write_text("<a_2><b_0><c_7>\tA title\n")
    with pytest.raises(ValueError, match="has 2 fields in line 1; SID, title and id are needed"):
        import_("minionerec", tmp_path / "foreign", info=tmp_path / "info.txt")
    (tmp_path / "prompt.txt").write_text("no slot")
    with pytest.raises(ValueError, match=r"needs \{history\} once"):
        import_("minionerec", tmp_path / "foreign", prompt=tmp_path / "prompt.txt")


def test_a_token_with_a_role_among_those_of_the_levels_is_not_moved(tmp_path, import_):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<c_7>"])
    tokenizer.add_special_tokens({"eos_token": "<|end|>"})
    save_foreign(tmp_path / "foreign", tokenizer, ALPHABETICAL)
    with pytest.raises(ValueError, match=r"lie apart, with '<\|end\|>' among them, which cannot be moved"):
        import_("minionerec", tmp_path / "foreign")

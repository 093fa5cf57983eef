"""extend: rows of the new tokens, what stays as it was, and the checkpoint that it leaves."""

from __future__ import annotations

import functools
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrec.cli import main
from llmrec.configs import ExtendConfig, TokenizeConfig
from llmrec.model.checkpoint import SidConfig
from llmrec.model.new_rows import TitleTokens, add_rows, title_vectors
from llmrec.runtime.manifest import content_hash
from llmrec.runtime.stage_directory import run_stage
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.stages import extend
from tests.conftest import tiny_llm
from tests.support.extended import extended, fine_tune, write_llm, write_sid, write_toy_catalog
from tests.support.prepared import write_catalog

ARCHITECTURES = ("qwen3", "llama", "mistral", "qwen2", "gemma2")


def matrices(model) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_distinct_and_old_ones_stay(tmp_path, sid_table, architecture, tied):
    base = extended(tmp_path, sid_table, architecture, tied)
    vocabulary = SidConfig.load(base)[0].vocabulary
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
    after = AutoModelForCausalLM.from_pretrained(base)
    old_size = vocabulary.starts[0]
    for old, new in zip(matrices(before), matrices(after), strict=True):
        assert torch.equal(new[:old_size], old[:old_size])
        rows = new[vocabulary.token_range.start : vocabulary.token_range.stop]
        cosine = cosine_similarity(rows[:, None], rows[None], dim=-1) - torch.eye(len(rows))
        assert cosine.max() < 0.9  # the resize of transformers gives 1.000000
        assert rows.norm(dim=1).mean() / old.norm(dim=1).mean() == pytest.approx(1, abs=0.2)
        assert new.shape[0] % 64 == 0 and new.shape[0] == after.config.vocab_size
    embedding, output = after.get_input_embeddings().weight, after.get_output_embeddings().weight
    assert (embedding is output) == tied == after.config.tie_word_embeddings
    if not tied:
        assert not torch.equal(embedding[old_size:], output[old_size:])


def test_a_vocabulary_with_room_is_not_resized(tmp_path, sid_table):
    """Qwen and others have more rows than tokens: the new tokens take those."""
    from tests.conftest import tiny_llm, word_tokenizer

    tokenizer = word_tokenizer()
    tiny_llm(100).save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    sid = write_sid(tmp_path / "sid", sid_table)
    assert main(["extend", "--sid", str(sid), "--model", str(tmp_path / "llm"), "--out", str(tmp_path / "base")]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert model.config.vocab_size == 100
    assert SidConfig.load(tmp_path / "base")[0].vocabulary.token_range.stop <= 100


@pytest.mark.parametrize("spare", [0, 3])
def test_law_3_every_code_is_one_token_that_decode_keeps(tmp_path, sid_table, spare):
    base = extended(tmp_path, sid_table, spare_codes=spare)
    vocabulary = SidConfig.load(base)[0].vocabulary
    assert vocabulary.block_sizes == (4 + spare,) * 3 and vocabulary.level_sizes == (4, 4, 4)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokens = vocabulary.tokens()
    text = "red apple" + "".join(tokens) + " plum"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids[2:-1] == list(vocabulary.token_range)
    assert tokenizer.decode(ids[2:-1], skip_special_tokens=True).replace(" ", "") == "".join(tokens)
    assert [tokenizer.convert_tokens_to_ids(token) for token in tokens] == list(vocabulary.token_range)


def test_penalties_of_the_base_model_are_left_behind(tmp_path, sid_table):
    from tests.support.extended import write_llm

    write_llm(tmp_path / "llm")
    defaults = {
        "repetition_penalty": 1.3,
        "top_k": 3,
        "length_penalty": 2.0,
        "do_sample": True,
        "no_repeat_ngram_size": 2,
    }
    (tmp_path / "llm" / "generation_config.json").write_text(json.dumps(defaults))
    sid = write_sid(tmp_path / "sid", sid_table)
    assert main(["extend", "--sid", str(sid), "--model", str(tmp_path / "llm"), "--out", str(tmp_path / "base")]) == 0
    saved = json.loads((tmp_path / "base" / "generation_config.json").read_text())
    assert not saved.keys() & defaults.keys()
    assert saved["eos_token_id"] == 3 and saved["pad_token_id"] == 0


def test_the_seed_decides_the_new_rows(tmp_path, sid_table):
    rows = {}
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        base = extended(tmp_path / name, sid_table, seed=seed)
        rows[name] = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight.detach()
    assert torch.equal(rows["one"], rows["again"]) and not torch.equal(rows["one"], rows["two"])


@pytest.mark.parametrize("tied", [True, False])
def test_vectors_may_lean_towards_the_titles_of_their_items(tmp_path, sid_table, tied):
    catalog = write_toy_catalog(tmp_path / "catalog").source
    base = extended(tmp_path, sid_table, tied=tied, sid_init="titles", catalog=catalog)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    vocabulary = SidConfig.load(base)[0].vocabulary
    for matrix in matrices(model):
        rows, old = matrix[vocabulary.block(0)], matrix[: vocabulary.starts[0]]
        # First code 2 has "green tea" and "black coffee", first code 3 "iced coffee", "apple juice" and "plum juice".
        titles = {2: ("green tea", "black coffee"), 3: ("iced coffee", "apple juice", "plum juice")}
        means = {
            code: torch.stack([old[tokenizer(t, add_special_tokens=False)["input_ids"]].mean(0) for t in texts]).mean(0)
            for code, texts in titles.items()
        }
        for code, other in ((2, 3), (3, 2)):
            away = rows[code] - rows.mean(0)
            toward = cosine_similarity(away, means[code] - means[other], dim=0)
            assert toward > 0.4, toward
        assert rows.norm(dim=1).mean() / old.norm(dim=1).mean() == pytest.approx(1, abs=0.3)
        cosine = cosine_similarity(rows[:, None], rows[None], dim=-1) - torch.eye(4)
        assert cosine.max() < 0.9


def test_markers_in_titles_do_not_lend_their_vectors(tokenizer, vocabulary):
    titles = ["red <a_1> apple", "<eos>", "<a_0><b_0><c_0>"]
    words = TitleTokens.of(titles, tokenizer)
    unknown = tokenizer.unk_token_id
    assert words.words.tolist() == [*tokenizer.convert_tokens_to_ids(["red", "<unk>", "apple"]), unknown, unknown]
    assert words.items.tolist() == [0, 0, 0, 1, 2]


def test_codes_with_the_same_words_and_codes_without_items_have_vectors_of_their_own(tmp_path, sid_table):
    model = tiny_llm(40)
    before = model.get_input_embeddings().weight.detach().clone()
    vocabulary = SidVocabulary((4, 4, 4), (28, 32, 36), (4, 4, 4), 3)
    titles = TitleTokens(torch.arange(12), torch.full((12,), 5), torch.ones(12))  # one word for every title
    table = SidTable(sid_table.item_ids, np.minimum(sid_table.all_codes, 2), level_sizes=[4, 4, 4])
    add_rows(model, vocabulary, 0, functools.partial(title_vectors, titles, table))
    rows = model.get_input_embeddings().weight.detach()[28:]
    assert torch.equal(model.get_input_embeddings().weight[:28], before[:28])
    assert (torch.cdist(rows, rows) + 9 * torch.eye(12)).min() > 0.1


def test_title_vectors_need_a_catalogue(tmp_path, sid_table):
    with pytest.raises(ValueError, match="sid_init 'titles' needs the titles; set catalog"):
        extended(tmp_path, sid_table, sid_init="titles")


def test_the_seed_decides_the_words_of_micro(tmp_path, sid_table):
    catalog, sid = write_toy_catalog(tmp_path / "catalog").source, write_sid(tmp_path / "sid", sid_table)
    words = []
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        options = {"catalog": catalog, "micro_hidden": 32, "seed": seed}
        extend.main(ExtendConfig(out=str(tmp_path / name), sid=str(sid), model="micro", **options))
        first = SidConfig.load(tmp_path / name)[0].vocabulary.starts[0]
        words.append(AutoModelForCausalLM.from_pretrained(tmp_path / name).get_input_embeddings().weight[:first])
    assert torch.equal(words[0], words[1]) and not torch.equal(words[0], words[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_saved_weights_keep_their_type(tmp_path, sid_table, dtype):
    base = extended(tmp_path, sid_table, dtype=dtype)
    assert AutoModelForCausalLM.from_pretrained(base, dtype="auto").dtype == dtype


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rows", "titles"], "it is now called 'sid_init'"),
        (["--sid-init", "codewords"], "removed: choose from noise, titles"),
        (["--weights", "random"], "removed: to start from random weights"),
        (["--dtype", "bfloat16"], "removed: weights keep the type"),
        (["--template", "<{level}:{code}>"], "removed: tokens are named"),
        (["--micro-dropout", "0.1"], "removed: set dropout in `llmrec sft`"),
        (["--spare-codes", "-1"], "spare_codes is -1"),
        (["--model", "micro"], "set catalog"),
        (["--model", "no/such-model"], "'no/such-model' cannot be loaded"),
    ],
)
def test_wrong_input_leaves_nothing_behind(capsys, tmp_path, sid_table, flags, message):
    from tests.support.extended import write_llm

    sid, llm = write_sid(tmp_path / "sid", sid_table), write_llm(tmp_path / "llm")
    assert main(["extend", "--sid", str(sid), "--model", str(llm), "--out", str(tmp_path / "base"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "base").exists() and not (tmp_path / "base.partial").exists()


def test_a_model_that_has_the_tokens_already_is_refused(capsys, tmp_path, sid_table):
    base = extended(tmp_path, sid_table)
    (base / "llmrec.json").unlink()
    shutil.copytree(base, tmp_path / "adopted", ignore=shutil.ignore_patterns("manifest.json"))
    sid = str(tmp_path / "sid")
    assert main(["extend", "--sid", sid, "--model", str(tmp_path / "adopted"), "--out", str(tmp_path / "twice")]) == 2
    assert "already has the token '<a_0>'" in capsys.readouterr().err


def test_law_1_sids_of_another_split_do_not_reach_training(tmp_path, sid_table):
    """The same items in the same order: only the hash of the catalogue tells whose behaviour shaped the SIDs."""
    ours, other = (write_toy_catalog(tmp_path / name) for name in ("ours", "other"))
    split = pq.read_table(tmp_path / "other" / "split.parquet")
    shutil.rmtree(tmp_path / "other")
    write_catalog(tmp_path / "other", pq.read_table(tmp_path / "ours" / "items.parquet"), split.slice(0, 60))
    config = TokenizeConfig(out=str(tmp_path / "sid"), catalog="c", views="v")
    run_stage("tokenize", config, {"catalog": str(tmp_path / "ours")}, sid_table.save)
    base = tmp_path / "base"
    extend.main(ExtendConfig(out=str(base), sid=str(tmp_path / "sid"), model=str(write_llm(tmp_path / "llm"))))
    assert SidConfig.load(base)[2]["catalog_sha256"] == content_hash(tmp_path / "ours")
    with pytest.raises(ValueError, match="made on another split of the items"):
        fine_tune(tmp_path / "leak", tmp_path / "other", base, max_steps=1)
    fine_tune(tmp_path / "sft", tmp_path / "ours", base, max_steps=1)
    assert ours.item_ids == other.item_ids

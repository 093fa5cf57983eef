"""extend: rows of the new tokens, what stays as it was, and the checkpoint that it leaves."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrec.cli import main
from llmrec.configs import ExtendConfig, TokenizeConfig
from llmrec.data.catalog import Catalog
from llmrec.model.checkpoint import SidConfig
from llmrec.model.new_rows import TitleTokens, add_rows, title_vectors
from llmrec.recommender import Recommender
from llmrec.runtime.manifest import content_hash
from llmrec.runtime.stage_directory import run_stage
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.stages import extend
from llmrec.stages.evaluate import check_catalog_of
from tests.conftest import CODES, tiny_llm
from tests.support.extended import extended, fine_tune, same_weights, write_llm, write_sid, write_toy_catalog
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


def test_titles_need_a_catalogue(tmp_path, sid_table):
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


def with_items(table: SidTable, codes: list[list[int]], level_sizes: list[int]) -> SidTable:
    """New items behind those of a table."""
    item_ids = [*table.item_ids, *(f"item-{table.num_items + row}" for row in range(len(codes)))]
    return SidTable(item_ids, np.concatenate([table.all_codes, codes]), level_sizes=level_sizes)


def append_to(tmp_path: Path, base: Path, table: SidTable, **options) -> dict:
    sid = write_sid(tmp_path / "appended", table)
    return extend.main(ExtendConfig(out=str(tmp_path / "more"), sid=str(sid), model=str(base), **options))


def test_a_checkpoint_takes_up_appended_items_without_new_tokens(capsys, tmp_path, sid_table):
    base = extended(tmp_path, sid_table)
    result = append_to(tmp_path, base, with_items(sid_table, [[2, 2, 2], [3, 0, 0]], [4, 4, 4]))
    assert result["new_items"] == 2 and result["grown"] == []
    assert "2 new items, no new tokens" in capsys.readouterr().err
    assert same_weights(base, tmp_path / "more")
    recommender = Recommender.from_pretrained(tmp_path / "more", device="cpu")
    assert SidConfig.load(tmp_path / "more")[0] == SidConfig.load(base)[0]
    found = recommender.recommend([["item-13"]], k=14, exclude=None)[0][0]  # a new item may stand in a history too
    assert sorted(found) == sorted(f"item-{row}" for row in range(14))


def test_a_level_that_grew_takes_its_spare_rows_and_extend_says_so(capsys, tmp_path, sid_table):
    base = extended(tmp_path, sid_table, spare_codes=2)
    result = append_to(tmp_path, base, with_items(sid_table, [[4, 0, 0], [0, 0, 5]], [5, 4, 6]))
    assert result["grown"] == ["level 0 grew from 4 to 5 codes", "level 2 grew from 4 to 6 codes"]
    assert "level 2 grew from 4 to 6 codes: fine-tune, their tokens are untrained" in capsys.readouterr().err
    before, after = (SidConfig.load(path)[0].vocabulary for path in (base, tmp_path / "more"))
    assert after.level_sizes == (5, 4, 6) and (after.starts, after.block_sizes) == (before.starts, (6, 6, 6))
    assert same_weights(base, tmp_path / "more")


@pytest.mark.parametrize("tied", [True, False])
def test_the_last_level_grows_behind_the_others(tmp_path, sid_table, tied):
    base = extended(tmp_path, sid_table, tied=tied, spare_codes=1)
    result = append_to(tmp_path, base, with_items(sid_table, [[0, 0, 39]], [4, 4, 40]))
    assert result["grown"] == ["level 2 grew from 4 to 40 codes", "35 tokens are new"]
    before, after = (SidConfig.load(path)[0].vocabulary for path in (base, tmp_path / "more"))
    assert after.starts == before.starts and after.block_sizes == (5, 5, 40)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "more")
    assert tokenizer.convert_tokens_to_ids("<c_39>") == after.token_range.stop - 1 == len(tokenizer) - 1
    old, new = (AutoModelForCausalLM.from_pretrained(path) for path in (base, tmp_path / "more"))
    for one, other in zip(matrices(old), matrices(new), strict=True):
        assert torch.equal(other[: before.token_range.stop], one[: before.token_range.stop])
        rows = other[after.token_range.start : after.token_range.stop]
        cosine = cosine_similarity(rows[:, None], rows[None], dim=-1) - torch.eye(len(rows))
        assert cosine.max() < 0.9 and len(other) % 64 == 0
    assert (new.get_input_embeddings().weight is new.get_output_embeddings().weight) == tied
    recommender = Recommender.from_pretrained(tmp_path / "more", device="cpu")
    assert "item-12" in recommender.recommend([["item-12"]], k=13, exclude=None)[0][0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            SidTable([f"item-{row}" for row in range(11)], CODES[:11], level_sizes=[4] * 3),
            "1 items of the checkpoint are",
        ),
        (
            SidTable([f"item-{row}" for row in range(12)], CODES[::-1], level_sizes=[4] * 3),
            "12 items have other semantic",
        ),
        (
            SidTable([f"item-{row}" for row in range(12)], CODES[:, :2], level_sizes=[4] * 2),
            "those of the given one [4, 4]",
        ),
        (
            SidTable([f"item-{row}" for row in range(12)], CODES, level_sizes=[9, 4, 4]),
            "tokens for [6, 6, 6] codes only",
        ),
    ],
)
def test_a_table_that_is_not_the_checkpoints_with_items_added_is_refused(tmp_path, sid_table, table, message):
    base = extended(tmp_path, sid_table, spare_codes=2)
    with pytest.raises(ValueError, match=re.escape(message)):
        append_to(tmp_path, base, table)
    assert not (tmp_path / "more").exists() and not (tmp_path / "more.partial").exists()


def test_a_checkpoint_keeps_its_tokens_and_weights(tmp_path, sid_table):
    base = extended(tmp_path, sid_table)
    with pytest.raises(ValueError, match=r"is a checkpoint of llmrec.*leave out \['sid_init', 'spare_codes'\]"):
        append_to(tmp_path, base, sid_table, spare_codes=2, sid_init="titles")


def grown_catalog(path: Path, catalog: Catalog, split: pa.Table) -> Catalog:
    """The toy catalogue with one more item that nobody has taken."""
    new = pa.table({"item_id": ["item-12"], "title": ["blue apple"], "text": ["blue apple"]})
    return write_catalog(path, pa.concat_tables([catalog.items.select(new.column_names), new]), split)


def test_law_1_a_checkpoint_is_of_the_new_catalogue_only_if_that_tests_nothing_it_was_trained_on(
    capsys, tmp_path, sid_table
):
    catalog = write_toy_catalog(tmp_path / "catalog")
    split = pq.read_table(tmp_path / "catalog" / "split.parquet")
    config = TokenizeConfig(out=str(tmp_path / "sid"), catalog="", views="")
    run_stage("tokenize", config, {"catalog": catalog.source}, sid_table.save)
    base = tmp_path / "base"
    extend.main(ExtendConfig(out=str(base), sid=str(tmp_path / "sid"), model=str(write_llm(tmp_path / "llm"))))
    fine_tune(tmp_path / "sft", catalog.source, base, max_steps=1)
    less = split.filter(pc.or_(pc.not_equal(split["split"], "train"), pc.not_equal(split["user_id"], "user-5")))
    table = with_items(sid_table, [[2, 2, 2]], [4, 4, 4])
    for name, rows in (("same", split), ("less", less)):
        grown = grown_catalog(tmp_path / f"{name}-catalog", catalog, rows)
        config = TokenizeConfig(out=str(tmp_path / f"{name}-sid"), catalog="", views="")
        run_stage("tokenize", config, {"catalog": grown.source}, table.save)
        out, sid = str(tmp_path / name), str(tmp_path / f"{name}-sid")
        extend.main(ExtendConfig(out=out, sid=sid, model=str(tmp_path / "sft")))
        said = capsys.readouterr().err
        if name == "same":
            assert (
                SidConfig.load(out)[2]["catalog_sha256"] == content_hash(grown.source) and "not evaluated" not in said
            )
            check_catalog_of(out, grown)
        else:
            assert "7 interactions that the checkpoint was trained on are not training data" in said
            with pytest.raises(ValueError, match="was made on another split"):
                check_catalog_of(out, grown)


def test_law_1_sids_of_another_split_do_not_reach_training(tmp_path, sid_table):
    """The same items in the same order: only the hash of the catalogue tells whose behaviour shaped the SIDs."""
    ours, other = (write_toy_catalog(tmp_path / name) for name in ("ours", "other"))
    split = pq.read_table(tmp_path / "other" / "split.parquet")
    shutil.rmtree(tmp_path / "other")
    write_catalog(tmp_path / "other", pq.read_table(tmp_path / "ours" / "items.parquet"), split.slice(0, 60))
    config = TokenizeConfig(out=str(tmp_path / "sid"), catalog="", views="")
    run_stage("tokenize", config, {"catalog": str(tmp_path / "ours")}, sid_table.save)
    base = tmp_path / "base"
    extend.main(ExtendConfig(out=str(base), sid=str(tmp_path / "sid"), model=str(write_llm(tmp_path / "llm"))))
    assert SidConfig.load(base)[2]["catalog_sha256"] == content_hash(tmp_path / "ours")
    with pytest.raises(ValueError, match="made on another split of the items"):
        fine_tune(tmp_path / "leak", tmp_path / "other", base, max_steps=1)
    fine_tune(tmp_path / "sft", tmp_path / "ours", base, max_steps=1)
    assert ours.item_ids == other.item_ids

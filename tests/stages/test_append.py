"""extend, given a checkpoint: it takes up a table that was appended to its own, and keeps the rest."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrec.configs import ExtendConfig, TokenizeConfig
from llmrec.data.catalog import Catalog
from llmrec.model.checkpoint import SidConfig
from llmrec.recommender import Recommender
from llmrec.runtime.manifest import content_hash
from llmrec.runtime.stage_directory import run_stage
from llmrec.sid.table import SidTable
from llmrec.stages import extend
from llmrec.stages.evaluated_model import check_own
from tests.conftest import CODES
from tests.support.extended import extended, fine_tune, same_weights, write_llm, write_sid, write_toy_catalog
from tests.support.prepared import write_catalog


def matrices(model) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()]


def with_items(table: SidTable, codes: list[list[int]], level_sizes: list[int]) -> SidTable:
    """New items behind those of a table."""
    item_ids = [*table.item_ids, *(f"item-{table.num_items + row}" for row in range(len(codes)))]
    return SidTable(item_ids, np.concatenate([table.all_codes, codes]), level_sizes=level_sizes)


def append_to(tmp_path: Path, base: Path, table: SidTable, **options) -> dict:
    sid = write_sid(tmp_path / "appended", table)
    result = extend.main(ExtendConfig(out=str(tmp_path / "more"), sid=str(sid), model=str(base), **options))
    extend.show(result)
    return result


def test_a_checkpoint_takes_up_appended_items_without_new_tokens(capsys, tmp_path, sid_table):
    base = extended(tmp_path, sid_table)
    result = append_to(tmp_path, base, with_items(sid_table, [[2, 2, 2], [3, 0, 0]], [4, 4, 4]))
    assert result["new_items"] == 2 and result["grown"] == []
    assert "2 new items, no new tokens" in capsys.readouterr().out
    assert same_weights(base, tmp_path / "more")
    recommender = Recommender.from_pretrained(tmp_path / "more", device="cpu")
    assert SidConfig.load(tmp_path / "more")[0] == SidConfig.load(base)[0]
    found = recommender.recommend([["item-13"]], k=14, exclude=None)[0][0]  # a new item may stand in a history too
    assert sorted(found) == sorted(f"item-{row}" for row in range(14))


def test_a_level_that_grew_takes_its_spare_rows_and_extend_says_so(capsys, tmp_path, sid_table):
    base = extended(tmp_path, sid_table, spare_codes=2)
    result = append_to(tmp_path, base, with_items(sid_table, [[4, 0, 0], [0, 0, 5]], [5, 4, 6]))
    assert result["grown"] == ["level 0 grew from 4 to 5 codes", "level 2 grew from 4 to 6 codes"]
    assert "level 2 grew from 4 to 6 codes: fine-tune, their tokens are untrained" in capsys.readouterr().out
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


@pytest.mark.parametrize("tied", [True, False])
def test_item_rows_follow_their_items_and_new_ones_are_means_of_their_neighbours(capsys, tmp_path, sid_table, tied):
    base = extended(tmp_path, sid_table, tied=tied, item_rows=True, spare_codes=1)
    codes = [[2, 0, 1], [0, 2, 0], [4, 0, 0]]  # like items 7 and 8; like items 0 to 3; like none
    appended = with_items(sid_table, codes, [5, 4, 4])
    order = np.random.default_rng(0).permutation(15)  # a catalogue that is prepared again has another order
    table = SidTable([appended.item_ids[row] for row in order], appended.all_codes[order], level_sizes=[5, 4, 4])
    append_to(tmp_path, base, table)
    assert "item rows of new items are means of their neighbours'" in capsys.readouterr().out
    (before, _, _), (after, loaded, _) = SidConfig.load(base), SidConfig.load(tmp_path / "more")
    assert loaded.item_ids == table.item_ids and after.vocabulary.items.num_items == 15
    old, new = (matrices(AutoModelForCausalLM.from_pretrained(path))[0] for path in (base, tmp_path / "more"))
    assert torch.equal(new[: before.vocabulary.items.start], old[: before.vocabulary.items.start])
    old, new = old[before.vocabulary.items.block], new[after.vocabulary.items.block]
    expected = torch.cat([old, old[7:9].mean(0)[None], old[:4].mean(0)[None], old.mean(0)[None]])[order]
    torch.testing.assert_close(new, expected)
    assert torch.equal(new[order < 12], old[order[order < 12]])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "more")
    assert tokenizer.convert_tokens_to_ids("<|item_14|>") == after.vocabulary.items.start + 14 == len(tokenizer) - 1
    recommender = Recommender.from_pretrained(tmp_path / "more", device="cpu")
    assert "item-12" in recommender.recommend([["item-14"]], k=15, exclude=None)[0][0]


def test_a_last_level_without_spare_tokens_cannot_grow_into_the_item_tokens(tmp_path, sid_table):
    base = extended(tmp_path, sid_table, item_rows=True)
    with pytest.raises(ValueError, match=r"other tokens follow them\. Extend .* with spare_codes"):
        append_to(tmp_path, base, with_items(sid_table, [[0, 0, 4]], [4, 4, 5]))


def grown_catalog(path: Path, catalog: Catalog, split: pa.Table) -> Catalog:
    """The toy catalogue with one more item that nobody has taken."""
    new = pa.table({"item_id": ["item-12"], "title": ["blue apple"], "text": ["blue apple"]})
    return write_catalog(path, pa.concat_tables([catalog.items.select(new.column_names), new]), split)


def test_law_1_a_checkpoint_is_of_the_new_catalogue_only_if_that_tests_nothing_it_was_trained_on(
    capsys, tmp_path, sid_table
):
    catalog = write_toy_catalog(tmp_path / "catalog")
    split = pq.read_table(tmp_path / "catalog" / "split.parquet")
    config = TokenizeConfig(out=str(tmp_path / "sid"), catalog="c", views="v")
    run_stage("tokenize", config, {"catalog": catalog.source}, sid_table.save)
    base = tmp_path / "base"
    extend.main(ExtendConfig(out=str(base), sid=str(tmp_path / "sid"), model=str(write_llm(tmp_path / "llm"))))
    fine_tune(tmp_path / "sft", catalog.source, base, max_steps=1)
    less = split.filter(pc.or_(pc.not_equal(split["split"], "train"), pc.not_equal(split["user_id"], "user-5")))
    table = with_items(sid_table, [[2, 2, 2]], [4, 4, 4])
    for name, rows in (("same", split), ("less", less)):
        grown = grown_catalog(tmp_path / f"{name}-catalog", catalog, rows)
        config = TokenizeConfig(out=str(tmp_path / f"{name}-sid"), catalog="c", views="v")
        run_stage("tokenize", config, {"catalog": grown.source}, table.save)
        out, sid = str(tmp_path / name), str(tmp_path / f"{name}-sid")
        extend.main(ExtendConfig(out=out, sid=sid, model=str(tmp_path / "sft")))
        said = capsys.readouterr().err
        if name == "same":
            assert (
                SidConfig.load(out)[2]["catalog_sha256"] == content_hash(grown.source) and "not trained on" not in said
            )
            check_own(out, grown)
        else:
            assert "7 interactions that the checkpoint was trained on are not training data" in said
            with pytest.raises(ValueError, match="another catalogue, or another split"):
                check_own(out, grown)

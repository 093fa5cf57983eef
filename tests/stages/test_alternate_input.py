"""Bad input of the alternate stage, and tokenizers that fail while it trains."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from llmrec.cli import main
from llmrec.configs import ExtendConfig
from llmrec.data.catalog import Catalog
from llmrec.runtime.stage_directory import SCRATCH
from llmrec.stages import alternate, extend
from llmrec.training.alternate.tokenizer_training import TokenizerTraining
from llmrec.training.checkpoints import SEAL
from tests.support.alternated import SHORT, Line, alternate_config, flags_of, run, write_line, write_sid, write_views
from tests.support.extended import losses, write_llm


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cycle_steps": 9}, "cycle_steps is 9, and of the run's 8 steps 0 come before"),
        ({"align_after": 0.75}, "of the run's 8 steps 6 come before the alignment and 2 after .*: no pass would be"),
        ({"align_after": 0.9}, "align_after is 0.9 and freeze_after 0.8: nothing would be aligned"),
        ({"optimization": "at once"}, "choose from alternating, joint"),
        ({"sia_weight": -1}, "sia_weight is -1"),
        ({"max_history": 100}, "lower max_history"),
    ],
)
def test_options_that_cannot_work(turns, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", turns, **options)
    assert not list(tmp_path.iterdir())


def test_semantic_ids_and_views_that_do_not_belong_together_are_refused(turns, tmp_path):
    catalog = Catalog.load(turns.catalog)
    other = write_sid(tmp_path / "other", turns.catalog, turns.views, "rq_kmeans", codebook_size=4, num_levels=2)
    shared = write_sid(tmp_path / "shared", turns.catalog, turns.views, collision="suffix_if_collided")
    seeded = write_sid(tmp_path / "seeded", turns.catalog, turns.views, seed=3)
    absent = write_views(tmp_path / "text", catalog, name="text")
    changed = write_views(tmp_path / "changed", catalog, seed=9)
    before = sorted(path.name for path in tmp_path.iterdir())
    for given, message in (
        ({"sid": other}, "method 'rq_kmeans', whose tokenizer cannot be trained with the LLM"),
        ({"sid": shared}, "made with collision 'suffix_if_collided'"),
        ({"sid": seeded}, "has other semantic IDs than '.*seeded'; run `llmrec extend --sid"),
        ({"views": absent}, r"view_names asks for \['sasrec'\], but '.*text' holds \['text'\]"),
        ({"views": changed}, r"from the views \['sasrec'\] the tokenizer makes the published codes again for"),
        ({"sid": turns.model}, "written by `llmrec extend`; the output of `llmrec tokenize`"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path / "out", Line(**{**vars(turns), **given}))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_several_processes_are_refused_at_once(turns, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="alternate trains in one process, and 2 were started"):
        run(tmp_path / "out", turns)


def test_a_model_with_item_tokens_is_refused(turns, tmp_path):
    config = ExtendConfig(out=str(tmp_path / "base"), sid=turns.sid, model=str(write_llm(tmp_path / "llm")))
    with_items = extend.main(dataclasses.replace(config, item_rows=True))["out"]
    with pytest.raises(ValueError, match=r"has a token for each item .* extend the original model without item_rows"):
        run(tmp_path / "out", dataclasses.replace(turns, model=with_items))


def test_a_tokenizer_that_collapses_ends_the_run_and_names_the_last_checkpoint(capsys, turns, tmp_path, monkeypatch):
    """At the second pass all codes of a level become one; the checkpoint of the first is whole."""
    original, passes = TokenizerTraining.run_pass, itertools.count(1)

    def collapsing(self, *arguments):
        losses = original(self, *arguments)
        if next(passes) == 2:
            with torch.no_grad():
                self.tokenizer.quantizer.codebooks[0][1:] = 1e4
        return losses

    monkeypatch.setattr(TokenizerTraining, "run_pass", collapsing)
    monkeypatch.setattr("llmrec.tokenizers.shared.collapse.LEAST_USE", 0.3)  # of six codes: one is too few
    assert main(["alternate", *flags_of(turns, save_steps=3), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "Step 4: the tokenizer has collapsed: level 0 uses 1 of 6 codes." in said
    kept = tmp_path / "out.partial" / SCRATCH / "trainer" / "checkpoint-3"
    assert f"The last whole checkpoint is {kept}. Lower tokenizer_learning_rate" in said and (kept / SEAL).is_file()
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_diverges_ends_the_run(turns, tmp_path):
    with pytest.raises(ValueError, match=r"the tokenizer has (diverged|collapsed).*There is no checkpoint from before"):
        run(tmp_path / "out", turns, tokenizer_learning_rate=1e30)


def test_an_item_without_a_vector_is_no_target_of_the_alignment(tmp_path):
    turns = write_line(tmp_path, missing=(3,))
    run(tmp_path / "out", turns, **SHORT)
    assert np.isfinite(losses(tmp_path / "out")).all()
    start = alternate.load(alternate_config(tmp_path / "x", turns))
    assert not start.views.known[3]

"""Law 7: tree beam search, `generate` with the processor and brute force agree, and every answer is an item."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from llmrec.decoding.beam_search import tree_beam_search
from llmrec.decoding.decoder import SidDecoder
from llmrec.decoding.sampling import tree_sample
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.table import EMPTY, SidTable
from llmrec.training.weights import nf4_config
from tests.conftest import tiny_llm
from tests.support.decoding import (
    ARCHITECTURES,
    NORMALIZE_OVER,
    assert_same,
    brute_force,
    draw_filter,
    filled,
    generate,
    prompts,
    setting,
    tables,
    vocabulary_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("normalize_over", NORMALIZE_OVER)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tree_beams_equal_generate(sid_table, architecture, tied, normalize_over):
    model, trie, vocabulary = setting(sid_table, architecture, tied=tied)
    ids, mask = prompts()
    beams = tree_beam_search(model, ids, mask, trie, vocabulary, 4, normalize_over)
    assert_same(filled(beams), generate(model, ids, mask, trie, vocabulary, 4, normalize_over))


@settings(max_examples=20)
@given(tables(), st.integers(2, 6), st.sampled_from(NORMALIZE_OVER), st.integers(0, 99))
def test_tree_beams_equal_generate_on_any_catalogue(table, num_beams, normalize_over, seed):
    model, trie, vocabulary = setting(table, seed=seed)
    ids, mask = prompts((5, 2), seed)
    beams = tree_beam_search(model, ids, mask, trie, vocabulary, num_beams, normalize_over)
    assert_same(filled(beams), generate(model, ids, mask, trie, vocabulary, num_beams, normalize_over))


@pytest.mark.parametrize("num_beams", [2, 3])
def test_tree_beams_equal_generate_where_sids_end_early(ragged_table, num_beams):
    # Over children a longer SID may overtake an ended one for a level and fall behind it later.
    for seed in range(12):
        model, trie, vocabulary = setting(ragged_table, seed=seed)
        ids, mask = prompts(seed=seed)
        beams = tree_beam_search(model, ids, mask, trie, vocabulary, num_beams, "children")
        assert_same(filled(beams), generate(model, ids, mask, trie, vocabulary, num_beams, "children"))


@settings(max_examples=15)
@given(tables(max_items=8), st.sampled_from(NORMALIZE_OVER), st.integers(0, 99))
def test_beams_that_cover_the_catalogue_equal_brute_force(table, normalize_over, seed):
    model, trie, vocabulary = setting(table, seed=seed)
    ids, mask = prompts((4, 2), seed)
    beams = tree_beam_search(model, ids, mask, trie, vocabulary, 9, normalize_over)
    assert_same(filled(beams), brute_force(model, ids, mask, trie, vocabulary, normalize_over))


def test_unfilled_beams_are_empty(llm, trie, vocabulary):
    beams = tree_beam_search(llm, *prompts(), trie, vocabulary, num_beams=13)
    assert (beams.leaves >= 0).sum(dim=1).tolist() == [11, 11, 11]  # 12 items, 11 SIDs
    assert beams.codes[:, 11:].eq(EMPTY).all()
    assert beams.scores[:, 11:].isneginf().all()
    assert all(sorted(row) == list(range(11)) for row in beams.leaves[:, :11].tolist())


def test_leaves_name_the_sids_of_the_codes(llm, trie, vocabulary):
    beams = tree_beam_search(llm, *prompts(), trie, vocabulary, num_beams=5)
    assert trie.codes_of(beams.leaves).equal(beams.codes)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(llm, trie, vocabulary, side):
    lengths = (7, 4, 1)
    batch = filled(tree_beam_search(llm, *prompts(lengths, side=side), trie, vocabulary, 4))
    ids, mask = prompts(lengths)
    alone = [
        filled(tree_beam_search(llm, row[keep.bool()][None], None, trie, vocabulary, 4))[0]
        for row, keep in zip(ids, mask, strict=True)
    ]
    assert_same(batch, alone)


def test_beams_of_a_lora_model_are_those_of_its_merge(sid_table):
    model, trie, vocabulary = setting(sid_table, tied=False)
    plain = filled(tree_beam_search(model, *prompts(), trie, vocabulary, 4))
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    active = filled(tree_beam_search(adapted.eval(), *prompts(), trie, vocabulary, 4))
    assert_same(active, generate(adapted, *prompts(), trie, vocabulary, 4))
    with adapted.disable_adapter():
        assert_same(filled(tree_beam_search(adapted, *prompts(), trie, vocabulary, 4)), plain)
    assert active != plain
    assert_same(filled(tree_beam_search(adapted.merge_and_unload(), *prompts(), trie, vocabulary, 4)), active)


def test_beams_of_a_4_bit_model_are_those_of_generate(sid_table, tmp_path):
    pytest.importorskip("bitsandbytes")
    model, trie, vocabulary = setting(sid_table, hidden_size=64, intermediate_size=64, head_dim=16)  # blocks of 64
    exact = filled(tree_beam_search(model, *prompts(), trie, vocabulary, 4))
    model.save_pretrained(tmp_path)
    options = {"quantization_config": nf4_config(torch.float32), "dtype": torch.float32}
    quantised = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **options).eval()
    found = filled(tree_beam_search(quantised, *prompts(), trie, vocabulary, 4))
    assert found != exact
    assert_same(found, generate(quantised, *prompts(), trie, vocabulary, 4))
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(quantised, config).eval()
    active = filled(tree_beam_search(adapted, *prompts(), trie, vocabulary, 4))
    assert active != found
    assert_same(active, generate(adapted, *prompts(), trie, vocabulary, 4))


def test_beams_together_may_exceed_a_sliding_window(sid_table):
    # 7 prompt tokens and 3 codes fit a window of 10; 8 beams put 7 + 2 * 8 = 23 keys into the cache.
    vocabulary, size = vocabulary_of(sid_table)
    model, trie = tiny_llm(size, "gemma2"), SidTrie(sid_table)
    config = model.config.__class__(**{**model.config.to_dict(), "sliding_window": 10})
    windowed = transformers.AutoModelForCausalLM.from_config(config).eval()
    windowed.load_state_dict(model.state_dict())
    assert_same(
        filled(tree_beam_search(windowed, *prompts(), trie, vocabulary, 8)),
        filled(tree_beam_search(model, *prompts(), trie, vocabulary, 8)),
    )
    with pytest.raises(ValueError, match="take 11 tokens but the model attends over 10; lower max_history"):
        tree_beam_search(windowed, *prompts((8,)), trie, vocabulary, 8)


def test_probabilities_over_children_sum_to_one(llm, trie, vocabulary):
    beams = tree_beam_search(llm, *prompts(), trie, vocabulary, 11, "children")
    assert beams.scores.exp().sum(dim=1).tolist() == pytest.approx([1, 1, 1])


def test_a_chain_of_single_children_is_certain(tokenizer):
    table = SidTable(["only"], [[2, 0, 1]], level_sizes=[3, 2, 2])
    model, trie, vocabulary = setting(table)
    assert filled(tree_beam_search(model, *prompts((3,)), trie, vocabulary, 2, "children")) == [[((2, 0, 1), 0.0)]]


@pytest.mark.parametrize("normalize_over", NORMALIZE_OVER)
def test_a_table_may_use_fewer_codes_than_the_vocabulary(sid_table, llm, vocabulary, normalize_over):
    smaller = SidTrie(SidTable(sid_table.item_ids[:9], sid_table.all_codes[:9], level_sizes=[3, 4, 4]))
    ids, mask = prompts()
    found = filled(tree_beam_search(llm, ids, mask, smaller, vocabulary, 9, normalize_over))
    assert_same(found, brute_force(llm, ids, mask, smaller, vocabulary, normalize_over))
    assert_same(found, generate(llm, ids, mask, smaller, vocabulary, 9, normalize_over))


def test_equals_the_dict_trie_of_prefix_allowed_tokens_fn(llm, trie, vocabulary):
    ids, mask = prompts()
    codes = trie.codes_of(torch.arange(trie.num_leaves))
    sids = [tuple(row) for row in (codes + torch.tensor(vocabulary.starts)).tolist()]

    def allowed_tokens(batch_id, sequence):
        prefix = tuple(sequence[ids.shape[1] :].tolist())
        return sorted({sid[len(prefix)] for sid in sids if sid[: len(prefix)] == prefix and sid != prefix})

    config = GenerationConfig(
        max_new_tokens=3, num_beams=4, num_return_sequences=4, length_penalty=0.0, pad_token_id=0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    output = llm.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, prefix_allowed_tokens_fn=allowed_tokens
    )
    codes = output.sequences[:, ids.shape[1] :].reshape(3, 4, 3) - torch.tensor(vocabulary.starts)
    beams = tree_beam_search(llm, ids, mask, trie, vocabulary, 4)
    assert codes.equal(beams.codes)
    assert torch.allclose(output.sequences_scores.reshape(3, 4), beams.scores, atol=1e-4)


@settings(max_examples=20)
@given(st.data(), st.sampled_from(NORMALIZE_OVER))
def test_filtered_beams_equal_brute_force_over_permitted_sids(data, normalize_over):
    table = data.draw(tables(max_items=8))
    model, trie, vocabulary = setting(table)
    ids, mask = prompts((4, 2))
    exclude, allow = draw_filter(data, table.num_items)
    permitted = [
        [
            bool(set(trie.items(rank)) & set(range(table.num_items) if wanted is None else wanted) - set(barred))
            for rank in range(trie.num_leaves)
        ]
        for barred, wanted in zip(exclude, allow, strict=True)
    ]
    leaf_filter = LeafFilter(trie, exclude, allow)
    every = filled(tree_beam_search(model, ids, mask, trie, vocabulary, 9, normalize_over, leaf_filter))
    assert_same(every, brute_force(model, ids, mask, trie, vocabulary, normalize_over, permitted))
    narrow = tree_beam_search(model, ids, mask, trie, vocabulary, 2, normalize_over, leaf_filter)
    for row in range(2):
        leaves = [leaf for leaf in narrow.leaves[row].tolist() if leaf >= 0]
        assert len(leaves) == min(2, sum(permitted[row]))
        assert all(permitted[row][leaf] for leaf in leaves)


def test_a_filter_that_bars_everything_for_a_row_changes_no_other_row(llm, trie, vocabulary):
    exclude = [[0, 3], range(12), []]
    found = filled(tree_beam_search(llm, *prompts(), trie, vocabulary, 4, leaf_filter=LeafFilter(trie, exclude)))
    without_it = LeafFilter(trie, [exclude[0], [], exclude[2]])
    others = filled(tree_beam_search(llm, *prompts(), trie, vocabulary, 4, leaf_filter=without_it))
    assert_same(found, [others[0], [], others[2]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0; at least 1"),
        ({"normalize_over": "items"}, "normalize_over is 'items'; choose from vocabulary, level, children"),
        ({"prompt_length": 126}, "Prompt and SID take 129 tokens but the model attends over 128; lower max_history"),
        ({"prefix_ids": torch.full((123,), 5)}, "Prompt and SID take 129 tokens but the model attends over 128"),
    ],
)
def test_impossible_searches_are_refused(llm, trie, vocabulary, options, message):
    ids, mask = prompts((options.pop("prompt_length", 3),))
    with pytest.raises(ValueError, match=message):
        tree_beam_search(llm, ids, mask, trie, vocabulary, **{"num_beams": 2, **options})


def test_a_filter_of_another_batch_is_refused(llm, trie, vocabulary):
    with pytest.raises(ValueError, match="The filter is for 2 prompts, but there are 3"):
        tree_beam_search(llm, *prompts(), trie, vocabulary, 2, leaf_filter=LeafFilter(trie, [[0], [1]]))


def test_a_filter_of_another_trie_is_refused(llm, trie, sid_table, vocabulary):
    other, message = LeafFilter(SidTrie(sid_table), [[0]] * 3), "The filter is of another trie; make it from the trie"
    with pytest.raises(ValueError, match=message):
        tree_beam_search(llm, *prompts(), trie, vocabulary, 2, leaf_filter=other)
    with pytest.raises(ValueError, match=message):
        SidDecoder(llm, trie, vocabulary, 2)(*prompts(), other)


def test_a_prompt_that_ends_inside_a_sid_is_refused(llm, trie, vocabulary):
    ids, mask = prompts()
    ids[1, -1] = vocabulary.starts[1]
    with pytest.raises(ValueError, match="The prompt of row 1 ends inside a SID, in the tokens"):
        tree_beam_search(llm, ids, mask, trie, vocabulary, 2)


def test_a_model_without_the_rows_is_refused(trie, vocabulary):
    end = vocabulary.token_range.stop
    smaller = tiny_llm(end - 1)
    for search in (tree_beam_search, tree_sample):
        with pytest.raises(ValueError, match=f"has {end - 1} token rows but the SID tokens end at {end}; run `llmrec"):
            search(smaller, *prompts(), trie, vocabulary, 2)
    with pytest.raises(ValueError, match=f"has {end - 1} token rows"):
        SidDecoder(smaller, trie, vocabulary, 2)


def test_a_trie_of_another_vocabulary_is_refused(llm, vocabulary):
    larger = SidTrie(SidTable(["a", "b"], [[0, 0, 4], [0, 0, 1]]))
    with pytest.raises(ValueError, match="Run `llmrec extend` on the new table"):
        tree_beam_search(llm, *prompts(), larger, vocabulary, 2)

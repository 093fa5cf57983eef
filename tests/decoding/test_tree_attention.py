"""The attention hook: what transformers must keep, which models are refused, and that the model is as it was after."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
import transformers
from transformers import AttentionInterface, AutoModelForCausalLM

from llmrec.decoding import tree_attention
from llmrec.decoding.beam_search import tree_beam_search
from llmrec.decoding.sampling import tree_sample
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.trie import SidTrie
from tests.conftest import tiny_llm
from tests.support.decoding import (
    ARCHITECTURES,
    assert_same,
    brute_force,
    contract,
    filled,
    generate,
    prompts,
    vocabulary_of,
)

LAYERS = 3
OTHER_LAYERS = "ForCausalLM has recurrent, convolutional or sparse layers"
FIXED_ATTENTION = "ForCausalLM does not let its attention be replaced layer by layer"
SHARED_KEYS = {"num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 2, "vocab_size_per_layer_input": 40}


def assert_equals_generate(model, trie, vocabulary):
    found = filled(tree_beam_search(model, *prompts(), trie, vocabulary, 4))
    assert_same(found, generate(model, *prompts(), trie, vocabulary, 4))


# Contracts with transformers that are not documented


@pytest.fixture
def calls():
    """What a registered attention function is called with, under the name `llmrec_spy`."""
    seen = []

    def spy(module, query, key, value, attention_mask, **options):
        seen.append({"module": module, "shapes": [tuple(x.shape) for x in (query, key, value)],
                     "mask": attention_mask, **options})  # fmt: skip
        return query.transpose(1, 2), None

    AttentionInterface.register("llmrec_spy", spy)
    return seen


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_contract_a_registered_attention_function_is_called_once_per_layer(architecture, calls):
    model = tiny_llm(40, architecture, num_hidden_layers=LAYERS)
    model.config._attn_implementation = "llmrec_spy"
    ids = torch.tensor([[5, 6, 7], [8, 9, 5]])
    with torch.no_grad():
        model.base_model(input_ids=ids, position_ids=torch.arange(3).expand(2, -1), use_cache=False)
    assert [call["module"].layer_idx for call in calls] == list(range(LAYERS)), contract("layer_idx of attention")
    groups = 4 if architecture == "gpt2" else 2
    for call in calls:
        assert call["shapes"] == [(2, heads, 3, 8) for heads in (4, groups, groups)], contract("shapes of attention")
        assert call["mask"] is None, contract("attention_mask of a function without a mask function")
        scaling = model.config.query_pre_attn_scalar if architecture.startswith("gemma") else 8
        assert call["scaling"] == pytest.approx(scaling**-0.5), contract("scaling given to attention")
        assert call.get("softcap") == (50.0 if architecture == "gemma2" else None), contract("softcap of attention")
        tensors = {name for name, given in call.items() if isinstance(given, torch.Tensor)}
        assert tensors <= {"position_ids"}, contract("tensors given to attention")


def test_contract_the_attention_function_is_read_at_each_forward(llm, calls):
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before, name = llm(ids).logits, llm.config._attn_implementation
        llm.config._attn_implementation = "llmrec_spy"
        assert llm.base_model.config._attn_implementation == "llmrec_spy", contract("one config for all modules")
        assert not torch.allclose(llm(ids).logits, before) and len(calls) == 2, contract("_attn_implementation")
        llm.config._attn_implementation = name
        assert llm(ids).logits.equal(before) and len(calls) == 2, contract("_attn_implementation set back")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_contract_models_declare_that_their_attention_can_be_replaced(architecture):
    model = tiny_llm(40, architecture, num_hidden_layers=LAYERS)
    assert model._supports_attention_backend and not model._is_stateful, contract("flags of a decoder")
    layers = [module for module in model.modules() if type(module).__name__ in set(model._no_split_modules)]
    assert len(layers) == LAYERS, contract("_no_split_modules")


def test_contract_models_declare_that_their_attention_cannot_be_replaced():
    assert transformers.MambaForCausalLM._is_stateful, contract("_is_stateful")
    assert not transformers.BloomForCausalLM._supports_attention_backend, contract("_supports_attention_backend")
    kinds = transformers.Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"]).layer_types
    assert kinds == ["conv", "full_attention"], contract("layer_types")


# Which models


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("mamba", {}, OTHER_LAYERS),
        ("minimax", {}, OTHER_LAYERS),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, OTHER_LAYERS),
        ("bloom", {}, FIXED_ATTENTION),
        ("gemma3n_text", SHARED_KEYS, FIXED_ATTENTION),
        ("gpt_oss", {"num_local_experts": 2}, "The attention of GptOssAttention reads s_aux"),
        ("diffllama", {}, "Layer 0 attends more than once per token"),
    ],
)
def test_models_that_cannot_attend_along_a_tree_are_refused(trie, vocabulary, architecture, options, message):
    model = tiny_llm(vocabulary.token_range.stop, architecture, **options)
    before = model.config._attn_implementation
    for search in (tree_beam_search, tree_sample):
        with pytest.raises(ValueError, match=rf"{message}.*SidLogitsProcessor"):
            search(model, *prompts(), trie, vocabulary, 2)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2"])
@pytest.mark.parametrize("num_key_value_heads", [1, 2, 4])
def test_query_heads_may_share_keys(trie, vocabulary, architecture, num_key_value_heads):
    model = tiny_llm(vocabulary.token_range.stop, architecture, num_key_value_heads=num_key_value_heads)
    assert_equals_generate(model, trie, vocabulary)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("gpt2", {"hidden_size": 36}), ("llama", {"head_dim": 6}), ("qwen3", {"head_dim": 2})],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_dims_need_not_fill_words(trie, vocabulary, architecture, options, dtype):
    # 36, 24 and 8 bytes in float32, 18, 12 and 4 in bfloat16; the cache copies words of 8 bytes where it can.
    model = tiny_llm(vocabulary.token_range.stop, architecture, **options)
    if dtype == torch.float32:
        assert_equals_generate(model, trie, vocabulary)
    else:
        assert_close_to_float32(model, trie, vocabulary)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2", "gpt2"])
def test_bfloat16_beams_overlap_those_of_float32(sid_table, architecture):
    vocabulary, size = vocabulary_of(sid_table)
    assert_close_to_float32(tiny_llm(size, architecture), SidTrie(sid_table), vocabulary)


def assert_close_to_float32(model, trie, vocabulary):
    """Scores of all SIDs within 3 bits of bfloat16's 8, and at least 3 of the best 4 the same."""
    expected = brute_force(model, *prompts(), trie, vocabulary, "vocabulary")
    found = filled(tree_beam_search(model.bfloat16(), *prompts(), trie, vocabulary, 11))
    for row, exact in zip(found, expected, strict=True):
        by_sid = dict(exact)
        assert [score for _, score in row] == pytest.approx([by_sid[sid] for sid, _ in row], rel=0.03)
        assert len({sid for sid, _ in row[:4]} & {sid for sid, _ in exact[:4]}) >= 3


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_the_attention_that_a_model_was_loaded_with_changes_nothing(sid_table, tmp_path, attention):
    vocabulary, size = vocabulary_of(sid_table)
    model, trie = tiny_llm(size), SidTrie(sid_table)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention).eval()
    assert_same(*(filled(tree_beam_search(m, *prompts(), trie, vocabulary, 4)) for m in (loaded, model)))
    assert loaded.config._attn_implementation == attention


# The model afterwards, and beside others


def test_an_error_inside_the_model_leaves_it_as_it_was(llm, trie, vocabulary):
    expected, before = llm(*prompts()).logits, llm.config._attn_implementation
    beams = tree_beam_search(llm, *prompts(), trie, vocabulary, 4)

    def fail(*_):
        raise RuntimeError("out of memory")

    hook = llm.base_model.layers[1].mlp.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        tree_beam_search(llm, *prompts(), trie, vocabulary, 4)
    hook.remove()
    assert llm.config._attn_implementation == before and not tree_attention._one_at_a_time.locked()
    assert llm(*prompts()).logits.equal(expected)
    assert tree_beam_search(llm, *prompts(), trie, vocabulary, 4).scores.equal(beams.scores)


def test_threads_may_search_the_same_model_at_once(llm, trie, vocabulary):
    leaf_filter = LeafFilter(trie, allow=[[0, 1, 6, 7], None, [2, 9]])
    searches = [
        lambda: tree_beam_search(llm, *prompts(), trie, vocabulary, 4),
        lambda: tree_beam_search(llm, *prompts((9, 2, 5), seed=1), trie, vocabulary, 6, "children", leaf_filter),
    ]
    alone, barrier = [search() for search in searches], Barrier(2)

    def rounds(search):
        barrier.wait()
        return [search() for _ in range(15)]

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(rounds, searches))
    for expected, found in zip(alone, together, strict=True):
        for beams in found:
            assert beams.leaves.equal(expected.leaves) and torch.allclose(beams.scores, expected.scores, atol=1e-5)
    assert llm.config._attn_implementation == "sdpa"

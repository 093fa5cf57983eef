"""The config of `generate` against hostile ones of the model, and tree beam search as its `custom_generate`."""

import pytest
import torch
import transformers
from transformers import GenerationConfig, LogitsProcessorList

from llmrec.decoding.beam_search import tree_beam_search
from llmrec.decoding.generate import sid_generate, sid_generation_config
from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.table import EMPTY, SidTable
from tests.support.decoding import (
    NORMALIZE_OVER,
    assert_same,
    codes_of,
    contract,
    filled,
    generate,
    prompts,
    setting,
)

pytestmark = pytest.mark.usefixtures("one_thread")


HOSTILE = {
    "repetition_penalty": 3.0,
    "encoder_repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "min_length": 30,
    "min_new_tokens": 30,
    "max_length": 9,
    "length_penalty": 5.0,
    "early_stopping": True,
    "num_beams": 2,
    "num_return_sequences": 2,
    "do_sample": True,
    "temperature": 5.0,
    "top_k": 1,
    "top_p": 0.1,
    "min_p": 0.9,
    "typical_p": 0.1,
    "epsilon_cutoff": 0.3,
    "eta_cutoff": 0.3,
    "guidance_scale": 4.0,
    "renormalize_logits": True,
    "remove_invalid_values": True,
    "suppress_tokens": "first codes",
    "begin_suppress_tokens": "first codes",
    "bad_words_ids": "first codes",
    "sequence_bias": "first codes",
    "exponential_decay_length_penalty": (0, 3.0),
    "forced_eos_token_id": 5,
    "forced_bos_token_id": 5,
    "eos_token_id": [3, 7],
    "pad_token_id": 0,
}


# Fields that no value of ours could override; the docstring of sid_generation_config names those that matter.
ELSEWHERE = {"top_h", "watermarking_config", "stop_strings", "token_healing", "max_time"}


# Which cache, assistant or output is used; other decoding modes, which `generate` refuses without remote code.
HARMLESS = {
    "use_mtp", "use_cache", "cache_implementation", "cache_config", "max_cache_len", "output_attentions",
    "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate", "bos_token_id",
    "decoder_start_token_id", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit",
    "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight", "speculation_type", "compile_config",
    "disable_compile", "continuous_batching_config", "low_memory", "penalty_alpha", "dola_layers", "diversity_penalty",
    "num_beam_groups", "constraints", "force_words_ids", "prefill_chunk_size", "max_new_tokens", "transformers_version",
}  # fmt: skip


def hostile(vocabulary, field):
    """A generation config that would change every result if it came through."""
    first = list(range(vocabulary.starts[0], vocabulary.starts[0] + 3))
    as_lists = {"bad_words_ids": [[t] for t in first], "sequence_bias": [[[t], -9.0] for t in first]}
    config = GenerationConfig()
    setattr(config, field, as_lists.get(field, first) if HOSTILE[field] == "first codes" else HOSTILE[field])
    return config


def prompts_with_history(vocabulary):
    ids, mask = prompts((6, 3))
    ids[:, -3:] = torch.tensor(vocabulary.starts)  # what a repetition penalty would act on
    return ids, mask


@pytest.mark.parametrize("field", HOSTILE)
def test_the_models_own_generation_config_changes_nothing(ragged_table, field):
    model, trie, vocabulary = setting(ragged_table)
    ids, mask = prompts_with_history(vocabulary)
    expected = filled(tree_beam_search(model, ids, mask, trie, vocabulary, 4))
    model.generation_config = hostile(vocabulary, field)
    assert_same(generate(model, ids, mask, trie, vocabulary, 4), expected)


@pytest.mark.parametrize("field", HOSTILE)
def test_the_models_own_generation_config_changes_no_sample(ragged_table, field):
    model, trie, vocabulary = setting(ragged_table)
    ids, mask = prompts_with_history(vocabulary)

    def sample():
        torch.manual_seed(0)
        return model.generate(
            input_ids=ids, attention_mask=mask,
            generation_config=sid_generation_config(vocabulary, 1, 8, do_sample=True),
            logits_processor=LogitsProcessorList([SidLogitsProcessor(trie, vocabulary, ids.shape[1], "children")]),
        )  # fmt: skip

    expected = sample()
    model.generation_config = hostile(vocabulary, field)
    found = sample()
    assert found.sequences.equal(expected.sequences)
    for scores, same in zip(found.scores, expected.scores, strict=True):
        assert torch.allclose(scores, same)


def test_every_field_of_generation_config_is_accounted_for():
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert fields == {*HOSTILE, *ELSEWHERE, *HARMLESS}, f"new or gone in transformers {transformers.__version__}"


# custom_generate
@pytest.mark.parametrize("normalize_over", NORMALIZE_OVER)
def test_sid_generate_equals_tree_beam_search_and_generate(llm, trie, vocabulary, normalize_over):
    ids, mask = prompts()
    config = sid_generation_config(vocabulary, num_beams=4, num_return_sequences=3)
    custom = llm.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, custom_generate=sid_generate, trie=trie,
        vocabulary=vocabulary, normalize_over=normalize_over,
    )  # fmt: skip
    processor = SidLogitsProcessor(trie, vocabulary, ids.shape[1], normalize_over)
    stock = llm.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([processor])
    )
    beams = tree_beam_search(llm, ids, mask, trie, vocabulary, 4, normalize_over)
    assert custom.sequences.equal(stock.sequences)
    assert torch.allclose(custom.sequences_scores, stock.sequences_scores, atol=1e-4)
    assert torch.allclose(custom.sequences_scores.reshape(3, 3), beams.scores[:, :3])


def test_sid_generate_pads_short_answers_with_end_of_sequence(tokenizer):
    table = SidTable(["a", "b", "c"], [[0, 0, 0], [0, 1, EMPTY], [1, EMPTY, EMPTY]], level_sizes=[2, 2, 1])
    model, trie, vocabulary = setting(table)
    for rows in ([0, 1, 2], [1, 2]):
        trie = SidTrie(table, rows)
        config = sid_generation_config(vocabulary, 3, len(rows))
        options = {"input_ids": prompts()[0], "attention_mask": prompts()[1], "generation_config": config}
        custom = model.generate(**options, custom_generate=sid_generate, trie=trie, vocabulary=vocabulary)
        stock = model.generate(
            **options, logits_processor=LogitsProcessorList([SidLogitsProcessor(trie, vocabulary, 7)])
        )
        assert custom.sequences.equal(stock.sequences)


def test_sid_generate_takes_a_filter_and_returns_plain_sequences(llm, trie, vocabulary):
    ids, mask = prompts((4, 2))
    options = {"custom_generate": sid_generate, "trie": trie, "vocabulary": vocabulary, "attention_mask": mask}
    sequences = llm.generate(
        ids, num_beams=3, num_return_sequences=2, leaf_filter=LeafFilter(trie, allow=[[0, 1], [9, 10]]), **options
    )
    answers = [codes_of(row, vocabulary) for row in sequences[:, 4:].tolist()]
    assert [set(answers[:2]), set(answers[2:])] == [{(0, 0, 0), (0, 0, 1)}, {(3, 1, 1), (3, 1, 2)}]
    with pytest.raises(ValueError, match="num_return_sequences is 2, but there are fewer"):
        llm.generate(
            ids, num_beams=2, num_return_sequences=2, leaf_filter=LeafFilter(trie, allow=[[0], [9, 10]]), **options
        )


@pytest.mark.parametrize(("num_beams", "num_return_sequences"), [(4, 2), (3, 3), (1, 1)])
def test_contract_custom_generate_gets_each_prompt_once_per_beam(llm, num_beams, num_return_sequences):
    seen = {}

    def spy(model, input_ids, generation_config, mark, **model_kwargs):
        seen.update(model=model, ids=input_ids, config=generation_config, mark=mark, kwargs=model_kwargs)
        return input_ids

    ids, mask = prompts()
    llm.generate(
        ids, attention_mask=mask, custom_generate=spy, mark="mine", num_beams=num_beams,
        num_return_sequences=num_return_sequences,
    )  # fmt: skip
    copies = max(num_beams, num_return_sequences)
    assert seen["ids"].equal(ids.repeat_interleave(copies, 0)), contract("expansion of input_ids for custom_generate")
    assert seen["kwargs"]["attention_mask"].equal(mask.repeat_interleave(copies, 0)), contract("expanded mask")
    assert seen["model"] is llm and seen["mark"] == "mine", contract("arguments of custom_generate")
    assert seen["config"].num_beams == num_beams, contract("generation_config given to custom_generate")
    assert {"logits_processor", "stopping_criteria"} <= set(seen["kwargs"]), contract("arguments of custom_generate")

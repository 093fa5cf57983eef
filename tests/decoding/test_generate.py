"""Law 7: tree beam search, `generate` with the processor and brute force agree, and every answer is an item."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, LogitsProcessorList

from llmrec.decoding.beam_search import tree_beam_search
from llmrec.decoding.decoder import SidDecoder
from llmrec.decoding.generate import sid_generate, sid_generation_config
from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.decoding.sampling import tree_sample
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.table import EMPTY, SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.weights import nf4_config
from tests.conftest import tiny_llm, word_tokenizer
from tests.decoding.test_trie import tables

pytestmark = pytest.mark.usefixtures("one_thread")

NORMALIZE_OVER = ("vocabulary", "level", "children")
ARCHITECTURES = ("qwen3", "qwen2", "llama", "mistral", "gemma2", "gemma3_text", "gpt2", "phi3")
EOS = 3


@pytest.fixture
def ragged_table():
    """14 SIDs of one to three codes."""
    codes = [[0, 0, EMPTY], [0, 1, 0], [0, 1, 1], [0, 2, EMPTY], [1, EMPTY, EMPTY], [2, EMPTY, EMPTY], [3, 0, 0],
             [3, 0, 1], [3, 0, 2], [3, 1, EMPTY], [3, 2, 0], [3, 2, 1], [3, 2, 2], [4, EMPTY, EMPTY]]  # fmt: skip
    return SidTable([f"item-{row}" for row in range(len(codes))], codes)


def vocabulary_of(table):
    tokenizer = word_tokenizer()
    return SidVocabulary.add_to(tokenizer, table.level_sizes), len(tokenizer)


def setting(table, architecture="qwen3", **options):
    """Model, trie and vocabulary of a table."""
    vocabulary, size = vocabulary_of(table)
    return tiny_llm(size, architecture, **options), SidTrie(table), vocabulary


def prompts(lengths=(7, 4, 1), seed=0, side="left"):
    """Random prompts of the given lengths, padded on one side: (B, T) ids and mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        place = slice(max(lengths) - length, None) if side == "left" else slice(0, length)
        ids[row, place] = torch.randint(4, 30, (length,), generator=generator)
        mask[row, place] = 1
    return ids, mask


def generate(model, ids, mask, trie, vocabulary, num_beams, normalize_over="vocabulary", **options):
    """`generate` with the processor; (codes, score) lists of each row, without its -1e9 beams."""
    processor = SidLogitsProcessor(trie, vocabulary, ids.shape[1], normalize_over)
    config = sid_generation_config(vocabulary, num_beams, num_return_sequences=num_beams)
    output = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([processor])
    )
    answers = [codes_of(sequence, vocabulary) for sequence in output.sequences[:, ids.shape[1] :].tolist()]
    if num_beams == 1:
        return [[(codes, None)] for codes in answers]
    pairs = list(zip(answers, output.sequences_scores.tolist(), strict=True))
    rows = [pairs[start : start + num_beams] for start in range(0, len(pairs), num_beams)]
    return [[pair for pair in row if pair[1] > -1e8] for row in rows]


def codes_of(tokens, vocabulary):
    """Codes of an answer, which must end in end-of-sequence."""
    length = tokens.index(EOS) if EOS in tokens else len(tokens)
    assert set(tokens[length:]) <= {EOS}
    return tuple(token - vocabulary.starts[level] for level, token in enumerate(tokens[:length]))


def filled(beams):
    """(codes, score) lists of each row of Beams."""
    return [
        [
            (tuple(c for c in codes if c != EMPTY), score)
            for codes, score, leaf in zip(
                beams.codes[row].tolist(), beams.scores[row].tolist(), beams.leaves[row].tolist(), strict=True
            )
            if leaf >= 0
        ]
        for row in range(len(beams.scores))
    ]


def brute_force(model, ids, mask, trie, vocabulary, normalize_over, permitted=None):
    """Teacher-forced score of every SID, one forward pass each, without cache or padding; best first."""
    sids = [tuple(c for c in row if c != EMPTY) for row in trie.codes_of(torch.arange(trie.num_leaves)).tolist()]
    rows = []
    for row in range(len(ids)):
        prompt, scored = ids[row][mask[row].bool()].tolist(), []
        legal = [sid for rank, sid in enumerate(sids) if permitted is None or permitted[row][rank]]
        for sid in legal:
            tokens = [code + vocabulary.starts[level] for level, code in enumerate(sid)]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].double()
            score = 0.0
            for level, (token, at) in enumerate(zip(tokens, logits, strict=True)):
                siblings = sorted({s[level] for s in legal if len(s) > level and s[:level] == sid[:level]})
                rivals = {
                    "vocabulary": at,
                    "level": at[vocabulary.block(level)],
                    "children": at[[code + vocabulary.starts[level] for code in siblings]],
                }
                score += float(at[token] - rivals[normalize_over].logsumexp(0))
            scored.append((sid, score))
        rows.append(sorted(scored, key=lambda pair: -pair[1]))
    return rows


def draw_filter(data, num_items):
    """Exclusions and allow-lists of two rows, as lists of item rows."""
    some = st.lists(st.integers(0, num_items - 1), unique=True)
    exclude = data.draw(st.lists(some, min_size=2, max_size=2))
    return exclude, data.draw(st.lists(st.none() | some, min_size=2, max_size=2))


def assert_same(found, expected, tolerance=1e-4):
    assert [[codes for codes, _ in row] for row in found] == [[codes for codes, _ in row] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert [score for _, score in row] == pytest.approx([score for _, score in other], abs=tolerance)


# Law 7: tree beam search


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


# Filters


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


def test_a_filter_that_leaves_a_row_nothing_leaves_the_others_alone(llm, trie, vocabulary):
    exclude = [[0, 3], range(12), []]
    found = filled(tree_beam_search(llm, *prompts(), trie, vocabulary, 4, leaf_filter=LeafFilter(trie, exclude)))
    without_it = LeafFilter(trie, [exclude[0], [], exclude[2]])
    others = filled(tree_beam_search(llm, *prompts(), trie, vocabulary, 4, leaf_filter=without_it))
    assert_same(found, [others[0], [], others[2]])


# The generation config

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
    with pytest.raises(ValueError, match="num_return_sequences is 2, but fewer"):
        llm.generate(
            ids, num_beams=2, num_return_sequences=2, leaf_filter=LeafFilter(trie, allow=[[0], [9, 10]]), **options
        )


# What is refused


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
    with pytest.raises(ValueError, match="The filter is for 2 rows, but there are 3 prompts"):
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


# Contracts with transformers that are not documented


def contract(what):
    return f"{what}: changed in transformers {transformers.__version__}"


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

"""SidDecoder: the search of `tree_beam_search`, whatever the batch is rounded up to, captured and compiled."""

import contextlib

import numpy as np
import pytest
import torch

from llmrec.decoding.beam_search import beam_widths, search_beams, tree_beam_search
from llmrec.decoding.decoder import SidDecoder
from llmrec.decoding.search import SearchProblem
from llmrec.decoding.tree_forward import LEAST_STEP, ROWS_STEP, _round_up, pad_right, padded_length
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.backbone import compile_layers
from llmrec.model.linear_layers import join_projections
from llmrec.runtime import cuda_graphs
from llmrec.runtime.cuda_graphs import EAGER_CALLS, CudaGraphs
from llmrec.sid.table import SidTable
from tests.conftest import tiny_llm
from tests.support.decoding import assert_same, filled, prompts, vocabulary_of

NORMALIZE_OVER = ("vocabulary", "level", "children")
PREFIX = torch.tensor([7, 5, 11])


def with_prefix(ids, mask):
    """Prompts that begin with PREFIX, padded on the left before it."""
    rows = [torch.cat([PREFIX.to(ids), row[keep.bool()]]) for row, keep in zip(ids, mask, strict=True)]
    longest = max(map(len, rows))
    padded = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows], device=ids.device).unsqueeze(1)
    return padded, (torch.arange(longest, device=ids.device) >= longest - lengths).long()


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma2", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("lengths", [(7, 4, 1), (5,)])
def test_a_shared_prefix_equals_the_prefix_in_each_prompt(sid_table, architecture, lengths):
    vocabulary, size = vocabulary_of(sid_table)
    model, trie = tiny_llm(size, architecture), SidTrie(sid_table)
    ids, mask = prompts(lengths)
    expected = filled(tree_beam_search(model, *with_prefix(ids, mask), trie, vocabulary, 5))
    assert_same(filled(SidDecoder(model, trie, vocabulary, 5, prefix_ids=PREFIX)(ids, mask)), expected)
    assert_same(filled(tree_beam_search(model, ids, mask, trie, vocabulary, 5, prefix_ids=PREFIX)), expected)


def test_tapered_beams_equal_plain_ones_where_nothing_is_pruned(llm, sid_table, vocabulary):
    # 4 first codes and 8 pairs: widths of 4 and 8 lose nothing, so the last width alone decides.
    trie, (ids, mask) = SidTrie(sid_table), prompts()
    tapered = tree_beam_search(llm, ids, mask, trie, vocabulary, (4, 8, 3))
    every = tree_beam_search(llm, ids, mask, trie, vocabulary, 11)
    assert_same(filled(tapered), [row[:3] for row in filled(every)])
    greedy_start = tree_beam_search(llm, ids, mask, trie, vocabulary, (1, 8, 3))
    assert all(len({codes[0] for codes, _ in row}) == 1 for row in filled(greedy_start))


@pytest.mark.parametrize(("num_beams", "message"), [((4, 4), "2 widths, but SIDs have 3"), ((4, 0, 4), "at least 1")])
def test_widths_that_do_not_fit_are_refused(num_beams, message):
    with pytest.raises(ValueError, match=message):
        beam_widths(num_beams, 3)


@pytest.mark.parametrize("architecture", ["qwen3", "qwen2", "llama"])
def test_joined_projections_compute_the_same(sid_table, architecture):
    model = tiny_llm(vocabulary_of(sid_table)[1], architecture)
    ids, mask = prompts()
    with torch.no_grad():
        before = model(ids, attention_mask=mask).logits
        names = set(model.state_dict())
        join_projections(model)
        assert torch.allclose(model(ids, attention_mask=mask).logits, before, atol=1e-5)
    assert set(model.state_dict()) == names
    layer = model.base_model.layers[0]
    assert layer.self_attn.k_proj.weight.data_ptr() > layer.self_attn.q_proj.joint_weight.data_ptr()  # a view of it
    x, y = torch.randn(2, 1, 3, 32)
    layer.self_attn.q_proj(x)
    own = torch.nn.functional.linear(y, layer.self_attn.k_proj.weight, layer.self_attn.k_proj.bias)
    assert torch.allclose(layer.self_attn.k_proj(y), own)  # of another input than the one at hand


def test_joined_projections_are_saved_as_they_were(llm, tmp_path):
    llm.save_pretrained(tmp_path / "before")
    join_projections(llm)
    llm.save_pretrained(tmp_path / "after")
    from safetensors.torch import load_file

    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


# What a batch is rounded up to


@pytest.mark.parametrize("prefix_ids", [None, PREFIX])
def test_padding_to_the_size_of_a_graph_changes_no_answer(llm, sid_table, vocabulary, prefix_ids, monkeypatch):
    shapes = set()

    class Uncaptured:
        def run(self, search, inputs, kind):
            shapes.add(tuple(inputs[0].shape))
            return search(*inputs)

    monkeypatch.setattr("llmrec.decoding.tree_forward.CudaGraphs", Uncaptured)
    trie = SidTrie(sid_table)
    padded, plain = (SidDecoder(llm, trie, vocabulary, 5, "level", prefix_ids, capture=on) for on in (True, False))
    for seed, lengths in enumerate([(7, 4, 1), (6, 5, 5), (5,), (9,) * 5, (3,) * 17]):
        ids, mask = prompts(lengths, seed)
        items = [[seed], *([[0, 4, 5]] * (len(ids) - 1))]
        for leaf_filter in (None, LeafFilter(trie, items), LeafFilter(trie, items, [[1, 2, 5, 6, 9]] * len(ids))):
            found, expected = padded(ids, mask, leaf_filter), plain(ids, mask, leaf_filter)
            assert_same(filled(found), filled(expected))
            assert found.leaves.equal(expected.leaves) and found.codes.equal(expected.codes)
    alone = 5 + len(PREFIX) * (prefix_ids is not None)  # its prefix is part of its prompt
    expected = [(3, 7), (1, alone), (5, 9), (17, 3)]
    assert shapes == {(_round_up(rows, ROWS_STEP), padded_length(length)) for rows, length in expected}


@pytest.mark.parametrize("lengths", [(7, 4, 1), (5,)])
def test_without_capture_nothing_is_padded(llm, sid_table, vocabulary, lengths, monkeypatch):
    shapes = []

    def spy(space, input_ids, *rest):
        shapes.append(tuple(input_ids.shape))
        return search_beams(space, input_ids, *rest)

    monkeypatch.setattr("llmrec.decoding.decoder.search_beams", spy)
    decoder = SidDecoder(llm, SidTrie(sid_table), vocabulary, 5, prefix_ids=PREFIX, capture=False)
    decoder(*prompts(lengths))
    alone = len(lengths) == 1  # whose prefix is part of its prompt
    assert shapes == [(len(lengths), max(lengths) + len(PREFIX) * alone)]


def testpadded_lengths_are_few_and_close():
    lengths = range(1, 5000)
    padded = [padded_length(length) for length in lengths]
    for length, found in zip(lengths, padded, strict=True):
        assert found >= length and found % LEAST_STEP == 0 and padded_length(found) == found
        assert found - length < max(LEAST_STEP, length / 8)
    assert padded == sorted(padded)
    assert len(set(padded)) < 8 * 13  # eight of each power of two
    some = [padded_length(length) for length in (1, 8, 9, 64, 65, 129, 1000, 1025)]
    assert some == [8, 8, 16, 64, 72, 144, 1024, 1152]


@pytest.mark.parametrize("step", [1, 4, ROWS_STEP])
def test_rounded_counts_are_powers_of_two_then_multiples(step):
    for count in range(1, 200):
        found = _round_up(count, step)
        assert count <= found and _round_up(found, step) == found
        assert found < 2 * count if count < step else found - count < step
    assert [_round_up(count, ROWS_STEP) for count in (1, 2, 3, 5, 9, 16, 17, 33)] == [1, 2, 4, 8, 16, 16, 32, 48]


# Graphs and compilation


class FakeGraph:
    """Stands in for torch.cuda.CUDAGraph and counts its replays."""

    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1


@pytest.fixture
def fake_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: contextlib.nullcontext())
    for name in ("current_stream", "default_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)


def test_a_shape_is_captured_at_its_second_call_and_then_replayed(fake_cuda):
    graphs, calls = CudaGraphs(), []

    def function(x):
        calls.append(x)
        return [x + 1]

    first, second, third = torch.zeros(2), torch.ones(2), torch.full((2,), 5.0)
    assert graphs.run(function, [first])[0].tolist() == [1, 1] and calls[0] is first and not graphs.graphs
    found = graphs.run(function, [second])[0]
    (captured,) = graphs.graphs.values()
    assert found.tolist() == [2, 2] and captured.graph.replays == 1 and calls[1] is captured.inputs[0]
    assert found is not captured.outputs[0]  # the next replay writes there
    graphs.run(function, [third])
    assert len(calls) == 2 and captured.inputs[0].tolist() == [5, 5] and captured.graph.replays == 2


def test_shapes_types_and_kinds_have_graphs_of_their_own_up_to_a_number(fake_cuda):
    graphs = CudaGraphs(max_graphs=3)
    cases = [(torch.zeros(2), None), (torch.zeros(3), None), (torch.zeros(2, dtype=torch.int64), None)]
    for x, kind in [*cases, (torch.zeros(2), ("ranks",))]:
        for _ in range(2):
            graphs.run(lambda x: [x], [x], kind)
    assert len(graphs.graphs) == 3
    assert (None, (torch.Size([2]), torch.float32)) not in graphs.graphs  # captured first
    assert (("ranks",), (torch.Size([2]), torch.float32)) in graphs.graphs


def test_contract_every_layer_is_compiled_once(sid_table):
    model = tiny_llm(vocabulary_of(sid_table)[1])
    compile_layers(model)
    compiled = [layer._compiled_call_impl for layer in model.base_model.layers]
    compile_layers(model)
    version = f"changed in torch {torch.__version__}"
    assert all(compiled), f"_compiled_call_impl of a compiled module: {version}"
    assert [layer._compiled_call_impl for layer in model.base_model.layers] == compiled
    assert model.lm_head._compiled_call_impl is None, f"_compiled_call_impl of another module: {version}"


# On a GPU


@pytest.fixture
def on_gpu(sid_table):
    vocabulary, size = vocabulary_of(sid_table)
    return tiny_llm(size).cuda(), SidTrie(sid_table, device="cuda"), vocabulary


def gpu_prompts(lengths=(7, 4, 1), seed=0):
    return tuple(part.cuda() for part in prompts(lengths, seed))


@pytest.mark.gpu
@pytest.mark.parametrize("normalize_over", NORMALIZE_OVER)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_captured_search_equals_the_eager_one(on_gpu, normalize_over, compiled):
    model, trie, vocabulary = on_gpu
    expected = {}
    for seed, lengths in enumerate([(7, 4, 1), (9,), (3,) * 17, (7, 5, 1)]):
        ids, mask = gpu_prompts(lengths, seed)
        expected[lengths] = tree_beam_search(model, *with_prefix(ids, mask), trie, vocabulary, 5, normalize_over)
    decoder = SidDecoder(model, trie, vocabulary, 5, normalize_over, PREFIX.cuda(), compiled=compiled)
    for _ in range(EAGER_CALLS + 2):  # as they are, then captured, then replayed
        for seed, (lengths, beams) in enumerate(expected.items()):
            assert_same(filled(decoder(*gpu_prompts(lengths, seed))), filled(beams))
    assert len(decoder._graphs.graphs) == 3  # (7, 4, 1) and (7, 5, 1) share one


@pytest.mark.gpu
def test_captured_filters_are_those_of_each_batch(on_gpu, monkeypatch):
    model, trie, vocabulary = on_gpu
    monkeypatch.setattr(
        "llmrec.decoding.trie.filter.COUNTED_FROM", 4
    )  # the stock is a long list, the other a short one
    monkeypatch.setattr(cuda_graphs, "EAGER_CALLS", 0)
    decoder, stock = SidDecoder(model, trie, vocabulary, 5), np.array([0, 3, 5, 6, 8, 11])
    for seed, exclude in enumerate(([[0], [4, 5], []], [[1, 2], [], [6]])):
        ids, mask = gpu_prompts(seed=seed)
        for allow in (None, [stock, None, np.array([2, 9])]):
            leaf_filter = LeafFilter(trie, exclude, allow)
            expected = tree_beam_search(model, ids, mask, trie, vocabulary, 5, leaf_filter=leaf_filter)
            assert_same(filled(decoder(ids, mask, leaf_filter)), filled(expected))


@pytest.mark.gpu
def test_nothing_in_the_loop_waits_for_the_host(on_gpu):
    model, trie, vocabulary = on_gpu
    leaf_filter = LeafFilter(trie, [[0], [4, 5], []], [None, np.array([1, 2]), None])
    ids, lengths = pad_right(*gpu_prompts())
    ragged = SidTable([f"item-{row}" for row in range(3)], [[0, 0, 0], [0, 1, -1], [1, -1, -1]], level_sizes=[4, 4, 4])
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            search_beams(SearchProblem(model, trie, vocabulary, "vocabulary"), ids, lengths, (5, 5, 5), leaf_filter)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    ragged = SidTrie(ragged, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            search_beams(SearchProblem(model, ragged, vocabulary, "level"), ids, lengths, (2, 2, 2))
    finally:
        torch.cuda.set_sync_debug_mode("default")

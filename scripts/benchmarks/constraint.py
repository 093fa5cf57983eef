"""What the trie costs a decoding step, beside the dict trie that transformers' users write.

    python scripts/benchmarks/constraint.py --device cpu
    python scripts/benchmarks/constraint.py --device cuda --items 10000 1000000 100000000

On a CPU: the mask of a level (`trie.allowed`) and the full-vocabulary `SidLogitsProcessor`, against
PrefixConstrainedLogitsProcessor over nested dicts. On CUDA: the mask of a level in a graph, each of its calls with rows
of its own. On both: request-time filters. Equality is checked before anything is timed.

The catalogue is random, 4 levels of 256 codes; rows stand at prefixes of random items.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from common import CALLS_PER_GRAPH, emit, emit_machine, graph_seconds, seconds
from torch import Tensor
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.decoding.trie.allow_list import AllowList
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.lookups import ROOT
from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.vocabulary import SidVocabulary

NUM_LEVELS, CODEBOOK_SIZE = 4, 256
EOS, PROMPT = 0, 1  # tokens
DICT_UP_TO = 10**6  # items; 450 bytes of dict for each
FILTER_ROWS, FILTER_BEAMS, SEEN = 128, 50, 50
KEY_FIGURES = [
    {"case": "against_dicts", "level": "all", "figure": "processor_ratio", "by": ["items"]},
    {"case": "graph_mask", "figure": "eager_us", "over": "graph_us", "by": ["items", "level"]},
]
RUNS = {
    "quick-constraint": ["--device", "cpu", "--items", "10000", "--rows", "400"],
    "cpu-constraint": ["--device", "cpu"],
    "h200-constraint": ["--device", "cuda", "--items", "10000", "100000", "1000000", "10000000", "100000000"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    parser.add_argument("--rows", type=int, default=1600, help="prompts times beams")
    parser.add_argument("--vocab", type=int, default=49152 + NUM_LEVELS * CODEBOOK_SIZE, help="tokens, SIDs included")
    parser.add_argument("--device", choices=["cpu", "cuda", "auto"], default="auto")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    emit_machine()
    steps = []
    for num_items in args.items:
        generator = torch.Generator(device).manual_seed(args.seed)
        codes = torch.randint(
            CODEBOOK_SIZE, (num_items, NUM_LEVELS), generator=generator, device=device, dtype=torch.uint8
        )
        trie = SidTrie.from_codes(codes, [CODEBOOK_SIZE] * NUM_LEVELS)
        if device == "cuda":
            steps.append(graph_masks(trie, codes, args.rows))
        elif num_items <= DICT_UP_TO:
            against_dicts(trie, codes, args.rows, args.vocab)
        else:
            masks(trie, codes, args.rows)
        if num_items <= DICT_UP_TO:
            filters(trie)
    if len(steps) > 1:
        flatness = [max(times) / min(times) for times in zip(*steps, strict=True)]
        means = [sum(times) / len(times) for times in steps]
        emit(
            "flatness", items=args.items, by_level=[round(ratio, 3) for ratio in flatness],
            of_the_mean=max(means) / min(means), slowest_us=max(map(max, steps)) * 1e6,
        )  # fmt: skip


def against_dicts(trie: SidTrie, codes: Tensor, num_rows: int, vocab_size: int) -> None:
    """The mask of each level and the whole processor, against the dict trie at the same rows."""
    first = vocab_size - NUM_LEVELS * CODEBOOK_SIZE
    sizes, starts = (CODEBOOK_SIZE,) * NUM_LEVELS, tuple(first + CODEBOOK_SIZE * i for i in range(NUM_LEVELS))
    vocabulary = SidVocabulary(sizes, starts, sizes, EOS)
    chosen = some_rows(codes, num_rows)
    scores = torch.randn(num_rows, vocab_size)
    slow = PrefixConstrainedLogitsProcessor(dict_trie(vocabulary.token_ids(codes.numpy())), 1)
    processor = SidLogitsProcessor(trie, vocabulary, 1)
    times = []
    for level, nodes in enumerate(path(trie, chosen)):
        answers = torch.from_numpy(vocabulary.token_ids(chosen[:, :level].numpy()))
        input_ids = torch.cat([torch.full((num_rows, 1), PROMPT), answers], dim=1)
        expected = slow(input_ids, scores)
        assert processor(input_ids, scores).equal(expected)
        assert trie.allowed(nodes, level).equal(expected[:, vocabulary.block(level)] > -torch.inf)
        del expected
        times.append(
            (
                seconds(lambda nodes=nodes, level=level: trie.allowed(nodes, level), 100),
                seconds(lambda ids=input_ids: processor(ids, scores), 7),
                seconds(lambda ids=input_ids: slow(ids, scores), 5),
            )
        )
        report_against(len(codes), num_rows, str(level), *times[-1])
    report_against(len(codes), num_rows, "all", *map(sum, zip(*times, strict=True)))


def report_against(num_items: int, num_rows: int, level: str, mask: float, full: float, slow: float) -> None:
    emit(
        "against_dicts", items=num_items, rows=num_rows, level=level, mask_ms=mask * 1e3, processor_ms=full * 1e3,
        transformers_ms=slow * 1e3, mask_ratio=slow / mask, processor_ratio=slow / full,
    )  # fmt: skip


def dict_trie(tokens_NL: np.ndarray):
    """prefix_allowed_tokens_fn over nested dicts of token ids."""
    root: dict = {}
    for tokens in tokens_NL.tolist():
        node = root
        for token in tokens:
            node = node.setdefault(token, {})

    def allowed_tokens(batch_id: int, row: Tensor) -> list[int]:
        node = root
        for token in row[1:].tolist():
            node = node[token]
        return list(node) or [EOS]

    return allowed_tokens


def masks(trie: SidTrie, codes: Tensor, num_rows: int) -> None:
    """The mask of each level where a dict trie would not fit into memory."""
    times = []
    for level, nodes in enumerate(path(trie, some_rows(codes, num_rows))):
        times.append(seconds(lambda nodes=nodes, level=level: trie.allowed(nodes, level), 100))
        emit("mask", items=len(codes), rows=num_rows, level=str(level), mask_ms=times[-1] * 1e3)
    emit("mask", items=len(codes), rows=num_rows, level="all", mask_ms=sum(times) * 1e3)


def graph_masks(trie: SidTrie, codes: Tensor, num_rows: int) -> list[float]:
    """The mask of each level in a CUDA graph; seconds by level."""
    on_cpu, times = trie.to("cpu"), []
    for level, every in enumerate(path(trie, some_rows(codes, num_rows * CALLS_PER_GRAPH))):
        nodes = every.view(CALLS_PER_GRAPH, num_rows)
        assert trie.allowed(nodes, level).cpu().equal(on_cpu.allowed(nodes.cpu(), level))
        times.append(graph_seconds(lambda i, nodes=nodes, level=level: trie.allowed(nodes[i], level)))
        eager = seconds(lambda nodes=nodes, level=level: trie.allowed(nodes[0], level), 100, "cuda")
        emit(
            "graph_mask", items=len(codes), rows=num_rows, level=level, graph_us=times[-1] * 1e6, eager_us=eager * 1e6,
            trie_bytes_per_item=trie.num_bytes / len(codes),
        )  # fmt: skip
    return times


def filters(trie: SidTrie) -> None:
    """Seen items of each row, and one allow-list of half the catalogue that all rows share."""
    rng = np.random.default_rng(0)
    seen = [rng.integers(0, trie.num_items, SEEN) for _ in range(FILTER_ROWS)]
    half = np.flatnonzero(rng.random(trie.num_items) < 0.5)
    leaves = torch.from_numpy(rng.integers(0, trie.num_leaves, FILTER_ROWS * FILTER_BEAMS)).to(trie.device)
    nodes = path(trie, trie.codes_of(leaves))[-1].view(FILTER_ROWS, FILTER_BEAMS)
    ranges = trie.leaf_range(trie.children(nodes, NUM_LEVELS - 1), NUM_LEVELS)  # (128, 50, 256) each
    kinds = {
        "exclude": {"exclude": seen},
        "allow": {"allow": [half] * FILTER_ROWS},
        "prepared_allow": {"allow": [AllowList(trie, half)] * FILTER_ROWS},
    }
    for kind, lists in kinds.items():
        leaf_filter = LeafFilter(trie, **lists)
        permitted = leaf_filter.permits(*ranges).cpu()
        for row in range(3):
            is_legal = np.full(trie.num_items, kind == "exclude")
            is_legal[seen[row] if kind == "exclude" else half] = kind != "exclude"
            assert permitted[row].equal(permitted_by_hand(trie, is_legal, *(side[row].cpu() for side in ranges)))
        build = seconds(lambda lists=lists: LeafFilter(trie, **lists), 5, trie.device)
        if trie.device.type == "cuda":
            permits = graph_seconds(lambda _, leaf_filter=leaf_filter: leaf_filter.permits(*ranges))
        else:
            permits = seconds(lambda leaf_filter=leaf_filter: leaf_filter.permits(*ranges), 20)
        emit(
            f"filter_{kind}", items=trie.num_items, rows=FILTER_ROWS, listed=SEEN if kind == "exclude" else len(half),
            build_ms=build * 1e3, permits_us=permits * 1e6,
        )  # fmt: skip


def permitted_by_hand(trie: SidTrie, is_legal: np.ndarray, first_leaf: Tensor, end_leaf: Tensor) -> Tensor:
    """Whether ranges of leaves hold one with a legal item, from a running count over all leaves."""
    is_legal = is_legal[trie.leaf_items]
    if trie.leaf_starts is not None:
        is_legal = np.logical_or.reduceat(is_legal, trie.leaf_starts[:-1])
    before = torch.from_numpy(np.append(0, is_legal.cumsum()))
    return before[end_leaf] > before[first_leaf]


def some_rows(codes: Tensor, count: int) -> Tensor:
    """(count, L) int64 codes of random items."""
    generator = torch.Generator(codes.device).manual_seed(1)
    return codes[torch.randint(len(codes), (count,), generator=generator, device=codes.device)].long()


def path(trie: SidTrie, codes: Tensor) -> list[Tensor]:
    """Nodes that SIDs pass through before each level; L of (R,)."""
    nodes = [torch.full((len(codes),), ROOT, device=codes.device)]
    for level in range(NUM_LEVELS - 1):
        nodes.append(trie.children(nodes[-1], level).gather(1, codes[:, level : level + 1]).squeeze(1))
    return nodes


if __name__ == "__main__":
    main()

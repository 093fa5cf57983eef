"""Users per second of ranking by SIDs, by item rows and by their mixture, beside `generate` and all logits.

    python scripts/benchmarks/rank.py --shape smollm2-135m

Random weights of a real model's shape, a random catalogue of 4 levels of 256 codes whose items have rows, histories of
one length. First, in float32, the items are held against the logits that the model's own forward computes for the whole
vocabulary, and the beams against `generate`; then everything is timed as `Recommender` runs it, from item rows to a
ranking on the host.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable

import numpy as np
import torch
from common import emit, emit_machine, seconds
from models import CODEBOOK_SIZE, NUM_LEVELS, SHAPES, SIZES, random_model, vocabulary_of
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel

from llmrec.configs.recommend import RankBy
from llmrec.decoding.generate import sid_generation_config
from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.decoding.ranker import SidRanker
from llmrec.evaluation.ranking import Ranking
from llmrec.model.checkpoint import SidConfig
from llmrec.model.prompts import Prompt
from llmrec.runtime.cuda_graphs import EAGER_CALLS
from llmrec.sid.item_tokens import ItemTokens
from llmrec.sid.table import SidTable

PREFIX = range(10, 23)
RANKS: tuple[RankBy, ...] = ("sid", "items", "mixture")
KEY_FIGURES = [{"case": "rank", "figure": "users_per_s", "over": {"case": "generate"}, "by": ["by", "batch"]}]
RUNS = {
    "quick-rank": ["--device", "cpu", "--shape", "tiny", "--batches", "1", "8"],
    "cpu-rank-smollm2-135m": ["--shape", "smollm2-135m", "--batches", "1", "8"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--history", type=int, default=20, help="items")
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--compiled", action="store_true", help="compile the layers first")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(0)
    emit_machine()
    bench = Bench(args)
    bench.check_equality()
    bench.time_generate()
    bench.time_ranks()


class Bench:
    """One model shape and catalogue; prints a line per case."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, torch.device(args.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.rng = np.random.default_rng(0)
        codes = np.unique(self.rng.integers(0, CODEBOOK_SIZE, (args.items, NUM_LEVELS)), axis=0)
        self.table = SidTable(list(map(str, range(len(codes)))), codes, level_sizes=SIZES)
        vocabulary = vocabulary_of(args.shape)
        items = ItemTokens(vocabulary.token_range.stop + 1, self.table.num_items)
        self.vocabulary = dataclasses.replace(vocabulary, items=items)
        self.sid_config = SidConfig(self.vocabulary, Prompt(), args.history, "level")

    def model(self, dtype: torch.dtype) -> PreTrainedModel:
        model = random_model(self.args.shape, dtype, self.device)
        model.resize_token_embeddings(self.vocabulary.added_range.stop, mean_resizing=False)
        return model

    def ranker(self, model: PreTrainedModel, rank: RankBy) -> SidRanker:
        return SidRanker(model, self.table, self.sid_config, list(PREFIX), self.args.compiled, rank=rank)

    def histories(self, batch_size: int) -> list[np.ndarray]:
        return list(self.rng.integers(0, self.table.num_items, (batch_size, self.args.history)))

    def prompts(self, ranker: SidRanker, histories: list[np.ndarray]) -> Tensor:
        ids, _ = ranker.encode(histories)
        return torch.cat([ranker.prefix_ids.expand(len(ids), -1), ids], dim=1)

    @torch.no_grad()
    def all_logits(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        """(B, k) best items by the logits of the last position over the whole vocabulary, as transformers has them."""
        return model(input_ids=ids).logits[:, -1, self.vocabulary.items.block].float().topk(self.args.beams).indices

    def generate(self, model: PreTrainedModel, ids: Tensor, trie: object) -> Tensor:
        """(B, M, L) codes of `generate` under the processor."""
        config = sid_generation_config(self.vocabulary, self.args.beams, num_return_sequences=self.args.beams)
        processor = SidLogitsProcessor(trie, self.vocabulary, ids.shape[1], "level")
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config,
            logits_processor=LogitsProcessorList([processor]),
        )  # fmt: skip
        answers = output.sequences[:, ids.shape[1] : ids.shape[1] + NUM_LEVELS]
        return answers.view(len(ids), -1, NUM_LEVELS) - torch.tensor(self.vocabulary.starts, device=ids.device)

    def check_equality(self) -> None:
        """Stop unless items are ranked as by the model's own logits, and beams as by `generate`, in float32."""
        model, histories = self.model(torch.float32), self.histories(2)
        by_items = self.ranker(model, "items").rank(histories, 1, num_beams=self.args.beams).items
        by_sid = self.ranker(model, "sid")
        ids = self.prompts(by_sid, histories)
        expected = self.table.codes(by_sid.rank(histories, 1, num_beams=self.args.beams).items.ravel())
        same_items = float((torch.from_numpy(by_items) == self.all_logits(model, ids).cpu()).float().mean())
        found = self.generate(model, ids, by_sid.trie).cpu().numpy()
        same_sids = float((found == expected.reshape(found.shape)).all(axis=2).mean())
        if (
            min(same_items, same_sids) < 0.95
        ):  # neighbours may trade places where their scores are equal but for rounding
            raise SystemExit(f"The rankings differ: items {same_items:.4f} equal, SIDs {same_sids:.4f}.")
        emit("equal", dtype="float32", rows=2, items=same_items, sids=same_sids)

    def time_generate(self) -> None:
        model = self.model(self.dtype)
        ranker = self.ranker(model, "sid")
        ids = self.prompts(ranker, self.histories(1))
        elapsed = seconds(lambda: self.generate(model, ids, ranker.trie), 1, self.device)
        emit("generate", batch=1, users_per_s=1 / elapsed, p50_ms=elapsed * 1e3)
        for batch_size in self.args.batches:
            ids = self.prompts(ranker, self.histories(batch_size))
            elapsed = seconds(lambda ids=ids: self.all_logits(model, ids).cpu(), self.args.repeats, self.device)
            emit("all logits", batch=batch_size, users_per_s=batch_size / elapsed, p50_ms=elapsed * 1e3)

    def time_ranks(self) -> None:
        """Time the rankings in turns, so that what else the machine does meets all of them alike."""
        model = self.model(self.dtype)
        for batch_size in self.args.batches:
            histories = self.histories(batch_size)
            calls = {rank: self.call(self.ranker(model, rank), histories) for rank in RANKS}
            for call in calls.values():
                for _ in range(EAGER_CALLS):
                    call()
            turns = [
                {rank: seconds(call, 1, self.device) for rank, call in calls.items()} for _ in range(self.args.repeats)
            ]
            for rank in RANKS:
                elapsed = statistics.median(turn[rank] for turn in turns)
                emit("rank", by=rank, batch=batch_size, users_per_s=batch_size / elapsed, p50_ms=elapsed * 1e3)

    def call(self, ranker: SidRanker, histories: list[np.ndarray]) -> Callable[[], Ranking]:
        return lambda: ranker.rank(histories, 1, num_beams=self.args.beams)


if __name__ == "__main__":
    main()

"""Users per second of tree beam search, beside `generate` with a dict trie and with `SidLogitsProcessor`.

    python scripts/benchmarks/decode.py --shape qwen3-0.6b --memory-gb 80
    python scripts/benchmarks/decode.py --shape smollm2-135m --memory-gb 80
    python scripts/benchmarks/decode.py --shape smollm2-135m --items 100000 --sizes 100000 10000000 100000000

Random weights of a real model's shape, a random catalogue of 4 levels of 256 codes, random prompts of one length.
First, in float32, the answers of the captured and compiled search are held against `generate` with the dict trie, SIDs
in order and scores; then everything is timed in bfloat16. --sizes times the search alone, with catalogues of several
sizes in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from common import emit, emit_machine, fitting, release, seconds
from models import CODEBOOK_SIZE, EOS, FIRST_TEXT_TOKEN, NUM_LEVELS, SHAPES, SIZES, random_model, vocabulary_of
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from llmrec.decoding.beam_search import tree_beam_search
from llmrec.decoding.decoder import SidDecoder
from llmrec.decoding.logits_processor import SidLogitsProcessor
from llmrec.decoding.trie.trie import SidTrie
from llmrec.runtime.cuda_graphs import EAGER_CALLS

KERNELS = {
    "matrix products": ("nvjet", "gemm", "cutlass", "splitK", "cublas"),
    "attention": ("sdpa", "flash", "fmha"),
    "fused by the compiler": ("triton",),
    "copies": ("copy", "Memcpy", "memcpy", "Memset", "cat"),
}
KEY_FIGURES = [
    {"case": "search", "figure": "users_per_s", "over": {"case": "generate", "constraint": "dict trie"},
     "by": ["mode", "scores_over", "batch"]},
]  # fmt: skip
RUNS = {
    "quick-decode": ["--device", "cpu", "--shape", "tiny", "--items", "20000", "--generate-batches", "4"],
    "h200-decode-qwen3-0.6b": ["--shape", "qwen3-0.6b", "--memory-gb", "80"],
    "h200-decode-smollm2-135m": ["--shape", "smollm2-135m", "--memory-gb", "80"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--items", type=int, default=10**6)
    parser.add_argument("--prompt", type=int, default=100, help="tokens")
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16, 64, 128, 256, 512])
    parser.add_argument("--generate-batches", type=int, nargs="*", default=[4, 16, 64])
    parser.add_argument(
        "--long-prompt", type=int, default=256, help="tokens of the prompts at which memory is compared"
    )
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of items whose speed is compared, and no more")
    parser.add_argument("--memory-gb", type=float, help="GPU memory to work with, to stand in for a smaller GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(0)
    emit_machine()
    if args.memory_gb:
        torch.cuda.set_per_process_memory_fraction(args.memory_gb * 2**30 / torch.cuda.mem_get_info()[1])
    bench = Bench(args)
    if args.sizes:
        bench.time_sizes()
        return
    bench.check_equality()
    bench.time_generate()
    bench.time_search()
    if bench.device.type == "cuda":
        bench.compare_memory()


class Bench:
    """One model shape, catalogue and prompt length; prints a line per case."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, torch.device(args.device)
        self.vocabulary = vocabulary_of(args.shape)
        codes = torch.randint(CODEBOOK_SIZE, (args.items, NUM_LEVELS), dtype=torch.uint8)
        self.trie = SidTrie.from_codes(codes, SIZES, device=self.device)
        self.dicts = nested_dicts((codes.long() + torch.tensor(self.vocabulary.starts)).tolist())
        self.generate_rate = 0.0

    def model(self, dtype: torch.dtype) -> PreTrainedModel:
        return random_model(self.args.shape, dtype, self.device)

    def prompts(self, batch_size: int, length: int | None = None) -> Tensor:
        shape = (batch_size, length or self.args.prompt)
        return torch.randint(FIRST_TEXT_TOKEN, self.vocabulary.starts[0], shape, device=self.device)

    def decoder(self, model: PreTrainedModel, normalize_over: str = "level", **options: bool) -> SidDecoder:
        return SidDecoder(model, self.trie, self.vocabulary, self.args.beams, normalize_over, **options)

    def generate(
        self, model: PreTrainedModel, ids: Tensor, renormalize: bool = False, **constraint: object
    ) -> tuple[Tensor, Tensor]:
        """(B, M, L) codes and (B, M) scores of `generate`, over the vocabulary or over what is allowed."""
        config = GenerationConfig(
            max_new_tokens=NUM_LEVELS, num_beams=self.args.beams, num_return_sequences=self.args.beams,
            length_penalty=0.0, pad_token_id=EOS, return_dict_in_generate=True, output_scores=True,
            renormalize_logits=renormalize,
        )  # fmt: skip
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, **constraint
        )
        starts = torch.tensor(self.vocabulary.starts, device=ids.device)
        codes = output.sequences[:, ids.shape[1] :].view(len(ids), -1, NUM_LEVELS) - starts
        return codes, output.sequences_scores.view(len(ids), -1)

    def with_dicts(self, ids: Tensor) -> dict[str, object]:
        """The constraint that a user of transformers writes."""

        def allowed_tokens(_: int, sequence: Tensor) -> list[int]:
            node = self.dicts
            for token in sequence[ids.shape[1] :].tolist():
                node = node[token]
            return list(node)

        return {"prefix_allowed_tokens_fn": allowed_tokens}

    def with_processor(self, ids: Tensor) -> dict[str, object]:
        processor = SidLogitsProcessor(self.trie, self.vocabulary, ids.shape[1])
        return {"logits_processor": LogitsProcessorList([processor])}

    def check_equality(self) -> None:
        """Stop unless the fast path answers as the slow one, in float32."""
        model, ids = self.model(torch.float32), self.prompts(2)
        codes, scores = self.generate(model, ids, **self.with_dicts(ids))
        decoder = self.decoder(model, "vocabulary", compiled=self.device.type == "cuda")
        for _ in range(EAGER_CALLS + 1):
            found = decoder(ids)  # the last of them is captured
        error = float((found.scores - scores).abs().max())
        # Beams may trade places only where their scores differ by less than the error.
        same = (found.codes == codes).all(dim=2) | ((found.scores - scores).abs() < 1e-5)
        if not bool(same.all()) or error > 1e-3 or not bool((found.leaves >= 0).all()):
            raise SystemExit(f"The search differs from `generate`: {same.float().mean():.4f} equal, error {error:.2g}.")
        identical = int((found.codes == codes).all(dim=2).sum())
        emit(
            "equal",
            dtype="float32",
            rows=len(ids),
            beams=codes.shape[1],
            identical=identical,
            of=same.numel(),
            largest_error=error,
        )
        del model
        release()

    def time_generate(self) -> None:
        model = self.model(torch.bfloat16)
        for name, constraint in (("dict trie", self.with_dicts), ("SidLogitsProcessor", self.with_processor)):
            for batch_size in self.args.generate_batches:
                elapsed = self.generate_seconds(model, self.prompts(batch_size), constraint)
                if elapsed is None:
                    emit("generate", constraint=name, batch=batch_size, users_per_s="out of memory")
                    break
                rate = batch_size / elapsed
                if constraint == self.with_dicts:
                    self.generate_rate = max(self.generate_rate, rate)
                emit("generate", constraint=name, batch=batch_size, users_per_s=rate, seconds=elapsed)
        del model
        release()

    def generate_seconds(self, model: PreTrainedModel, ids: Tensor, constraint: Callable) -> float | None:
        return fitting(lambda: seconds(lambda: self.generate(model, ids, **constraint(ids)), 1, self.device))

    def time_search(self) -> None:
        model = self.model(torch.bfloat16)
        ids = self.prompts(64)
        eager = seconds(
            lambda: tree_beam_search(model, ids, None, self.trie, self.vocabulary, self.args.beams, "level"),
            self.args.repeats,
            self.device,
        )
        emit("search", mode="eager", scores_over="level", batch=64, users_per_s=64 / eager)
        if self.device.type != "cuda":
            return
        plain = self.decoder(model)(ids)
        captured = self.decoder(model)
        for _ in range(EAGER_CALLS):
            captured(ids)
        emit(
            "search",
            mode="captured",
            scores_over="level",
            batch=64,
            users_per_s=64 / seconds(lambda: captured(ids), self.args.repeats, self.device),
        )
        for scores_over in ("vocabulary", "level"):
            decoder = self.decoder(model, scores_over, compiled=True)
            for batch_size in self.args.batches:
                self.time_batch(decoder, scores_over, batch_size)
        fused = decoder(ids)
        shared = [len(set(a) & set(b)) for a, b in zip(plain.leaves.tolist(), fused.leaves.tolist(), strict=True)]
        emit("overlap", dtype="bfloat16", of="compiled and not", share=statistics.mean(shared) / self.args.beams)

    def time_sizes(self) -> None:
        """Compare catalogues of several sizes at each batch, in turn and twice, so that a drift of the clock shows."""
        model, tries = self.model(torch.bfloat16), {}
        for num_items in self.args.sizes:
            before = torch.cuda.memory_allocated() if self.device.type == "cuda" else 0
            codes = torch.randint(CODEBOOK_SIZE, (num_items, NUM_LEVELS), dtype=torch.uint8, device=self.device)
            started = time.perf_counter()
            tries[num_items] = SidTrie.from_codes(codes, SIZES)
            built, peak = time.perf_counter() - started, 0.0
            del codes
            if self.device.type == "cuda":
                peak = torch.cuda.max_memory_allocated() / 2**30
                release()
                before = torch.cuda.memory_allocated() - before
            emit("trie", items=num_items, build_s=built, build_peak_gib=peak, kept_mib=before / 2**20)
        for batch_size in self.args.batches:
            ids, rates = self.prompts(batch_size), {num_items: [] for num_items in tries}
            for _ in range(2):
                for num_items, self.trie in tries.items():
                    rates[num_items].append(self.rate(model, ids))
            first = statistics.mean(rates[self.args.sizes[0]])
            for num_items, found in rates.items():
                rate = statistics.mean(found)
                rounds = [round(each, 1) for each in found]
                emit("sizes", batch=batch_size, items=num_items, users_per_s=rate, rounds=rounds,
                     of_the_first=rate / first)  # fmt: skip

    def rate(self, model: PreTrainedModel, ids: Tensor) -> float:
        """Users per second of a new decoder over the current trie, all of whose answers must be items."""
        decoder = self.decoder(model, compiled=self.device.type == "cuda")
        for _ in range(EAGER_CALLS + 1):
            beams = decoder(ids)  # the last of them is captured
        assert bool((self.trie.codes_of(beams.leaves) == beams.codes).all()), "an answer is no item"
        return len(ids) / seconds(lambda: decoder(ids), self.args.repeats, self.device)

    def time_batch(self, decoder: SidDecoder, scores_over: str, batch_size: int) -> None:
        ids = self.prompts(batch_size)
        started = time.perf_counter()
        beams = decoder(ids)
        torch.cuda.synchronize()
        first = time.perf_counter() - started
        for _ in range(EAGER_CALLS):
            decoder(ids)  # the last of them is captured
        repeats = 100 if batch_size == 1 else self.args.repeats
        elapsed = seconds(lambda: decoder(ids), repeats, self.device)
        invalid = int((self.trie.codes_of(beams.leaves) != beams.codes).any(dim=2).sum() + (beams.leaves < 0).sum())
        ratio = {"times_generate": batch_size / elapsed / self.generate_rate} if self.generate_rate else {}
        emit(
            "search", mode="captured, compiled", scores_over=scores_over, batch=batch_size,
            users_per_s=batch_size / elapsed, p50_ms=elapsed * 1e3, first_call_s=first, invalid=invalid, **ratio,
        )  # fmt: skip
        if scores_over == "level" and batch_size in (1, max(self.args.batches)):
            emit("profile", batch=batch_size, **shares(lambda: decoder(ids)))

    def compare_memory(self) -> None:
        """Prompts at which `generate` needs more memory than there is."""
        model, ids = self.model(torch.bfloat16), self.prompts(64, self.args.long_prompt)
        searched, peak = self.search_memory(model, ids)
        release()
        generated = self.generate_seconds(model, ids, self.with_dicts)
        emit(
            "memory", batch=64, prompt=self.args.long_prompt, search_s=searched or "out of memory",
            search_peak_gib=peak, generate_s=generated or "out of memory",
        )  # fmt: skip

    def search_memory(self, model: PreTrainedModel, ids: Tensor) -> tuple[float | None, float]:
        """Seconds of a captured search and the GiB that it takes at most."""
        decoder = self.decoder(model)
        torch.cuda.reset_peak_memory_stats()
        searched = fitting(lambda: seconds(lambda: decoder(ids), 1, self.device))
        return searched, torch.cuda.max_memory_allocated() / 2**30


def nested_dicts(sequences: list[list[int]]) -> dict[int, dict]:
    """The dict trie of token sequences."""
    root: dict[int, dict] = {}
    for tokens in sequences:
        node = root
        for token in tokens:
            node = node.setdefault(token, {})
    return root


def shares(call: Callable[[], object]) -> dict[str, float]:
    """Device milliseconds of one call by the kind of kernel, and how many kernels there were."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    spent, count = dict.fromkeys((*KERNELS, "other"), 0.0), 0
    for event in profiler.key_averages():
        kind = next((kind for kind, names in KERNELS.items() if any(name in event.key for name in names)), "other")
        spent[kind] += event.self_device_time_total / 1e3
        count += event.count if event.self_device_time_total else 0
    return {**spent, "kernels": count}


if __name__ == "__main__":
    main()

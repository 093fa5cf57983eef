"""Users per second under a trie of titles, beside `generate` with a dict trie, and what the trie takes to build.

    python scripts/benchmarks/titles.py --shape smollm2-135m

Random weights of a real model's shape; titles of up to 12 tokens, drawn as words are, few frequent ones and many rare
ones; random prompts of one length. First, in float32, the answers of the search are held against the dict trie that a
user of transformers writes, and their scores against the model's own; then both are timed, in bfloat16 on a GPU. Scores
are normalised over the vocabulary, as models of words are trained.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from common import emit, emit_machine, fitting, seconds
from models import EOS, FIRST_TEXT_TOKEN, SHAPES, random_model
from torch import Tensor
from transformers import GenerationConfig

from llmrec.decoding.decoder import SidDecoder
from llmrec.decoding.trie.token_trie import TokenTrie
from llmrec.runtime.cuda_graphs import EAGER_CALLS
from llmrec.sid.vocabulary import SidVocabulary

END = FIRST_TEXT_TOKEN  # token that ends a title
SHORTEST = 3
KEY_FIGURES = [{"case": "search", "figure": "users_per_s", "over": {"case": "generate"}, "by": ["batch"]}]
RUNS = {
    "quick-titles": ["--device", "cpu", "--shape", "tiny", "--items", "20000", "--batches", "1", "4",
                     "--generate-batches", "1", "4"],
    "cpu-titles-smollm2-135m": ["--shape", "smollm2-135m", "--batches", "1", "4", "--generate-batches", "1"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--items", type=int, default=10**5)
    parser.add_argument("--longest", type=int, default=12, help="tokens of a title, the end included")
    parser.add_argument("--prompt", type=int, default=240, help="tokens: 20 titles of 12")
    parser.add_argument("--beams", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 128])
    parser.add_argument("--generate-batches", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    emit_machine()
    device, num_words = torch.device(args.device), SHAPES[args.shape][1]["vocab_size"]
    titles = random_titles(args.items, args.longest, num_words)
    started = time.perf_counter()
    trie = TokenTrie(titles, device=device)
    num_bytes = trie.num_bytes + trie.owners.num_bytes
    emit("build", items=args.items, seconds=time.perf_counter() - started, bytes=num_bytes, leaves=trie.num_leaves)
    vocabulary, dicts = SidVocabulary.of_words(trie.words, EOS), nested_dicts(titles)
    check_equality(args, trie, vocabulary, dicts, device)
    model = random_model(args.shape, torch.bfloat16 if device.type == "cuda" else torch.float32, device)
    for batch in args.generate_batches:
        ids = prompts(args, batch, device)
        elapsed = fitting(
            lambda ids=ids: seconds(lambda: generate(model, ids, args.beams, args.longest, dicts), 1, device)
        )
        emit("generate", batch=batch, beams=args.beams, users_per_s=elapsed and batch / elapsed)
    decoder = SidDecoder(model, trie, vocabulary, args.beams, compiled=device.type == "cuda")
    for batch in args.batches:
        ids = prompts(args, batch, device)
        for _ in range(EAGER_CALLS + 1):
            decoder(ids)
        elapsed = seconds(lambda ids=ids: decoder(ids), args.repeats, device)
        emit("search", batch=batch, beams=args.beams, seconds=elapsed, users_per_s=batch / elapsed)


def random_titles(num_items: int, longest: int, num_words: int) -> list[list[int]]:
    """Distinct titles of SHORTEST to `longest` tokens, the end included."""
    rng, titles = np.random.default_rng(0), dict[tuple[int, ...], None]()
    while len(titles) < num_items:
        lengths = rng.integers(SHORTEST, longest, num_items)
        words = END + 1 + (num_words - END - 1) * rng.random((num_items, longest)) ** 3
        rows = zip(words.astype(np.int64).tolist(), lengths.tolist(), strict=True)
        titles |= dict.fromkeys((*row[:length], END) for row, length in rows)
    return [list(title) for title in titles][:num_items]


def nested_dicts(titles: list[list[int]]) -> dict:
    """The dict trie that a user of transformers writes; end-of-sequence follows a title."""
    root: dict = {}
    for title in titles:
        node = root
        for token in title:
            node = node.setdefault(token, {})
        node[EOS] = {}
    return root


def prompts(args: argparse.Namespace, batch: int, device: torch.device) -> Tensor:
    """Random (batch, T) prompts."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(END + 1, SHAPES[args.shape][1]["vocab_size"], (batch, args.prompt), generator=generator).to(
        device
    )


def generate(model: object, ids: Tensor, beams: int, longest: int, dicts: dict) -> tuple[list, Tensor]:
    """Answers of `generate` under the dict trie, and their (B, M) sums of log-probabilities."""

    def allowed(_: int, sequence: Tensor) -> list[int]:
        node = dicts
        for token in sequence[ids.shape[1] :].tolist():
            node = node.get(token, {EOS: {}})
        return list(node) or [EOS]

    config = GenerationConfig(
        max_new_tokens=longest + 1, num_beams=beams, num_return_sequences=beams, length_penalty=0.0, eos_token_id=EOS,
        pad_token_id=EOS, return_dict_in_generate=True, output_scores=True, early_stopping=False,
    )  # fmt: skip
    found = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, prefix_allowed_tokens_fn=allowed
    )
    return found.sequences[:, ids.shape[1] :].tolist(), found.sequences_scores.view(len(ids), -1)


def check_equality(
    args: argparse.Namespace, trie: TokenTrie, vocabulary: SidVocabulary, dicts: dict, device: torch.device
) -> None:
    """Stop unless every answer of the search is a title of the dict trie, with the score that the model gives it."""
    model = random_model(args.shape, torch.float32, device)
    ids = prompts(args, 1, device)
    beams = SidDecoder(model, trie, vocabulary, args.beams, capture=False)(ids)
    errors = []
    for codes, score in zip(beams.codes[0].tolist(), beams.scores[0].tolist(), strict=True):
        tokens = [int(words[code]) for words, code in zip(trie.words.ids, codes, strict=True) if code >= 0]
        whole = torch.cat([ids[0], torch.tensor(tokens, device=device)])[None]
        with torch.no_grad():
            log_probs = model(whole).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
        errors.append(abs(float(log_probs[range(len(tokens)), tokens].sum()) - score))
        node = dicts
        for token in tokens:
            node = node[token]
        if EOS not in node:
            raise SystemExit(f"The search answers {tokens}, which is no title.")
    if max(errors) > 1e-2:
        raise SystemExit(f"The search gives other scores than the model, by up to {max(errors):.2g}.")
    emit("equal", dtype="float32", beams=len(errors), largest_error=max(errors))


if __name__ == "__main__":
    main()

"""A checkpoint of random weights of a real model's shape, for services; and the speed of its decoder alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from common import release, seconds
from models import SHAPES as SHAPES
from models import SIZES, random_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmrec.decoding.decoder import SidDecoder
from llmrec.model.checkpoint import SidConfig, save_model
from llmrec.model.prompts import Prompt
from llmrec.recommender import Recommender
from llmrec.runtime.cuda_graphs import EAGER_CALLS
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary

MAX_HISTORY, INSTRUCTION = 22, " ".join(f"w{i}" for i in range(3, 15))  # 100 tokens with the semantic IDs


def write_checkpoint(directory: Path, shape: str, num_items: int) -> Path:
    """Write weights, a tokenizer of numbered words, random semantic IDs and what binds them."""
    num_words = SHAPES[shape][1]["vocab_size"]
    words = {"<pad>": 0, "<unk>": 1, "<eos>": 2, **{f"w{i}": i for i in range(3, num_words)}}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>")
    vocabulary = SidVocabulary.add_to(tokenizer, SIZES)
    rng = np.random.default_rng(0)
    keys = rng.choice(np.prod(SIZES, dtype=np.int64), num_items, replace=False)
    codes = np.stack(np.unravel_index(keys, SIZES), axis=1)
    table = SidTable([f"item-{row}" for row in range(num_items)], codes, level_sizes=list(SIZES))
    model = random_model(shape, torch.float32, torch.device("cpu"))
    directory.mkdir(parents=True)
    save_model(model, tokenizer, directory)
    SidConfig(vocabulary, Prompt(INSTRUCTION), MAX_HISTORY, "level").save(directory, table, {}, tokenizer)
    return directory


def decoder_rate(model: str, device: str, compiled: bool, batch: int = 64, repeats: int = 10) -> dict[str, float]:
    """Users per second of the search alone, on batches of prompts as the service will see them."""
    recommender = Recommender.from_pretrained(model, device, compiled=compiled)
    ranker, where = recommender.ranker, recommender.model.device
    rng = np.random.default_rng(1)
    decoder = SidDecoder(
        recommender.model, ranker.trie, recommender.sid_config.vocabulary, 50, "level", ranker.prefix_ids,
        compiled=compiled,
    )  # fmt: skip
    histories = [rng.choice(recommender.table.num_items, MAX_HISTORY, replace=False) for _ in range(batch)]
    prompts = ranker.encode(histories)
    for _ in range(EAGER_CALLS + 1):
        decoder.search(*prompts)
    elapsed = seconds(lambda: decoder.search(*prompts), repeats, where)
    tokens = prompts[0].shape[1] + len(ranker.prefix_ids)
    if where.type == "cuda":
        release()
    return {"users_per_s": batch / elapsed, "prompt_tokens": tokens, "ms": elapsed * 1e3}

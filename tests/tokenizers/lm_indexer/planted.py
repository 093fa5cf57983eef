"""A catalogue of 8 topics x 8 subtopics, told by the words of a text, and a tiny encoder of random weights for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers import BertConfig, BertModel

from llmrec.data.catalog import Catalog
from llmrec.model.micro import word_tokenizer
from llmrec.tokenizers.lm_indexer import LMIndexer
from llmrec.views import ItemViews
from llmrec.views.text import encoder_view, load_encoder
from tests.support.clustered import SPLIT

TOPICS = SUBTOPICS = 8
EACH = 5
TOPIC = np.repeat(np.arange(TOPICS), SUBTOPICS * EACH)
SUBTOPIC = np.tile(np.repeat(np.arange(SUBTOPICS), EACH), TOPICS)


def texts() -> list[str]:
    """Three words of the topic, two of the subtopic and one of neither, in random order."""
    rng = np.random.default_rng(0)
    words = [[*(f"t{t}w{i}" for i in range(3)), *(f"s{s}w{i}" for i in range(2)), f"n{rng.integers(10)}"]
             for t, s in zip(TOPIC, SUBTOPIC, strict=True)]  # fmt: skip
    return [" ".join(rng.permutation(each)) for each in words]


def catalog_of(lines: list[str]) -> Catalog:
    ids = [str(row) for row in range(len(lines))]
    return Catalog(pa.table({"item_id": ids, "title": lines, "text": lines}), SPLIT)


def write_encoder(path: Path, lines: list[str]) -> Path:
    """A sentence-transformers model of one layer whose tokenizer knows the words of these texts."""
    tokenizer = word_tokenizer(lines, max_words=2000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def text_view(catalog: Catalog, encoder: Path, scratch: Path) -> ItemViews:
    view = encoder_view(catalog, load_encoder(str(encoder), "cpu"), str(encoder), "{text}", 64, scratch)
    return ItemViews(text=view)


def lm_indexer(**options) -> LMIndexer:
    small = {"num_levels": 2, "codebook_size": 8, "latent_dim": 32, "batch_size": 64, "max_tokens": 16, "masking": 0.8,
             "learning_rate": 5e-3, "warm_up_epochs": 20, "max_epochs": 15, "device": "cpu"}  # fmt: skip
    return LMIndexer(**{**small, **options})

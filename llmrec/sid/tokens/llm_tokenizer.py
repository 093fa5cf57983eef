"""The tokenizer of a causal LM, from a directory or the Hub, or made of the words of a catalogue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from llmrec.configs.sft import DEFAULT_INSTRUCTION
from llmrec.runtime.quiet import loading

if TYPE_CHECKING:  # it takes a second to import
    from transformers import PreTrainedTokenizerBase

MICRO = "micro"  # in place of a path: the small model whose tokenizer is made of the titles
SPECIAL_TOKENS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def load_tokenizer(source: str | Path, **options: object) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a path or Hub id; end-of-sequence pads if it names no padding token.

    Raises:
        ValueError: If it cannot be loaded.
    """
    from transformers import AutoTokenizer

    with loading(source, "AutoTokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False, **options)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes one up if there are no files
        raise ValueError(f"'{source}' has no tokenizer; save the tokenizer of the model next to its weights.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
    return tokenizer


def word_tokenizer(texts: Iterable[str], max_words: int) -> PreTrainedTokenizerBase:
    """Make a lower-case word-level tokenizer of the most frequent words of texts and of the default instruction.

    Args:
        texts: Titles.
        max_words: Largest size of the vocabulary, special tokens included.

    Raises:
        ValueError: If the vocabulary does not hold the instruction.
    """
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def words_of(text: str) -> list[str]:
        return [word for word, _ in core.pre_tokenizer.pre_tokenize_str(core.normalizer.normalize_str(text))]

    counts = Counter(word for text in texts for word in words_of(text))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    always = list(dict.fromkeys([*SPECIAL_TOKENS.values(), *words_of(DEFAULT_INSTRUCTION)]))
    if max_words < len(always):
        raise ValueError(
            f"micro_words is {max_words}; at least {len(always)} are needed for the instruction and the special tokens."
        )
    vocabulary = list(dict.fromkeys([*always, *frequent]))[:max_words]
    core.model = models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL_TOKENS)

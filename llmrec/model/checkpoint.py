"""A checkpoint: an ordinary Hugging Face model directory, the SID table, and llmrec.json that binds them.

`extend` and the stages that train write it, and everything that decodes reads it. Nothing in it is executed: weights
are safetensors, the rest is JSON and parquet, and `trust_remote_code` stays off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llmrec.model.heads.own_files import saved_apart
from llmrec.model.heads.weights import load_head
from llmrec.model.history.choice import make_history_encoder
from llmrec.model.prompts import Prompt
from llmrec.runtime.finite import check_weights
from llmrec.runtime.hub.checkpoints import check_is_ours
from llmrec.runtime.hub.checkpoints import resolve as resolve
from llmrec.runtime.manifest import JsonObject, read_json, write_json
from llmrec.runtime.model_files import BINDING, OURS, binding, check_sizes
from llmrec.runtime.quiet import loading, without_tensor_bars
from llmrec.sid import table as sid
from llmrec.sid.normalization import NormalizeOver, check_length_penalty, check_normalize_over
from llmrec.sid.table import SidTable
from llmrec.sid.tokens.llm_tokenizer import load_tokenizer as load_tokenizer
from llmrec.sid.vocabulary import SidVocabulary

FILE = OURS
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SidConfig:
    """Content of llmrec.json: the facts that a checkpoint needs in addition to its weights.

    Args:
        vocabulary: Tokens of the codes.
        prompt: Text before a history.
        max_history: Largest number of items of a history that the model is shown, the latest ones; at least 1.
        normalize_over: Tokens that the score of a code is normalised over; see `llmrec.sid.normalization`.
        mixture_weight: Share of the item rows where they are mixed with SIDs; see `llmrec.decoding.item_ranking`.
        length_penalty: Power of its number of tokens that the score of an item is divided by, as in transformers.

    Raises:
        ValueError: If `max_history` is no positive integer, `normalize_over` is unknown, `mixture_weight` is not
            between 0 and 1, or `length_penalty` is no number from 0 on.

    Examples:
        >>> from llmrec import SidConfig, SidVocabulary
        >>> from llmrec.model.prompts import Prompt
        >>> vocabulary = SidVocabulary(level_sizes=(4, 4), starts=(100, 104), block_sizes=(4, 4), eos_token_id=2)
        >>> sid_config = SidConfig(vocabulary, Prompt("Recommend:"), max_history=50, normalize_over="level")
        >>> sid_config.prompt.instruction
        'Recommend:'
    """

    vocabulary: SidVocabulary
    prompt: Prompt
    max_history: int
    normalize_over: NormalizeOver
    mixture_weight: float = 0.5
    length_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.mixture_weight <= 1:
            raise ValueError(f"mixture_weight is {self.mixture_weight!r}; a number from 0 to 1 is needed")
        check_length_penalty(self.length_penalty)
        if not isinstance(self.max_history, int) or self.max_history < 1:
            raise ValueError(f"max_history is {self.max_history!r}; a positive integer is needed")
        check_normalize_over(self.normalize_over)

    def encode(
        self, histories: Sequence[Sequence[int] | np.ndarray], table: SidTable, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[Tensor, Tensor]:
        """Encode histories as prompts, in the form that the model was trained on.

        Args:
            histories: B lists of item rows, oldest first; the latest `max_history` of each are shown.
            table: Semantic IDs of the items.
            tokenizer: Tokenizer of the checkpoint.

        Returns:
            (B, T) int64 token ids, padded on the right, and their (B, T) int64 attention mask.

        Raises:
            ValueError: If the table needs codes that the vocabulary lacks, or the instruction gives no tokens.

        Examples:
            `tokenizer`, `table` and `sid_config` belong to a checkpoint; see `SidConfig.load`.

            >>> input_ids, attention_mask = sid_config.encode([[0, 1], [2]], table, tokenizer)
            >>> input_ids.shape == attention_mask.shape
            True
            >>> tokenizer.decode(input_ids[0]).endswith(sid_config.vocabulary.token(2, int(table.codes([1])[0, 2])))
            True
        """
        shown = [history[-self.max_history :] for history in histories]
        encoder = make_history_encoder(table, self.vocabulary)
        ids, mask = encoder.pad_prompts(self.prompt.prefix(tokenizer), shown, tokenizer.pad_token_id)
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def save(
        self,
        directory: str | Path,
        table: SidTable,
        details: JsonObject | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Write llmrec.json and the SID table into a directory; a hash binds the two.

        Args:
            directory: Existing directory, which has the weights or will have them.
            table: Semantic IDs of the items.
            details: Facts about the making of the checkpoint, for the model card.
            tokenizer: Tokenizer that was saved there with the weights. With it, llmrec.json binds all of their files;
                `llmrec.model.bind` does so later.

        Examples:
            `table` and `sid_config` belong to a checkpoint; see `SidConfig.load`.

            >>> import tempfile
            >>> from llmrec import SidConfig
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     sid_config.save(directory, table)
            ...     SidConfig.load(directory)[0] == sid_config
            True
        """
        table.save(directory)
        values: JsonObject = {
            "schema_version": SCHEMA_VERSION,
            "sid_table_sha256": table.sha256,
            "vocabulary": self.vocabulary.to_dict(),
            "prompt": self.prompt.to_dict(),
            "max_history": self.max_history,
            "normalize_over": self.normalize_over,
            **({} if self.vocabulary.items is None else {"mixture_weight": self.mixture_weight}),
            **({"length_penalty": self.length_penalty} if self.length_penalty else {}),
            "details": details or {},
        }
        if tokenizer is not None:
            values[BINDING] = binding(directory, values, self.prompt.prefix(tokenizer))
        write_json(Path(directory) / FILE, values)

    @classmethod
    def load(cls, directory: str | Path) -> tuple[SidConfig, SidTable, JsonObject]:
        """Read and check llmrec.json and its SID table.

        Args:
            directory: Directory of a checkpoint.

        Returns:
            The SidConfig, the table, and facts about the making of the checkpoint.

        Raises:
            ValueError: If a file is absent or unreadable, or the table is not the one the weights were trained on.

        Examples:
            With the model and the tokenizer, it is all that decoding needs. Here `directory` is a checkpoint that
            `llmrec extend` or `llmrec sft` wrote.

            >>> from llmrec import SidConfig
            >>> from llmrec.model.checkpoint import load_model, load_tokenizer
            >>> sid_config, table, _ = SidConfig.load(directory)
            >>> model, tokenizer = load_model(directory), load_tokenizer(directory)
            >>> sid_config.vocabulary.num_levels == table.num_levels
            True
        """
        path = Path(directory) / FILE
        check_is_ours(Path(directory))
        unreadable = f"{path} cannot be read ({{!r}}); run the stage that wrote it again."
        try:
            values = read_json(path)
            if values["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {values['schema_version']}, this llmrec reads {SCHEMA_VERSION}")
            expected, details = values["sid_table_sha256"], values["details"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(unreadable.format(error)) from error
        table = SidTable.load(directory)
        if table.sha256 != expected:
            raise ValueError(
                f"{Path(directory) / sid.FILE} is not the table this checkpoint was trained on (sha256 "
                f"{table.sha256[:12]}…, expected {expected[:12]}…). Restore it, or run `llmrec extend` and "
                "`llmrec sft` on the new table."
            )
        try:
            vocabulary = SidVocabulary.from_dict(values["vocabulary"], table.words)
            options = {name: values[name] for name in ("mixture_weight", "length_penalty") if name in values}
            prompt = Prompt(**values["prompt"])
            sid_config = cls(vocabulary, prompt, values["max_history"], values["normalize_over"], **options)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(unreadable.format(error)) from error
        vocabulary.check_table(table)
        return sid_config, table, details


def load_model(source: str | Path, **options: object) -> PreTrainedModel:
    """Load the causal LM of a path or Hub id, safetensors only, without remote code.

    Raises:
        ValueError: If it cannot be loaded, lacks weights, which transformers would draw at random, or has NaN or
            infinity among them.
    """
    if Path(source).is_dir():
        check_sizes(source)
    options |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with loading(source, "AutoModelForCausalLM"):
        # Any: with output_loading_info it is a pair, which the types of transformers do not say.
        loaded: Any = AutoModelForCausalLM.from_pretrained(str(source), trust_remote_code=False, **options)
    model, info = loaded
    wrong = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if wrong:
        raise ValueError(
            f"'{source}' lacks {len(wrong)} weights of the {type(model).__name__} in its config, or has them in "
            f"another shape, first: {wrong[:3]}; give a causal LM with all of its weights."
        )
    load_head(model, source)
    check_weights(
        model,
        f"in '{source}', read as {model.dtype}",
        "Give weights from before they broke. If the file itself is whole, its values are too large for this type; "
        "read it as float32.",
    )
    return model


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: str | Path) -> None:
    """Write weights (safetensors), configs and tokenizer into a directory.

    The generation defaults are ours: a base model's penalties or top-k would cut constrained beams silently.

    Raises:
        ValueError: If a weight is NaN or infinite; nothing is written then.
    """
    check_weights(
        model,
        f"to be saved in '{directory}', of type {model.dtype}",
        "Nothing was written. Training that diverged leaves such weights (lower learning_rate), and so does a merge or "
        "a conversion to float16, which holds nothing above 65,504 (use bfloat16 or float32).",
    )
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(tokenizer, name) for name in names})
    with saved_apart(model, directory), without_tensor_bars():
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)

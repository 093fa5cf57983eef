"""A checkpoint: an ordinary Hugging Face model directory, the SID table, and llmrec.json that binds them.

`extend` and the stages that train write it, everything that decodes reads it. Nothing in it is executed: weights are
safetensors, the rest is JSON and parquet, and `trust_remote_code` stays off.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from llmrec.model.code_scores import NormalizeOver, check_normalize_over
from llmrec.model.prompts import HistoryEncoder, Prompt
from llmrec.runtime.manifest import MANIFEST, PARTIAL, JsonObject, verify, write_json
from llmrec.sid import table as sid
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary

FILE = "llmrec.json"
SCHEMA_VERSION = 1
TRAINING = ("sft", "alternate", "dpo", "grpo")  # stages that leave the trained LLM, merged


@dataclass(frozen=True)
class SidConfig:
    """What a checkpoint must know beside its weights.

    Args:
        vocabulary: Token ids of the codes.
        prompt: What precedes a history.
        max_history: Items of a history that are shown to the model, the latest ones.
        normalize_over: Over what the score of a code is normalised; see `llmrec.decoding.beam_search`.
    """

    vocabulary: SidVocabulary
    prompt: Prompt
    max_history: int
    normalize_over: NormalizeOver

    def __post_init__(self):
        if not isinstance(self.max_history, int) or self.max_history < 1:
            raise ValueError(f"max_history is {self.max_history!r}; a positive integer is needed")
        check_normalize_over(self.normalize_over)

    def encode(
        self, histories: Sequence[Sequence[int] | np.ndarray], table: SidTable, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[Tensor, Tensor]:
        """Prompts of histories, as the model was trained on them.

        Args:
            histories: B lists of item rows, oldest first; the latest `max_history` of each are shown.
            table: Semantic IDs of the items.
            tokenizer: Tokenizer of the checkpoint.

        Returns:
            (B, T) int64 token ids, padded on the right, and their (B, T) int64 attention mask.

        Raises:
            ValueError: If the table needs codes that the vocabulary lacks, or the instruction gives no tokens.
        """
        shown = [history[-self.max_history :] for history in histories]
        encoder = HistoryEncoder(table, self.vocabulary)
        ids, mask = encoder.pad_prompts(self.prompt.prefix(tokenizer), shown, tokenizer.pad_token_id)
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def save(self, directory: str | Path, table: SidTable, details: JsonObject | None = None) -> None:
        """Write llmrec.json and the table it is bound to."""
        table.save(directory)
        values = {
            "schema_version": SCHEMA_VERSION,
            "sid_table_sha256": table.sha256,
            "vocabulary": self.vocabulary.to_dict(),
            "prompt": self.prompt.to_dict(),
            "max_history": self.max_history,
            "normalize_over": self.normalize_over,
            "details": details or {},
        }
        write_json(Path(directory) / FILE, values)

    @classmethod
    def load(cls, directory: str | Path) -> tuple[SidConfig, SidTable, JsonObject]:
        """Read and check llmrec.json and its SID table.

        Returns:
            The SidConfig, the table, and the details of how the checkpoint was made.

        Raises:
            ValueError: If a file is absent or unreadable, or the table is not the one the weights were trained on.
        """
        path = Path(directory) / FILE
        if not path.is_file():
            raise ValueError(
                f"'{directory}' has no {FILE}: it is not a checkpoint of llmrec. `llmrec extend` makes one."
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {values['schema_version']}, this llmrec reads {SCHEMA_VERSION}")
            vocabulary, prompt = SidVocabulary.from_dict(values["vocabulary"]), Prompt(**values["prompt"])
            sid_config = cls(vocabulary, prompt, values["max_history"], values["normalize_over"])
            expected, details = values["sid_table_sha256"], values["details"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error!r}); run the stage that wrote it again.") from error
        table = SidTable.load(directory)
        if table.sha256 != expected:
            raise ValueError(
                f"{Path(directory) / sid.FILE} is not the table this checkpoint was trained on (sha256 "
                f"{table.sha256[:12]}…, expected {expected[:12]}…). Restore it, or run `llmrec extend` and "
                "`llmrec sft` on the new table."
            )
        vocabulary.check_table(table)
        return sid_config, table, details


def resolve(source: str | Path) -> Path:
    """Local directory of a checkpoint given by path or Hub id, verified where llmrec wrote a manifest.

    Raises:
        ValueError: If it is neither a directory nor reachable on the Hub, or a file was changed.
    """
    path = Path(source)
    if path.is_dir():
        return verify(path, "extend", *TRAINING) if (path / MANIFEST).is_file() else path
    if path.with_name(path.name + PARTIAL).is_dir():
        return verify(path)
    try:
        return Path(snapshot_download(str(source)))
    except Exception as error:
        raise ValueError(
            f"'{source}' is neither a checkpoint directory nor a model that could be fetched from the Hub "
            f"({_first_line(error)})."
        ) from error


def load_tokenizer(source: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    """Tokenizer of a path or Hub id; end of sequence pads where it names no padding token.

    Raises:
        ValueError: If it cannot be loaded.
    """
    tokenizer = _from_pretrained(AutoTokenizer, source, **options)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes up where there are no files
        raise ValueError(f"'{source}' has no tokenizer; save the tokenizer of the model beside its weights.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
    return tokenizer


def load_model(source: str | Path, **options: Any) -> PreTrainedModel:
    """Causal LM of a path or Hub id, safetensors only, without remote code.

    Raises:
        ValueError: If it cannot be loaded, or lacks weights, which transformers would draw at random.
    """
    options |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = _from_pretrained(AutoModelForCausalLM, source, **options)
    wrong = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if wrong:
        raise ValueError(
            f"'{source}' lacks {len(wrong)} weights of the {type(model).__name__} in its config, or has another "
            f"shape of them, first: {wrong[:3]}; give a causal LM with all of its weights."
        )
    return model


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: str | Path) -> None:
    """Write weights (safetensors), configs and tokenizer into a directory.

    The generation defaults are ours: a base model's penalties or top-k would cut constrained beams silently.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(tokenizer, name) for name in names})
    with without_tensor_bars():
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@contextlib.contextmanager
def without_tensor_bars() -> Iterator[None]:
    """Keep transformers' progress bars over the tensors of a file, which take a second, off the terminal."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def _without_load_report() -> Iterator[None]:
    """Keep transformers' table of missing weights off the terminal; `load_model` refuses them in its own words."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _from_pretrained(cls: type, source: str | Path, **options: Any) -> Any:
    with _naming(source, cls), without_tensor_bars(), _without_load_report():
        return cls.from_pretrained(str(source), trust_remote_code=False, **options)


@contextlib.contextmanager
def _naming(source: str | Path, cls: type) -> Iterator[None]:
    """Say which model it was that transformers could not make anything of."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"'{source}' cannot be loaded by {cls.__name__} ({_first_line(error)}). Give a Hub id that this machine "
            "can reach, or the path of a causal LM saved as safetensors."
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

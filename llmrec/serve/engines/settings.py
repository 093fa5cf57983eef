"""Settings: sid.json of a folder that `llmrec export --to vllm` wrote, which says what answers are made of.

    config.json, model.safetensors, tokenizer.json, …   the merged model, as transformers writes it
    sids/trie.safetensors                               the legal SIDs, as `SidTrie.save` writes them
    sids/sid.json                                       tokens of the codes, prompt and scoring
    sids/items.json                                     each item_id and its tokens in a prompt, by item row

vLLM reads every safetensors file beside config.json as weights, so the trie stands in a folder of its own. A processor
in an engine reads trie and sid.json; whoever asks the engine reads items.json as well. All
modules of this package but `export` import only torch, numpy and safetensors, so that they run in the environment of an
engine.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmrec.decoding.trie import file as trie_file
from llmrec.decoding.trie.build import Parts
from llmrec.runtime.manifest import JsonObject, read_json, write_json
from llmrec.sid.normalization import NormalizeOver
from llmrec.sid.tokens.level_words import LevelWords

TRIE, SETTINGS, ITEMS = "sids/trie.safetensors", "sids/sid.json", "sids/items.json"
VERSION = 1


@dataclass(frozen=True)
class Settings:
    """Content of sid.json.

    Attributes:
        table_sha256: Hash of the SID table that the trie is built from.
        eos_token_id: Token that ends an answer.
        level_sizes: Number of codes of each level in the vocabulary; the trie may use fewer.
        starts: Token id of code 0 of each level; None where codes are words, which the trie's file lists.
        normalize_over: Tokens that scores are normalised over; see `llmrec.sid.normalization`.
        length_penalty: Power of its number of codes that the score of a complete SID is divided by.
        prefix: Token ids before every history.
        max_history: Largest number of items of a history, the latest ones.
    """

    table_sha256: str
    eos_token_id: int
    level_sizes: tuple[int, ...]
    starts: tuple[int, ...] | None
    normalize_over: NormalizeOver
    length_penalty: float
    prefix: tuple[int, ...]
    max_history: int

    def save(self, directory: str | Path) -> None:
        """Write sid.json into a folder."""
        write_json(Path(directory) / SETTINGS, {"version": VERSION, **dataclasses.asdict(self)})

    @classmethod
    def load(cls, directory: str | Path) -> Settings:
        """Read sid.json of a folder.

        Raises:
            ValueError: If it is absent, unreadable, or of another version.
        """
        path = Path(directory) / SETTINGS
        if not path.is_file():
            raise ValueError(
                f"'{directory}' has no {SETTINGS}: it is no local folder of `llmrec export --to vllm`. Write one, and "
                "give its path to the engine as the model."
            )
        try:
            values: JsonObject = read_json(path)
            if values.pop("version") != VERSION:
                raise ValueError("it is of another version")
            lists: JsonObject = {name: tuple(each) for name, each in values.items() if isinstance(each, list)}
            return cls(**{**values, **lists})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"'{path}' cannot be read ({error}); run `llmrec export` of this version.") from error


def read_answers(directory: str | Path) -> tuple[Settings, Parts, LevelWords]:
    """Read what a folder says about answers: its settings, the parts of the trie, and the tokens of its codes.

    Raises:
        ValueError: If a file is absent or damaged, or the trie is of another SID table.
    """
    settings = Settings.load(directory)
    parts, table_sha256, words = trie_file.read(Path(directory) / TRIE)
    if table_sha256 != settings.table_sha256:
        raise ValueError(
            f"'{directory}' has {TRIE} of one SID table and {SETTINGS} of another; run `llmrec export` again."
        )
    if words is None:
        blocks = zip(settings.starts or (), settings.level_sizes, strict=True)
        words = LevelWords([np.arange(start, start + size) for start, size in blocks])
    return settings, parts, words

"""What every item tokenizer is: options from its paper, `fit`, `encode`, and two files.

A tokenizer is a dataclass whose fields are its options, so that `llmrec tokenize --method <name>` takes them as flags
and YAML keys, with the bounds and defaults that stand in the method's own file.

Shapes: N items, L levels, K codes of the last level, D dimension of the vectors.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmrec.configs.options import MAX_SEED, Config, option
from llmrec.data.catalog import Catalog
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject, write_json
from llmrec.views import ItemViews

CODEBOOKS, SETTINGS = "codebooks.safetensors", "item_tokenizer.json"


@dataclass(frozen=True)
class Encoded:
    """Codes of a catalogue as the tokenizer gives them; items may still share all codes.

    Attributes:
        codes: (N, L) int64.
        last_level_cost: Item rows (n,) -> (n, K) cost of each code of the last level for them; None for a tokenizer
            that knows of no nearness.
        vectors: Item rows (n,) -> (n, D), what was quantised; None for a tokenizer that quantises nothing.
        reconstruction: Item rows (n,) -> (n, D), what the codes stand for; None likewise.
        place: Item rows (n,) and codes (P, L) that others have -> (n, L) codes that nobody has, under another parent
            where that of an item is full; None for a tokenizer that knows of no other parent.
    """

    codes: np.ndarray
    last_level_cost: Callable[[np.ndarray], Tensor] | None = None
    vectors: Callable[[np.ndarray], Tensor] | None = None
    reconstruction: Callable[[np.ndarray], Tensor] | None = None
    place: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None


@dataclass(kw_only=True)
class ItemTokenizer(Config, ABC):
    """Learns codes from views and, if it wants, from `catalog.train`; never from held-out behaviour."""

    seed: int = option("Seed of everything random.", 0, least=0, most=MAX_SEED)
    device: str = option("Device to compute on: auto, cpu, cuda.", "auto", identity=False)

    method: ClassVar[str]
    needs_views: ClassVar[bool] = True

    @abstractmethod
    def planned_sizes(self, num_items: int) -> list[int] | None:
        """Codes of each level, as far as they are known before `fit`; None where the data decide."""

    @property
    def training_log(self) -> list[list[JsonObject]]:
        """Of each training within `fit`, its readings: step, loss, and what the method adds; empty without training."""
        return []

    @property
    @abstractmethod
    def level_sizes(self) -> list[int]:
        """Codes of each level, after `fit`."""

    @abstractmethod
    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        """Learn the codes.

        Raises:
            ValueError: If the catalogue or the views do not allow it.
        """

    @abstractmethod
    def encode(self, catalog: Catalog, views: ItemViews) -> Encoded:
        """Codes of every item of a catalogue, which may have items that `fit` has not seen.

        Raises:
            ValueError: If the tokenizer is not fitted, or the views are not those it was fitted on.
        """

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], JsonObject]:
        """What `fit` has learned: tensors, and facts for JSON."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        """Take up what `state` gave.

        Raises:
            ValueError: If the tensors do not fit the options and facts.
        """

    def save_pretrained(self, path: str | Path) -> None:
        """Write codebooks.safetensors and item_tokenizer.json."""
        tensors, facts = self.state()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, Path(path) / CODEBOOKS)
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata["identity"]}
        write_json(Path(path) / SETTINGS, {"method": self.method, "options": options, "learned": facts})

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "auto") -> Self:
        """Read a fitted tokenizer from the directory that `save_pretrained` or `llmrec tokenize` wrote.

        Raises:
            ValueError: If a file is absent or unreadable, of another method, or the two do not go together, or the
                device is not here.
        """
        resolve_device(device)
        settings = read_settings(path)
        if settings["method"] != cls.method:
            raise ValueError(
                f"'{path}' holds a tokenizer of method '{settings['method']}', not '{cls.method}'; "
                "`llmrec.tokenizers.load_tokenizer` takes any."
            )
        try:
            tensors = load_file(Path(path) / CODEBOOKS)
            tokenizer = cls(**settings["options"], device=device)
            tokenizer.restore(tensors, settings["learned"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"'{path}' holds no whole tokenizer: {error}. Run `llmrec tokenize` again.") from error
        return tokenizer


def read_settings(path: str | Path) -> JsonObject:
    """Content of item_tokenizer.json: method, options, learned.

    Raises:
        ValueError: If one of the tokenizer's two files is absent, or this one is not of this form.
    """
    for name in (SETTINGS, CODEBOOKS):
        if not (Path(path) / name).is_file():
            raise ValueError(f"'{path}' has no {name}; `llmrec tokenize` writes it.")
    try:
        settings = json.loads((Path(path) / SETTINGS).read_text(encoding="utf-8"))
        return {name: settings[name] for name in ("method", "options", "learned")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{Path(path) / SETTINGS} is not of this version; run `llmrec tokenize` again.") from error

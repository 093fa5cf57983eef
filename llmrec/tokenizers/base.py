"""The contract of an item tokenizer: options from its paper, `fit`, `encode`, and two files.

A tokenizer is a dataclass. Its fields are the options of the method, with the defaults and bounds that stand in the
method's own file; `llmrec tokenize --method <name>` takes them as flags and as the block `options` of a YAML file. What
`fit` learns is a part of its own, the coder, which gives items their codes and says what is to be saved.

Shapes: N items, L levels, K codes of the last level, D dimension of the vectors.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmrec.configs.options import MAX_SEED, Config, option
from llmrec.data.catalog import Catalog
from llmrec.runtime.device import resolve_device
from llmrec.runtime.finite import check_finite
from llmrec.runtime.manifest import JsonObject, write_json
from llmrec.sid.pieces.pieces import Pieces
from llmrec.sid.tokens.level_words import LevelWords
from llmrec.views import ItemViews

CODEBOOKS, SETTINGS = "codebooks.safetensors", "item_tokenizer.json"
ALIAS = "alias_"  # and its number: prefix of the tensors of a further alias


@dataclass(frozen=True)
class Encoded:
    """Codes of a catalogue as the tokenizer gives them; items may still share all codes.

    Attributes:
        codes: (N, L) int64.
        last_level_cost: Item rows (n,) -> (n, K) cost of each code of the last level for them; None for a tokenizer
            that has no distances.
        vectors: Item rows (n,) -> (n, D) vectors that were quantised; None for a tokenizer that quantises nothing.
        reconstruction: Item rows (n,) -> (n, D) vectors that the codes stand for; None likewise.
        place: Item rows (n,) and codes (P, L) that are taken -> (n, L) free codes, under another parent where that of
            an item is full; None for a tokenizer that cannot choose another parent.
        pieces: Pieces that the codes of all levels stand for; None where each level has codes of its own.
        words: Tokens of an LLM that the codes stand for; None for semantic IDs.
    """

    codes: np.ndarray
    last_level_cost: Callable[[np.ndarray], Tensor] | None = None
    vectors: Callable[[np.ndarray], Tensor] | None = None
    reconstruction: Callable[[np.ndarray], Tensor] | None = None
    place: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    pieces: Pieces | None = None
    words: LevelWords | None = None


class Coder(Protocol):
    """The part of a tokenizer that `fit` makes: it gives items their codes, and is what is saved."""

    @property
    def level_sizes(self) -> list[int]:
        """Number of codes of each level."""

    @property
    def view_names(self) -> list[str]:
        """Views that `encode` reads, in the order of `fit`; empty for a method that reads none."""

    def encode(self, catalog: Catalog, views: ItemViews) -> Encoded:
        """Give every item of a catalogue its codes; see `ItemTokenizer.encode`."""

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of codebooks.safetensors."""

    def facts(self) -> JsonObject:
        """Content of `learned` in item_tokenizer.json."""


@dataclass(kw_only=True)
class ItemTokenizer(Config, ABC):
    """Base of every method: learns codes from views and from `catalog.train`, never from held-out interactions.

    A method defines `planned_sizes`, `fit`, which sets `coder`, and `restore`, which sets it from files.

    Attributes:
        coder: What `fit` has learned; None before.
        other_coders: Coders of further aliases, for the methods that give an item several.
        training_log: One list per training within `fit`: readings of step, loss and the metrics of the method.
        counts: Numbers of `fit` that report and manifest hold beside those of every method.
    """

    seed: int = option("Seed of everything random.", 0, least=0, most=MAX_SEED)
    device: str = option("Device to compute on: auto, cpu, cuda.", "auto", identity=False)

    method: ClassVar[str]
    needs_views: ClassVar[bool] = True
    tells_apart: ClassVar[bool] = False  # the method itself gives no two items the same codes
    reads_all_items: ClassVar[bool] = False  # `fit` holds the vectors of all items, however many they are
    shares_codes: ClassVar[bool] = True  # a code means the same in all aliases
    renamed: ClassVar[dict[str, str]] = {}  # option of an earlier version -> its name now, or "removed: why"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.coder: Coder | None = None
        self.other_coders: list[Coder] = []
        self.training_log: list[list[JsonObject]] = []
        self.counts: JsonObject = {}

    @abstractmethod
    def planned_sizes(self, num_items: int) -> list[int] | None:
        """Compute the number of codes of each level before `fit`; None where the data decide."""

    @abstractmethod
    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        """Learn the codes.

        Args:
            catalog: Items, and training interactions for the methods that read them.
            views: Vectors of the items; one row per item of the catalogue.

        Returns:
            The tokenizer itself.

        Raises:
            ValueError: If the catalogue or the views do not allow it.
        """

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        """Set `coder` to what its `tensors` and `facts` have saved.

        Raises:
            ValueError: If the tensors do not fit the options and facts.
        """

    @property
    def fitted(self) -> Coder:
        """The coder that `fit` has made.

        Raises:
            ValueError: Before `fit`.
        """
        if self.coder is None:
            raise ValueError("This tokenizer has no codes yet; fit it first.")
        return self.coder

    @property
    def num_aliases(self) -> int:
        """Number of semantic IDs that `fit` gives each item."""
        return 1

    @property
    def holds_all_items(self) -> bool:
        """True if `fit` holds the vectors of all items with these options, and not a sample of many."""
        return self.reads_all_items

    @property
    def level_sizes(self) -> list[int]:
        """Number of codes of each level in one alias, after `fit`."""
        return self.fitted.level_sizes

    @property
    def view_names(self) -> list[str]:
        """Views that `encode` reads, after `fit`."""
        return self.fitted.view_names

    def encode(self, catalog: Catalog, views: ItemViews) -> Encoded:
        """Give every item of a catalogue its codes; the catalogue may have items that `fit` has not seen.

        Args:
            catalog: Items.
            views: The views of `fit`, by the same encoders, with one row per item of this catalogue.

        Returns:
            (N, L) codes, and costs and vectors of the items where the method has them.

        Raises:
            ValueError: If the tokenizer is not fitted, or the views are not those it was fitted on.
        """
        return self.fitted.encode(catalog, views)

    def encode_aliases(self, catalog: Catalog, views: ItemViews) -> list[Encoded]:
        """Give every item of a catalogue its codes in each alias; those of `encode` come first.

        Args:
            catalog: Items.
            views: See `encode`.

        Raises:
            ValueError: As `encode` does.
        """
        return [coder.encode(catalog, views) for coder in (self.fitted, *self.other_coders)]

    def save_pretrained(self, path: str | Path) -> None:
        """Write codebooks.safetensors and item_tokenizer.json into a directory.

        Raises:
            ValueError: Before `fit`, or if a codebook or weight is not finite.
        """
        tensors, facts = self.fitted.tensors(), self.fitted.facts()
        for alias, coder in enumerate(self.other_coders, 1):
            tensors |= {f"{ALIAS}{alias}.{name}": tensor for name, tensor in coder.tensors().items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        check_finite(tensors, f"{self.method} has diverged; lower its learning rate, or check the views.")
        save_file(tensors, Path(path) / CODEBOOKS)
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata["identity"]}
        write_json(Path(path) / SETTINGS, {"method": self.method, "options": options, "learned": facts})

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "auto") -> Self:
        """Read a fitted tokenizer from the directory that `save_pretrained` or `llmrec tokenize` wrote.

        Args:
            path: Directory.
            device: Device that the tokenizer computes on: auto, cpu, cuda.

        Returns:
            A tokenizer that encodes as the saved one did.

        Raises:
            ValueError: If a file is absent or unreadable, of another method, or the two do not go together, or the
                device does not exist.
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
            check_finite(tensors, "no item can be encoded with them")
            tokenizer = cls(**cls.current_options(settings["options"]), device=device)
            for alias in range(1, tokenizer.num_aliases):
                prefix = f"{ALIAS}{alias}."
                own = {name.removeprefix(prefix): part for name, part in tensors.items() if name.startswith(prefix)}
                tokenizer.restore(own, settings["learned"])
                tokenizer.other_coders.append(tokenizer.fitted)
            first = {name: part for name, part in tensors.items() if not name.startswith(ALIAS)}
            tokenizer.restore(first, settings["learned"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"'{path}' holds no whole tokenizer: {error}. Run `llmrec tokenize` again.") from error
        return tokenizer

    @classmethod
    def current_options(cls, saved: JsonObject) -> JsonObject:
        """Translate options as an earlier version saved them: `renamed` says what they are called now.

        A removed option is left out: those that there were act in `fit` alone, and the codes are saved.
        """
        names = {name: cls.renamed.get(name, name) for name in saved}
        return {new: saved[name] for name, new in names.items() if not new.startswith("removed:")}


def read_settings(path: str | Path) -> JsonObject:
    """Read item_tokenizer.json: method, options, learned.

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

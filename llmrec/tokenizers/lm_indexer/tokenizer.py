"""LMIndexer: codes that are learned from the tokens of a text, level by level, rather than from a finished vector.

A frozen text encoder reads an item's text. Of each level a small decoder attends to its token states and to the codes
of the levels before, and its state is quantised. Codes have to help to find hidden tokens of the text, and to tell an
item from those that share its codes so far. For each level in turn:

    1. decoder and reconstructor train without codes, on the state itself;
    2. k-means on the states starts the codebook;
    3. all three train, with codes drawn by a Gumbel-softmax whose temperature falls;
    4. the level is finished, and its codes are given to the next one, which starts from its decoder.

Source: LMIndexer (arXiv:2310.07815) and its released code, whose rates, masks and sizes are the defaults. Departures:
the encoder is small and frozen, where T5-base trains whole; a level has a decoder of its own, so finished levels stay
as they are, and the paper's commitment (cross-entropy of earlier codes, against forgetting) has nothing to do. The
commitment here draws states to their codes. Distances choose the code, where dot products favour long codes; noise is
drawn, which the code leaves out of its Gumbel-softmax; negatives are the items of one prefix in the batch, where it
draws four.

Shapes: N items, n of some, l levels done, L levels, K codes of a level, E latent dimension.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from llmrec.configs.options import option
from llmrec.data.catalog import Catalog
from llmrec.runtime.console import say
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject
from llmrec.tokenizers.base import Encoded, ItemTokenizer
from llmrec.tokenizers.lm_indexer.network import HEADS, LevelIndexer, Reconstructor
from llmrec.tokenizers.lm_indexer.objective import LevelObjective
from llmrec.tokenizers.lm_indexer.token_states import TextSource, TokenStates
from llmrec.tokenizers.shared import options
from llmrec.tokenizers.shared.kmeans import kmeans, nearest, squared_distances
from llmrec.tokenizers.shared.training_loop import train
from llmrec.tokenizers.shared.vectors import require_distinct, require_rows
from llmrec.views import ItemViews

BLOCK = 1024  # items that a decoder reads together outside of training
START_ITERATIONS = 25  # of k-means


class TextCoder:
    """Finished levels, and the text that they read.

    Args:
        source: Encoder and template.
        max_tokens: Largest number of tokens of a text.
        device: auto, cpu, cuda.
    """

    def __init__(self, source: TextSource, max_tokens: int, device: str):
        self.source, self.max_tokens, self.device = source, max_tokens, device
        self.levels: list[LevelIndexer] = []
        self._read: tuple[Catalog, TokenStates] | None = None

    @property
    def level_sizes(self) -> list[int]:
        """Number of codes of each level."""
        return [len(level.book.codes) for level in self.levels]

    @property
    def view_names(self) -> list[str]:
        """The text view, whose provenance says what to read."""
        return [self.source.view]

    def texts(self, catalog: Catalog) -> TokenStates:
        """Read the texts of a catalogue; those of the last one are kept, as `fit` and `encode` follow each other."""
        if self._read is None or self._read[0] is not catalog:
            self._read = (catalog, TokenStates.read(catalog, self.source, self.max_tokens, self.device))
        return self._read[1]

    @torch.no_grad()
    def read(self, texts: TokenStates, rows_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give items the codes of all finished levels.

        Args:
            texts: Of a catalogue.
            rows_n: (n,) item rows.

        Returns:
            (n, l) int64 codes, (n, l, E) vectors of these codes, and (n, l, E) the states that they were chosen by.
        """
        codes, vectors, states = [], [], []
        for part in rows_n.split(BLOCK):
            batch, found = texts.of(part), self._nothing(part)
            of_codes, of_states = [], []
            for level in self.levels:
                of_states.append(level.states(batch, found)[0])
                of_codes.append(nearest(of_states[-1], level.book.codes)[0])
                found = torch.cat([found, level.book.codes[of_codes[-1]][:, None]], dim=1)
            vectors.append(found)
            codes.append(torch.stack(of_codes, 1) if of_codes else part.new_zeros(len(part), 0))
            states.append(torch.stack(of_states, 1) if of_states else found)
        return torch.cat(codes), torch.cat(vectors), torch.cat(states)

    def _nothing(self, rows_n: Tensor) -> Tensor:
        """(n, 0, E) codes of no level."""
        dim = self.levels[0].queries.shape[1] if self.levels else 0
        return torch.zeros(len(rows_n), 0, dim, device=rows_n.device)

    def encode(self, catalog: Catalog, views: ItemViews) -> Encoded:
        """Give every item of a catalogue its codes; see `ItemTokenizer.encode`."""
        if TextSource.of(views) != self.source:
            raise ValueError(
                f"This tokenizer was fitted on {self.source} and was given {TextSource.of(views)}; fit it first, or "
                "pass the view of the same encoder and template."
            )
        require_rows(catalog, views)
        texts, where = self.texts(catalog), resolve_device(self.device)
        codes_NL, vectors_NLE, states_NLE = self.read(texts, torch.arange(catalog.num_items, device=where))

        def last_level_cost(rows: np.ndarray) -> Tensor:
            chosen = torch.as_tensor(rows, device=where)
            level = self.levels[-1]
            with torch.no_grad():
                states_nE = level.states(texts.of(chosen), vectors_NLE[chosen, :-1])[0]
            return squared_distances(states_nE, level.book.codes).cpu()

        def states(rows: np.ndarray) -> Tensor:
            return states_NLE[torch.as_tensor(rows, device=where)].flatten(1).cpu()

        def of_codes(rows: np.ndarray) -> Tensor:
            return vectors_NLE[torch.as_tensor(rows, device=where)].flatten(1).cpu()

        return Encoded(codes_NL.cpu().numpy(), last_level_cost, states, of_codes)

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, to be saved."""
        return {f"{i}.{name}": part for i, level in enumerate(self.levels) for name, part in level.state_dict().items()}

    def facts(self) -> JsonObject:
        """Further facts to be saved."""
        return {"source": self.source._asdict(), "state_dim": self.levels[0].project.in_features}


@dataclass(kw_only=True)
class LMIndexer(ItemTokenizer):
    """Codes from the tokens of a text."""

    method: ClassVar[str] = "lm_indexer"

    # Sizes, rate, masks and epochs are those of the released scripts, batch 128 as 8 x 16; the others are ours.
    num_levels: int = options.num_levels(3)
    codebook_size: int = options.codebook_size(512)
    learning_rate: float = options.learning_rate(1e-3)
    weight_decay: float = options.weight_decay(0.0)
    batch_size: int = options.batch_size(128)
    max_epochs: int = options.max_epochs(30)
    patience: int = options.patience(10)
    warm_up_epochs: int = option("Number of passes over the items that a level trains before it has codes.", 5, least=0)
    latent_dim: int = option(f"Dimension of states and codes; a multiple of {HEADS}.", 256, least=HEADS)
    max_tokens: int = option("Largest number of tokens of a text.", 128, least=4)
    masking: float = option("Share of a text's tokens that the codes help to find.", 0.5, above=0, most=1)
    commitment: float = options.commitment(0.25)
    contrast: float = option(
        "Weight of the loss that tells an item from those with the same codes so far; 0 leaves it out.", 1.0, least=0
    )
    contrast_temperature: float = option("Temperature that divides the cosines of the contrast.", 0.1, above=0)

    def problems(self) -> list[str]:
        rest = self.latent_dim % HEADS
        return [f"latent_dim is {self.latent_dim}; its {HEADS} heads need a multiple of {HEADS}"] if rest else []

    def planned_sizes(self, num_items: int) -> list[int]:
        return [self.codebook_size] * self.num_levels

    def fit(self, catalog: Catalog, views: ItemViews) -> Self:
        require_rows(catalog, views)
        coder = TextCoder(TextSource.of(views), self.max_tokens, self.device)
        texts, where = coder.texts(catalog), resolve_device(self.device)
        rows_N = texts.has_text.nonzero().squeeze(1)
        with torch.random.fork_rng([where] if where.type == "cuda" else []):
            torch.manual_seed(self.seed)
            self.training_log = []
            for level in range(self.num_levels):
                self.training_log.append(self._fit_level(level, coder, texts, rows_N))
        self.coder = coder
        return self

    def _fit_level(self, level: int, coder: TextCoder, texts: TokenStates, rows_N: Tensor) -> list[JsonObject]:
        """Train a level, and add it to the finished ones.

        Returns:
            Its log.
        """
        device, dim = rows_N.device, self.latent_dim
        indexer = LevelIndexer(level, texts.states.shape[1], dim, self.codebook_size).to(device)
        if coder.levels:
            indexer.continue_from(coder.levels[-1])
        codes_Nl, earlier_NlE, _ = coder.read(texts, rows_N)
        earlier_NlE = earlier_NlE if coder.levels else earlier_NlE.new_zeros(len(rows_N), 0, dim)
        prefixes_N = codes_Nl.unique(dim=0, return_inverse=True)[1] if level else torch.zeros_like(rows_N)
        reconstructor = Reconstructor(texts.word_vectors, dim, self.max_tokens).to(device)
        objective = LevelObjective(
            texts, rows_N, earlier_NlE, prefixes_N, indexer, reconstructor, self.masking, self.commitment,
            self.contrast, self.contrast_temperature, self.seed,
        )  # fmt: skip
        train(objective, len(rows_N), device, dataclasses.replace(self, max_epochs=self.warm_up_epochs))
        with torch.no_grad():
            parts = zip(rows_N.split(BLOCK), earlier_NlE.split(BLOCK), strict=True)
            states_NE = torch.cat([indexer.states(texts.of(rows), earlier)[0] for rows, earlier in parts])
            require_distinct(states_NE.cpu(), self.codebook_size)
            generator = torch.Generator().manual_seed(self.seed)
            indexer.book.codes.copy_(kmeans(states_NE, self.codebook_size, START_ITERATIONS, generator))
        objective.start_quantizing()
        result = train(objective, len(rows_N), device, self)
        coder.levels.append(indexer.requires_grad_(False).eval())
        used = coder.read(texts, rows_N)[0][:, -1].unique().numel()
        say(f"{self.method}: level {level}, {result}, uses {used} of {self.codebook_size} codes")
        return result.log

    def restore(self, tensors: dict[str, Tensor], facts: JsonObject) -> None:
        coder = TextCoder(TextSource(**facts["source"]), self.max_tokens, self.device)
        coder.levels = restored_levels(tensors, self.planned_sizes(0), facts["state_dim"], self.latent_dim)
        coder.levels = [level.to(resolve_device(self.device)) for level in coder.levels]
        self.coder = coder


def restored_levels(
    tensors: Mapping[str, Tensor], level_sizes: Sequence[int], state_dim: int, dim: int
) -> list[LevelIndexer]:
    """Finished levels that `TextCoder.tensors` has saved.

    Raises:
        ValueError: If the tensors do not fit the sizes.
    """
    levels = []
    for number, size in enumerate(level_sizes):
        level, prefix = LevelIndexer(number, state_dim, dim, size), f"{number}."
        own = {name.removeprefix(prefix): part for name, part in tensors.items() if name.startswith(prefix)}
        try:
            level.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"level {number} does not fit the options: {error}") from error
        levels.append(level.requires_grad_(False).eval())
    return levels

"""Content passes: each epoch begins with passes over the items' texts, which train a second row of every item.

    content pass        "Item <row of its content> is described like this:" -> its text, a softmax over words
    collaborative pass  history -> next item, a softmax over items, as without content

`llmrec.training.sft.mutual` holds both rows of an item together. A set of rows that a step does not read keeps its
place, as with an optimiser for each set.

Source: CLLM4Rec (arXiv:2311.01343, sections 4.3 and 4.4). Departures: users have no tokens; the text is that of the
item, as few datasets have reviews; content passes open the first epoch, instead of ten epochs of their own; the order
of a history is kept. `train` sid_tokens freezes the trunk as the paper does; lora and full train it in both kinds of
pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from llmrec.configs import SftConfig
from llmrec.configs.tasks import SLOT
from llmrec.data import columns
from llmrec.data.catalog import Catalog
from llmrec.model.backbone import causal_lm
from llmrec.model.heads.content_rows import content_rows, content_start
from llmrec.model.history.encoder import HistoryEncoder
from llmrec.model.trained_rows import trained_block
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.sft.examples import BLANK
from llmrec.training.sft.mutual import MutualTerm
from llmrec.training.tasks.cases import Texts
from llmrec.training.tasks.examples import TEXT_TOKENS, encode_template
from llmrec.training.trainer import SidTrainer

CONTENT = "content"  # in the place of a task's name
TEMPLATE = f"Item {SLOT} is described like this:"


def item_texts(catalog: Catalog) -> list[str]:
    """Text of each item: the column `text`, which begins with the title, or else the title."""
    if columns.TEXT not in catalog.items.column_names:
        return list(catalog.titles)
    pairs = zip(catalog.items[columns.TEXT].to_pylist(), catalog.titles, strict=True)
    return [text or title for text, title in pairs]


@dataclass(frozen=True)
class ContentExamples:
    """Prompts that read a content row, and the item's text.

    Args:
        rows: (n,) item rows of the items that have a text.
        texts: Token ids of the text of each of them.
        template: Token ids before and after the item in a prompt.
        shift: Difference between the id of an item's content row and its token.
        num_draws: Number of examples in an epoch.
    """

    rows: np.ndarray
    texts: list[np.ndarray]
    template: tuple[np.ndarray, np.ndarray]
    shift: int
    num_draws: int

    @classmethod
    def of(
        cls, config: SftConfig, catalog: Catalog, tokenizer: PreTrainedTokenizerBase, vocabulary: SidVocabulary
    ) -> ContentExamples:
        """Tokenize the texts; a word that the tokenizer does not know is left out.

        Raises:
            ValueError: If the tokenizer knows no word of any text.
        """
        texts = Texts.encode(item_texts(catalog), tokenizer, TEXT_TOKENS)
        rows = np.flatnonzero(texts.is_known)
        if len(rows) == 0:
            raise ValueError(
                f"content_passes is {config.content_passes}, but no item of '{config.catalog}' has a text with a word "
                "that the tokenizer knows. Leave content_passes out, or give the items titles."
            )
        return cls(
            rows,
            [_learned(texts, row, tokenizer) for row in rows.tolist()],
            encode_template(TEMPLATE, tokenizer, config.chat_template),
            content_start(vocabulary) - vocabulary.starts[0],
            # In whole batches, so that no step is of both kinds: some items come once more.
            -(-config.content_passes * len(rows) // config.batch_size) * config.batch_size,
        )

    def draw(self, seed: int, epoch: int, index: int, encoder: HistoryEncoder) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of a prompt and of its answer; see `TaskExamples.draw`."""
        place = index % len(self.rows)
        own = encoder.encode_answer(self.rows[[place]]) + self.shift
        return np.concatenate([self.template[0], own, self.template[1]]), self.texts[place]

    def add_to(self, examples: Dataset) -> Dataset:
        """Put the examples behind those of histories and tasks."""
        values = {name: [BLANK.get(name)] * self.num_draws for name in examples.column_names}
        values |= {"task": [CONTENT] * self.num_draws, "index": list(range(self.num_draws))}
        return concatenate_datasets([examples, Dataset.from_dict(values, features=examples.features)])

    def longest(self, vocabulary: SidVocabulary) -> int:
        """Number of tokens that no example exceeds."""
        return sum(map(len, self.template)) + vocabulary.tokens_per_item + max(map(len, self.texts))


def _learned(texts: Texts, row: int, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Known tokens of a text, and its end unless it was cut."""
    ids = texts.tokens[row]
    known = ids if tokenizer.unk_token_id is None else ids[ids != tokenizer.unk_token_id]
    return known if texts.is_cut[row] else np.append(known, tokenizer.eos_token_id)


class ContentFirst(Sampler[int]):
    """Order of an epoch: content examples in a random order, then all others as they are shuffled without content.

    Args:
        num_others: Number of examples before the content examples.
        num_content: Number of content examples.
    """

    def __init__(self, num_others: int, num_content: int):
        self.num_others = num_others
        self.parts = [SeedableRandomSampler(range(size)) for size in (num_content, num_others) if size]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[int]:
        content, *others = self.parts
        yield from (self.num_others + place for place in content)
        for part in others:
            yield from part

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from which the orders follow."""
        for part in self.parts:
            part.set_epoch(epoch)


class ContentTrainer(SidTrainer):
    """Trainer whose epochs begin with the content examples.

    Args:
        mutual: Term that holds the two rows of each item together.
        options: Arguments of `SidTrainer`.
    """

    def __init__(self, mutual: MutualTerm, **options: Any):  # of as many types as SidTrainer has arguments
        super().__init__(**options)
        self.add_callback(ContentSteps(mutual))

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> ContentFirst:
        tasks: Sequence[str] = self.train_dataset["task"]
        first = list(tasks).index(CONTENT)
        return ContentFirst(first, len(tasks) - first)


class ContentSteps(TrainerCallback):
    """Tells the mutual term which epoch it is, and lets the rows rest that a step does not read.

    Args:
        mutual: Term that holds the two rows of each item together.
    """

    def __init__(self, mutual: MutualTerm):
        self.mutual = mutual

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Leave content rows free in the first epoch, in which the others know nothing yet."""
        self.mutual.holds_content = int(state.epoch or 0) > 0

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: object,
    ) -> None:
        """Take away a gradient of zeros: the optimiser would move the rows by its momentum, and passes over None."""
        assert model is not None, "the Trainer gives it"
        base = causal_lm(model)
        block = trained_block(base.get_input_embeddings())
        for rows in (content_rows(base), *([] if block is None else [block[1]])):
            if rows.grad is not None and not rows.grad.any():
                rows.grad = None

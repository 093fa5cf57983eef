"""The tokenizer's side of training in turns with an LLM: its passes, what each side asks of the other, and its state.

Every `cycle_steps` optimiser steps of the LLM the tokenizer has a pass: it is trained on the targets of training
sequences while the LLM stands still in evaluation mode, under the semantic IDs of before. Then all items are encoded
anew, token rows follow their codes (swap_table.py), and collator and validation take the new table. Before
`align_after` nothing is aligned; after `freeze_after`, or once items hardly change their semantic IDs, the tokenizer is
frozen and cross-entropy alone is trained on.

What the LLM makes of a history does not change within a pass, so it is computed once for each sequence, right before
the step that needs it; kept for all, it would take a vector for every training interaction.

Source: ETEGRec (arXiv:2409.05546), section 2.4. Departures: cycles count steps, as epochs of an LLM are few;
one optimiser and one schedule go on through the last part, where the paper loads the best pair and starts new ones; the
turns end at a share of the steps or by a small churn, where the paper waits for the validation metric.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, get_scheduler

from llmrec.configs import AlternateConfig
from llmrec.model.backbone import causal_lm, run_backbone
from llmrec.model.prompts import HistoryEncoder
from llmrec.runtime.console import say
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.tokenizers.etegrec import EndToEnd
from llmrec.training.alternate.alignment import Adapters, Losses, Vectors, losses_of
from llmrec.training.alternate.pools import Pools
from llmrec.training.alternate.retokenize import match_codes, retokenize, signs
from llmrec.training.alternate.schedule import Schedule
from llmrec.training.alternate.swap_table import swap_table
from llmrec.training.checkpoints import corruption, numbered
from llmrec.training.validation import evaluation_mode

if TYPE_CHECKING:
    from llmrec.training.alternate.trainer import AlternateTrainer

FILE = "alternation.pt"
SETTLED, SETTLED_CYCLES = 0.01, 3  # a churn below this, so many cycles in a row, freezes the tokenizer


class Alternation(TrainerCallback):
    """The tokenizer's side of a run, and its state.

    Args:
        config: Of the stage.
        plan: Of the run.
        tokenizer: Over the vectors of all items, on the device of the LLM.
        adapters: On the same device.
        table: Semantic IDs that the LLM starts with.
        vocabulary: Their tokens.
    """

    def __init__(
        self,
        config: AlternateConfig,
        plan: Schedule,
        tokenizer: EndToEnd,
        adapters: Adapters,
        table: SidTable,
        vocabulary: SidVocabulary,
    ):
        self.config, self.plan, self.tokenizer, self.adapters = config, plan, tokenizer, adapters
        self.table, self.vocabulary, self.is_joint = table, vocabulary, config.optimization == "joint"
        self.optimizer = torch.optim.AdamW(
            tokenizer.parameters(), config.tokenizer_learning_rate, weight_decay=config.tokenizer_weight_decay
        )
        own_steps = plan.frozen_after if self.is_joint else plan.passes * plan.pass_steps
        warmup = round(config.warmup_steps * own_steps / plan.steps)
        self.scheduler = get_scheduler(config.scheduler, self.optimizer, warmup, own_steps)
        self.books = self._books()
        self.cycle, self.settled, self.is_frozen = 0, 0, not plan.passes
        self.seen: list[Losses] = []
        self.trainer: AlternateTrainer | None = None  # whose model and optimiser follow the semantic IDs
        self._let_tokenizer_train(self.is_joint and not self.is_frozen)

    def aligns_at(self, step: int) -> bool:
        """Whether alignment losses are on at an optimiser step."""
        return self.config.aligns and not self.is_frozen and self.plan.aligned_after < step <= self.plan.frozen_after

    def trains_jointly_at(self, step: int) -> bool:
        """Whether the tokenizer is trained by an optimiser step of the LLM."""
        return self.is_joint and not self.is_frozen and step <= self.plan.frozen_after

    def wants_pools_at(self, step: int) -> bool:
        return self.aligns_at(step) or self.trains_jointly_at(step)

    def loss(self, states_RTH: Tensor, pools: dict[str, Tensor]) -> Tensor:
        """What is added to the cross-entropy of a batch that has pools."""
        step, pools = self.trainer.state.global_step + 1, Pools(**pools)
        vectors = self.adapters(states_RTH, pools) if self.aligns_at(step) else None
        with torch.autocast(states_RTH.device.type, enabled=False):
            losses = losses_of(self.config, self.tokenizer, pools.targets, vectors)
        self.seen.append(Losses(*(loss.detach() for loss in losses)))
        own = losses.own if self.trains_jointly_at(step) else 0.0
        return own + self._weighted(losses)

    def _weighted(self, losses: Losses) -> Tensor:
        return self.config.sia_weight * losses.sia + self.config.psa_weight * losses.psa

    def read_seen(self) -> dict[str, float]:
        """Mean alignment losses of the steps since the last reading."""
        found, self.seen = _means(self.seen), []
        return {name: found[name] for name in ("sia", "psa") if name in found}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert state.max_steps == self.plan.steps, "transformers counts the steps of a run in another way"

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._clip(self.adapters)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trains_jointly_at(state.global_step + 1):
            self._step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.adapters.zero_grad()

    def between_steps(self, step: int) -> None:
        """Give the tokenizer its turn, if it is its turn.

        Args:
            step: The last optimiser step; it was judged and saved with the semantic IDs that it was trained on.
        """
        if self.is_frozen or not self.plan.ends_cycle(step):
            return
        started = time.monotonic()
        passed = {} if self.is_joint else self.train_tokenizer(self.aligns_at(step))
        churn = self.retokenize(step)
        self.settled = self.settled + 1 if churn < SETTLED and (self.aligns_at(step) or not self.config.aligns) else 0
        self.is_frozen = self.settled == SETTLED_CYCLES or self.cycle == self.plan.passes
        if self.is_frozen:
            self._let_tokenizer_train(False)
        found = signs(self.table.codes(np.arange(self.table.num_items))[:, :-1])
        self.trainer.log({"cycle": self.cycle, "churn": churn, **passed, **found})
        frozen = ", and the tokenizer is frozen from here on" if self.is_frozen else ""
        say(
            f"alternate: step {step} of {self.plan.steps}, cycle {self.cycle}: {churn:.2%} of the items have another "
            f"semantic ID, {found['unique_per_item']:.4f} tuples per item{frozen} ({time.monotonic() - started:.1f} s)"
        )

    def train_tokenizer(self, aligned: bool) -> dict[str, float]:
        """Train on the targets of sequences while the LLM stands still.

        Args:
            aligned: Whether to what the LLM makes of their histories, too.

        Returns:
            Mean losses of the pass.
        """
        self._let_tokenizer_train(True)
        seen = []
        with evaluation_mode(self.trainer.model):
            for examples in self.draw():
                targets, vectors = self.read(examples, aligned)
                losses = losses_of(self.config, self.tokenizer, targets, vectors)
                if len(targets):
                    (losses.own + self._weighted(losses)).backward()
                self._step()
                seen.append(Losses(*(loss.detach() for loss in losses)))
        self._let_tokenizer_train(False)
        return {f"pass_{name}": value for name, value in _means(seen).items()}

    def draw(self) -> Iterator[list[JsonObject]]:
        """Batches of a pass: sequences in an order of its own, again and again until it has its steps."""
        examples, size = self.trainer.train_dataset, self.config.batch_size
        rows = np.flatnonzero([len(each) > 0 for each in examples["rows"]])  # without those of `fill_last_batch`
        rng, order = np.random.default_rng([self.config.seed, self.cycle]), rows[:0]
        for _ in range(self.plan.pass_steps):
            order = order if len(order) else rng.permutation(rows)
            chosen, order = order[:size], order[size:]
            yield examples.select(chosen).to_list()

    @torch.no_grad()
    def read(self, examples: list[JsonObject], aligned: bool) -> tuple[Tensor, Vectors | None]:
        """(U,) targets of examples, and what the LLM makes of the histories before them."""
        batch, device = self.trainer.data_collator.batch(examples, pooling=True), self.tokenizer.points.device
        pools = Pools(*(places.to(device) for places in batch.pop("pools").values()))
        if not aligned or not len(pools.targets):
            return pools.targets, None
        inputs = {name: part.to(device) for name, part in batch.items() if name != "labels"}
        with self.trainer.accelerator.autocast():
            states = run_backbone(causal_lm(self.trainer.model), **inputs, use_cache=False).last_hidden_state
        return pools.targets, self.adapters(states, pools)

    def retokenize(self, step: int) -> float:
        """Encode all items, and let rows, optimiser, collator and validation follow; how many items have changed.

        Raises:
            ValueError: If the tokenizer has collapsed, with the last checkpoint from before.
        """
        books = self._books()
        try:
            if not all(book.isfinite().all() for book in books):
                raise ValueError("the tokenizer has diverged: a codebook is not finite.")
            matches = [match_codes(old, new) for old, new in zip(self.books, books, strict=True)]
            made = retokenize(self.table, self.tokenizer.codes().numpy(), matches)
        except ValueError as error:
            raise ValueError(f"Step {step}: {error} {self._way_back()}") from error
        self.cycle, self.books = self.cycle + 1, books
        seed = self.config.seed + self.cycle  # of rows whose code is new
        encoder, _ = swap_table(
            self.trainer.model, self.trainer.optimizer, self.vocabulary, made.table, made.old_codes, seed
        )
        self._use(made.table, encoder)
        return made.churn

    def _way_back(self) -> str:
        directory = Path(self.trainer.args.output_dir)
        whole = next((path for path in numbered(directory) if corruption(path) is None), None)
        kept = f"The last whole checkpoint is {whole}." if whole else "There is no checkpoint from before."
        return (
            f"{kept} Lower tokenizer_learning_rate, sia_weight, psa_weight or freeze_after, and run again with "
            "--overwrite."
        )

    def _use(self, table: SidTable, encoder: HistoryEncoder) -> None:
        self.table, self.trainer.data_collator.encoder = table, encoder
        if self.trainer.validation is not None:
            self.trainer.validation.use(table)

    def _books(self) -> list[Tensor]:
        return [codebook_KE.detach().clone() for codebook_KE in self.tokenizer.quantizer.levels]

    def _let_tokenizer_train(self, may: bool) -> None:
        self.tokenizer.requires_grad_(may).train(may)

    def _step(self) -> None:
        self._clip(self.tokenizer)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()

    def _clip(self, module: torch.nn.Module) -> None:
        if self.config.max_grad_norm > 0:
            clip_grad_norm_(module.parameters(), self.config.max_grad_norm)

    def save(self, directory: str | Path) -> None:
        """Write all that is not the LLM's into a checkpoint."""
        parts = {name: getattr(self, name).state_dict() for name in ("tokenizer", "optimizer", "scheduler", "adapters")}
        codes = torch.from_numpy(self.table.codes(np.arange(self.table.num_items)))
        counters = {"cycle": self.cycle, "settled": self.settled, "is_frozen": self.is_frozen}
        torch.save({**parts, "books": self.books, "codes": codes, **counters}, Path(directory) / FILE)

    def load(self, directory: str | Path) -> None:
        """Take up what `save` wrote."""
        device = self.tokenizer.points.device
        state = torch.load(Path(directory) / FILE, map_location=device, weights_only=True)
        for name in ("tokenizer", "optimizer", "scheduler", "adapters"):
            getattr(self, name).load_state_dict(state[name])
        self.books, self.cycle, self.settled = state["books"], state["cycle"], state["settled"]
        self.is_frozen = state["is_frozen"]
        table = SidTable(self.table.item_ids, state["codes"].cpu().numpy(), level_sizes=self.table.level_sizes)
        self._use(table, HistoryEncoder(table, self.vocabulary))
        self._let_tokenizer_train(self.is_joint and not self.is_frozen)


def _means(seen: list[Losses]) -> dict[str, float]:
    """Mean of each loss; empty without any."""
    columns = zip(*seen, strict=True)
    return {name: float(torch.stack(values).mean()) for name, values in zip(Losses._fields, columns, strict=False)}

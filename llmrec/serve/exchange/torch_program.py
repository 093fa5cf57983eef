"""A ranking in one forward pass as a program of torch.export: item rows in, scores of all items out.

    program = torch.export.load("item_scores.pt2").module()
    scores = program(torch.tensor([[3, 1, 0], [7, -1, -1]]))        # (2, N) log-probabilities

The program holds the tokens of every item and the text before a history, so it needs neither transformers, a tokenizer
nor llmrec. It ranks as Recommender does for a model with item rows (rank `items`) or with a head. Batch and length are
free. Filters are the caller's: seen items, for example, are set to -inf.

A prompt is padded anywhere, between items of different length as well; a mask of pairs of tokens, as the model's
attention takes it, hides the padding. That is exact for attention to all earlier tokens. The program that was written
is read again and compared with llmrec's own ranking, so a model that does not export faithfully is refused.

Shapes: B histories, n items of the longest, N items, W tokens of an item in a prompt, P tokens before a history, T
tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel

from llmrec.decoding.ranker import SidRanker
from llmrec.model.backbone import run_backbone
from llmrec.model.checkpoint import SidConfig, load_model, load_tokenizer
from llmrec.model.heads.choice import make_head
from llmrec.model.heads.head import Head
from llmrec.model.heads.item_rows import ItemRows
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.runtime.manifest import JsonObject, write_json
from llmrec.runtime.reading import first_line
from llmrec.sid.item_tokens import ItemTokens

PROGRAM, ITEMS = "item_scores.pt2", "items.json"
TOLERANCE = 1e-4  # of log-probabilities in float32; faithful programs differ by 1e-6
NO_ITEM = -1


def write_torch(checkpoint: Path, directory: Path) -> JsonObject:
    """Write the program, and the item_ids of its rows.

    Args:
        checkpoint: Directory of the checkpoint.
        directory: Existing directory to write.

    Raises:
        ValueError: If the checkpoint does not rank in one forward pass, or its model cannot be exported faithfully.
    """
    sid_config, table, _ = SidConfig.load(checkpoint)
    vocabulary = sid_config.vocabulary
    if vocabulary.items is None and vocabulary.head is None:
        raise ValueError(
            f"'{checkpoint}' ranks by a beam search, which is no single forward pass; make a model that has item rows "
            "or a head (`llmrec extend --item-rows`, or `--head`), or export to another engine."
        )
    model = load_model(checkpoint, dtype=torch.float32).eval()
    prefix_ids = sid_config.prompt.prefix(load_tokenizer(checkpoint))
    ranker = SidRanker(model, table, sid_config, prefix_ids, rank="sid" if vocabulary.items is None else "items")
    assert isinstance(ranker.encoder, SidHistoryEncoder), "aliases and pieces have no head"
    head = make_head(model, ranker.encoder, vocabulary, model.device) or ItemRows(ItemTokens.required(vocabulary.items))
    scores = ItemScores(model, head, prefix_ids, torch.from_numpy(ranker.encoder.in_prompt)).eval()
    example = padded([[0, 1, 2 % table.num_items], [0]])
    try:
        program = torch.export.export(scores, (example,), dynamic_shapes=({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},))
    except Exception as error:  # of the compiler, which has many kinds
        raise ValueError(f"torch.export cannot trace a {type(model).__name__} ({first_line(error)}).") from error
    torch.export.save(program, directory / PROGRAM)
    check_program(directory / PROGRAM, ranker)
    write_json(directory / ITEMS, {"item_ids": list(table.item_ids), "max_history": sid_config.max_history})
    return {"items": table.num_items, "parameters": model.num_parameters()}


def padded(histories: list[list[int]]) -> Tensor:
    """(B, n) item rows of histories, -1 behind the shorter ones."""
    width = max(map(len, histories))
    return torch.tensor([[*history, *[NO_ITEM] * (width - len(history))] for history in histories])


@torch.no_grad()
def check_program(path: Path, ranker: SidRanker) -> None:
    """Refuse a program whose scores are not those of the ranker, on histories of one item up to the longest.

    Raises:
        ValueError: If they differ.
    """
    program, rng = torch.export.load(path).module(), np.random.default_rng(0)
    longest, num_items = ranker.sid_config.max_history, ranker.table.num_items
    histories = [rng.integers(num_items, size=length).tolist() for length in (1, 2, longest, longest)]
    ranking = ranker.rank([np.array(history) for history in histories], k=num_items, num_beams=num_items)
    scores = np.take_along_axis(program(padded(histories)).numpy(), ranking.items.clip(min=0), axis=1)
    difference = float(np.abs(scores - ranking.scores)[ranking.items >= 0].max())
    if not difference <= TOLERANCE:
        raise ValueError(
            f"The program of this {type(ranker.model).__name__} scores otherwise than llmrec, by up to "
            f"{difference:.2g}: its layers do not attend to all earlier tokens. Serve it with `llmrec serve`."
        )


class ItemScores(nn.Module):
    """Scores of all items after histories of item rows.

    Args:
        model: Causal LM.
        head: Scores of the items.
        prefix_ids: P tokens before a history.
        tokens_NW: (N, W) tokens of each item in a prompt, -1 beyond its length.
    """

    prefix_P: Tensor
    tokens_NW: Tensor

    def __init__(self, model: PreTrainedModel, head: Head, prefix_ids: list[int], tokens_NW: Tensor):
        super().__init__()
        self.model, self.head = model, head
        self.register_buffer("prefix_P", torch.tensor(prefix_ids))
        self.register_buffer("tokens_NW", tokens_NW)

    def forward(self, history_Bn: Tensor) -> Tensor:
        """Score all items.

        Args:
            history_Bn: (B, n) int64 item rows, oldest first; -1 where a history is shorter.

        Returns:
            (B, N) float32 log-probabilities.
        """
        is_item = (history_Bn >= 0).unsqueeze(-1)
        tokens = self.tokens_NW[history_Bn.clamp(min=0)].masked_fill(~is_item, -1).flatten(1)
        tokens = torch.cat([self.prefix_P.expand(history_Bn.shape[0], -1), tokens], dim=1)  # (B, T)
        is_token = tokens >= 0
        positions = is_token.cumsum(dim=1) - 1
        places = torch.arange(tokens.shape[1], device=tokens.device)
        sees = (places[:, None] >= places) & is_token[:, None, :]
        sees = sees | (places[:, None] == places)  # padding sees itself: a row without any would be NaN
        dtype = self.model.dtype
        mask = torch.zeros(sees.shape, dtype=dtype, device=tokens.device).masked_fill(~sees, torch.finfo(dtype).min)
        hidden = run_backbone(
            self.model,
            input_ids=tokens.clamp(min=0),
            position_ids=positions.clamp(min=0),
            attention_mask=mask.unsqueeze(1),
            use_cache=False,
        ).last_hidden_state
        last = (is_token * places).amax(dim=1)
        states = hidden.gather(1, last.view(-1, 1, 1).expand(-1, 1, hidden.shape[2])).squeeze(1)
        return self.head.log_probs(self.model, states)

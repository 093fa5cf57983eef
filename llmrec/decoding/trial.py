"""Trial of a model before a search: a small tree is scored as the search scores it, and by the model itself.

Attention, positions, layers that keep a state, layers behind the last state, scales of logits: whatever an architecture
of transformers does otherwise than the search assumes, now or in a later version, shows in the logits of the tree. A
list of architectures would not know those to come.

Shapes: B prompts, M beams, V vocabulary.
"""

from __future__ import annotations

from weakref import WeakSet

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.decoding.tree_attention import UNCACHED, NotSearchable
from llmrec.decoding.tree_forward import TreeForward
from llmrec.model.backbone import evaluation_mode, logits
from llmrec.model.trained_rows import matrix_of
from llmrec.runtime.reading import first_line

# Two prompts, one of which is padded; then a block of two beams, and one of three, two of which share a parent.
PROMPTS, LENGTHS = ((1, 2, 3), (4, 5, 0)), (3, 2)
BLOCKS = (((6, 7), (0, 0)), ((8, 9, 10), (1, 0, 1)))  # tokens and parents
MOST = len(PROMPTS[0]) + len(BLOCKS)  # tokens of a path
# Differences of logits relative to their spread. Types that are not searched rightly give .3 to 2; the shape of
# SmolLM2-135M gives 6e-7 in float32, 0 in bfloat16 and 7e-4 in float16.
SMALL, SMALL_16_BIT = 1e-3, 1e-1
_passed: WeakSet[PreTrainedModel] = WeakSet()


@torch.no_grad()
def check_search(model: PreTrainedModel) -> None:
    """Refuse a model that a search would not score as the model scores itself; a model is tried once.

    A training loop puts a forward pass of its own over the model's; such a model is not tried, as `llmrec extend` has
    tried it.

    Args:
        model: Causal LM, without a wrapper.

    Raises:
        NotSearchable: If the logits of the two differ, or the model cannot be run in its two halves.
    """
    if model in _passed or "forward" in vars(model):
        return
    name, remedy = type(model).__name__, f"{UNCACHED}, or a model of another architecture"
    try:
        with evaluation_mode(model):
            own, expected = _as_search(model), _as_model(model)
    except NotSearchable:
        raise
    except Exception as error:  # whatever an unknown architecture raises when it is run in another way
        raise NotSearchable(
            f"{name} cannot be run as a search runs it ({type(error).__name__}: {first_line(error)[:100]}); {remedy}."
        ) from error
    scale = torch.maximum(expected.std(dim=-1), SMALL * expected.abs().amax(dim=-1))
    differs = (own - expected).square().mean(dim=-1).sqrt() / scale  # of each node of the tree
    # In 16 bits a mixture of experts may send a token to another expert, so one node may differ there.
    wrong = differs.max() > SMALL if model.dtype == torch.float32 else differs.median() > SMALL_16_BIT
    if bool(wrong):  # NaN is left to the check of scores
        raise NotSearchable(
            f"{name} gives other scores in a search than by itself, by up to {float(differs.max()):.1g} of their "
            f"spread: it has a layer that no search knows; {remedy}."
        )
    _passed.add(model)


def _as_search(model: PreTrainedModel) -> Tensor:
    """(B * (1 + M + M'), V) logits of the prompts' last tokens and of the beams of each block, by the search."""
    ids, lengths = _tokens(model, PROMPTS), _on(model, LENGTHS)
    forward = TreeForward(model, sum(len(tokens) for tokens, _ in BLOCKS))
    states = [forward.prefill(ids, lengths)]
    for tokens, parents in BLOCKS:
        block = _tokens(model, [tokens] * len(PROMPTS)), _on(model, [parents] * len(PROMPTS))
        states.append(forward.advance(*block))
    return logits(model, torch.cat(states, dim=1)).flatten(0, 1)


def _as_model(model: PreTrainedModel) -> Tensor:
    """The same logits by the model itself, in one pass over the paths to all leaves, padded on the right."""
    rows: list[tuple[int, ...]] = []
    places: list[tuple[int, int]] = []
    for prompt, length in zip(PROMPTS, LENGTHS, strict=True):
        beams: list[tuple[int, ...]] = [prompt[:length]]
        first = len(rows)
        paths = beams
        for tokens, parents in BLOCKS:
            beams = [(*beams[parent], token) for token, parent in zip(tokens, parents, strict=True)]
            paths = [*paths, *beams]
        rows += [(*path, *[0] * (MOST - len(path))) for path in beams]
        leaf_of = [next(i for i, leaf in enumerate(beams) if leaf[: len(path)] == path) for path in paths]
        places += [(first + leaf, len(path) - 1) for leaf, path in zip(leaf_of, paths, strict=True)]
    row, place = _on(model, places).unbind(dim=1)
    return model(input_ids=_tokens(model, rows), use_cache=False).logits[row, place].float()


def _on(model: PreTrainedModel, values: object) -> Tensor:
    return torch.tensor(values, device=model.device)


def _tokens(model: PreTrainedModel, values: object) -> Tensor:
    """Tokens on the device of a model, which may have fewer rows than there are tokens here."""
    return _on(model, values) % len(matrix_of(model.get_input_embeddings()))

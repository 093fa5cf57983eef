"""Every type of causal LM is searched rightly or refused with a remedy that is right; docs/decoding.md lists which.

`python -m tests.decoding.test_architectures` writes the list. It names the version of transformers, because a type may
be refused by one and searched by the next; under other versions every type is checked, and not the list.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch
import transformers

from llmrec.decoding.beam_search import tree_beam_search
from llmrec.decoding.tree_attention import CACHED, UNCACHED, NotSearchable
from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.table import SidTable
from tests.conftest import CODES, tiny_llm
from tests.support.architectures import TYPES
from tests.support.decoding import brute_force, filled, generate, prompts, vocabulary_of

DOCS = Path(__file__).parents[2] / "docs" / "decoding.md"
TABLE = SidTable([f"item-{row}" for row in range(12)], CODES, level_sizes=[4, 4, 4])
EVERY = 11  # SIDs
REMEDIES = {CACHED: True, UNCACHED: False}
LABELS = {None: "searched", CACHED: "refused; `generate()`", UNCACHED: "refused; `generate(use_cache=False)`"}


@functools.cache
def measured(name: str) -> tuple[str | None, float]:
    """The remedy of a refused type, None for one that is searched; and how far off the scores of either are."""
    vocabulary, size = vocabulary_of(TABLE)
    trie = SidTrie(TABLE)
    model = tiny_llm(size, name, **TYPES[name])
    padded, equal = prompts(), prompts((5, 5))
    try:
        found = filled(tree_beam_search(model, *padded, trie, vocabulary, EVERY))
    except NotSearchable as error:
        remedy = next(remedy for remedy in REMEDIES if remedy in str(error))
        model.generation_config.use_cache = REMEDIES[remedy]
        batch = padded if remedy == CACHED else equal
        return remedy, distance(generate(model, *batch, trie, vocabulary, EVERY), model, batch, trie, vocabulary)
    return None, distance(found, model, padded, trie, vocabulary)


def distance(found, model, batch, trie, vocabulary) -> float:
    """Largest difference of a score from that of the SID alone, by one forward pass without cache or padding."""
    exact = brute_force(model, *batch, trie, vocabulary, "vocabulary")
    assert [sorted(sid for sid, _ in row) for row in found] == [sorted(sid for sid, _ in row) for row in exact]
    pairs = ((dict(one), dict(other)) for one, other in zip(found, exact, strict=True))
    return max(abs(one[sid] - other[sid]) for one, other in pairs for sid in one)


@pytest.mark.parametrize("name", TYPES)
def test_a_type_is_searched_rightly_or_refused_with_a_remedy_that_is_right(name):
    assert measured(name)[1] < 1e-4


def test_there_are_enough_types_of_every_kind():
    assert len(TYPES) >= 60
    counts = {label: sum(measured(name)[0] == remedy for name in TYPES) for remedy, label in LABELS.items()}
    assert min(counts.values()) >= 2 and counts["searched"] >= 40


def listed() -> str:
    """The paragraph of docs/decoding.md."""
    lines = [
        f"With transformers {transformers.__version__}, {len(TYPES)} types were tried:",
        "",
        "| | types |",
        "|---|---|",
    ]
    for remedy, label in LABELS.items():
        names = ", ".join(f"`{name}`" for name in TYPES if measured(name)[0] == remedy)
        lines.append(f"| {label} | {names} |")
    return "\n".join(lines)


PARAGRAPH = re.compile(r"With transformers (\S+), \d+ types were tried:\n\n\| \| types \|\n\|---\|---\|\n(?:\|.*\n)+")


def test_the_list_of_the_docs_is_the_measured_one():
    found = PARAGRAPH.search(DOCS.read_text(encoding="utf-8"))
    if found[1] != transformers.__version__:
        pytest.skip(f"docs/decoding.md lists the types of transformers {found[1]}")
    assert found[0] == listed() + "\n"


@pytest.mark.parametrize("name", ["cohere", "granite", "gemma2", "hunyuan_v1_dense", "falcon"])
@pytest.mark.parametrize("field", ["logit_scale", "logits_scaling", "final_logit_softcapping"])
def test_scales_and_caps_of_logits_are_right_or_refused(name, field):
    vocabulary, size = vocabulary_of(TABLE)
    model = tiny_llm(size, name, **TYPES[name])
    for holder in (model, model.config):
        if hasattr(holder, field):
            setattr(holder, field, 0.37)
    try:
        found = filled(tree_beam_search(model, *prompts(), SidTrie(TABLE), vocabulary, EVERY))
    except NotSearchable:
        return
    assert distance(found, model, prompts(), SidTrie(TABLE), vocabulary) < 1e-4


class Shifted(torch.nn.Module):
    """An output layer that does more than its matrix, as a new architecture might."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.weight = layer, layer.weight

    def forward(self, hidden):
        return self.layer(hidden).roll(1, dims=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_unknown_layer_behind_the_states_is_noticed(dtype):
    vocabulary, size = vocabulary_of(TABLE)
    model = tiny_llm(size).to(dtype)
    tree_beam_search(model, *prompts(), SidTrie(TABLE), vocabulary, 4)
    other = tiny_llm(size).to(dtype)
    other.lm_head = Shifted(other.lm_head)
    with pytest.raises(NotSearchable, match=r"gives other scores in a search than by itself, .*use_cache=False"):
        tree_beam_search(other, *prompts(), SidTrie(TABLE), vocabulary, 4)


def test_a_model_is_tried_once_and_left_in_its_mode():
    vocabulary, size = vocabulary_of(TABLE)
    model, calls = tiny_llm(size, attention_dropout=0.5).train(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        tree_beam_search(model, *prompts(), SidTrie(TABLE), vocabulary, 4)
    assert len(calls) == 1 and model.training  # a search itself runs the backbone


if __name__ == "__main__":
    DOCS.write_text(PARAGRAPH.sub(lambda _: listed() + "\n", DOCS.read_text(encoding="utf-8")), encoding="utf-8")

"""States of the tokens of texts, against the encoder itself."""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, BertModel

from llmrec.tokenizers.lm_indexer.token_states import TextSource, TokenStates
from tests.tokenizers.lm_indexer.planted import catalog_of, texts, write_encoder


def test_states_are_those_of_the_encoder(monkeypatch, tmp_path):
    """Some versions of `encode` cannot give states and ids of more than four texts at once, so it is not used."""
    monkeypatch.setattr(SentenceTransformer, "encode", None)
    lines = [*texts()[:70], ""]
    encoder = str(write_encoder(tmp_path / "encoder", lines))
    read = TokenStates.read(catalog_of(lines), TextSource("text", encoder, "{text}"), 16, "cpu")
    assert read.has_text.tolist() == [True] * 70 + [False]
    model, tokenizer = BertModel.from_pretrained(encoder).eval(), AutoTokenizer.from_pretrained(encoder)
    for row in (0, 33, 69):
        ids = torch.tensor([tokenizer(lines[row])["input_ids"]])
        with torch.no_grad():
            expected = model(input_ids=ids).last_hidden_state[0]
        found = read.of(torch.tensor([row]))[0][0]
        assert torch.allclose(found, expected, atol=2e-3), "kept in half precision"

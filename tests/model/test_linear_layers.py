"""Products by oneDNN: those of `nn.Linear` but for rounding, and `nn.Linear` itself for gradients and other types."""

import copy

import pytest
import torch
from torch import nn

from llmrec.decoding.beam_search import tree_beam_search
from llmrec.decoding.decoder import SidDecoder
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.linear_layers import OneDnnLinear, onednn_products, use_onednn
from tests.support.decoding import assert_same, filled, prompts

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()), reason="one library alone"
)


def layers(bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(24, 40, bias=bias), nn.Linear(40, 8, bias=bias)).to(dtype)
    fast = copy.deepcopy(plain)
    use_onednn(fast)
    assert all(type(layer) is OneDnnLinear for layer in fast)
    return plain, fast


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 3, 24), (0, 24)])
def test_products_are_those_of_linear_layers(bias, shape):
    plain, fast = layers(bias)
    inputs = torch.randn(shape)
    with torch.no_grad(), onednn_products():
        torch.testing.assert_close(fast(inputs), plain(inputs), rtol=1e-5, atol=1e-6)


def test_products_read_columns_of_another_tensor():
    plain, fast = layers()
    inputs = torch.randn(24, 6).T
    with torch.no_grad(), onednn_products():
        torch.testing.assert_close(fast(inputs), plain(inputs), rtol=1e-5, atol=1e-6)


def test_weights_may_change_in_place():
    plain, fast = layers()
    inputs = torch.randn(3, 24)
    with torch.no_grad(), onednn_products():
        fast(inputs)
        for model in (plain, fast):
            model[0].weight.mul_(3)
        torch.testing.assert_close(fast(inputs), plain(inputs), rtol=1e-5, atol=1e-6)


def test_gradients_and_other_types_are_those_of_linear_layers():
    plain, fast = layers()
    inputs = torch.randn(3, 24)
    for model in (plain, fast):
        model(inputs).square().sum().backward()
    assert all(a.grad.equal(b.grad) for a, b in zip(plain.parameters(), fast.parameters(), strict=True))
    with torch.no_grad(), onednn_products(), torch.autocast("cpu", torch.bfloat16):
        assert fast(inputs).dtype == torch.bfloat16 and fast(inputs).equal(plain(inputs))
    plain, fast = layers(dtype=torch.bfloat16)
    with torch.no_grad(), onednn_products():
        assert fast(inputs.bfloat16()).equal(plain(inputs.bfloat16()))


def test_products_outside_of_decoding_are_those_of_linear_layers(monkeypatch):
    """A run that was killed goes on with a model that has not been decoded with yet, and has to round as before."""
    plain, fast = layers()
    inputs = torch.randn(3, 24)
    called = []
    monkeypatch.setattr(
        torch.ops.llmrec, "onednn_linear", lambda *args: called.append(1) or nn.functional.linear(*args)
    )
    with torch.no_grad():
        with onednn_products():
            fast(inputs)
        assert len(called) == 2
        assert fast(inputs).equal(plain(inputs)) and len(called) == 2


def test_modules_keep_their_names():
    plain, fast = layers()
    assert list(fast.state_dict()) == list(plain.state_dict()) and repr(fast[0]).endswith(repr(plain[0])[6:])


def test_a_decoder_on_a_cpu_uses_them_and_answers_as_before(llm, sid_table, vocabulary):
    model, trie, (ids, mask) = copy.deepcopy(llm), SidTrie(sid_table), prompts()
    expected = filled(tree_beam_search(model, ids, mask, trie, vocabulary, 5))
    decoder = SidDecoder(model, trie, vocabulary, 5)
    assert any(isinstance(module, OneDnnLinear) for module in model.modules())
    assert_same(filled(decoder(ids, mask)), expected)

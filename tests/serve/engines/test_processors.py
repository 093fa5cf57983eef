"""Both processors against the interfaces of vLLM: rows that come, go and move, and requests that are refused."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llmrec.serve.engines.folder import ExportedFolder
from llmrec.serve.engines.mask import rectangle
from tests.support.vllm_interface import config_of, params

ON, OFF = {"sid": True}, {}
OTHERS = {"allowed_token_ids": [1], "bad_words": ["red"], "structured_outputs": object()}


@pytest.fixture(params=["vllm_v1", "vllm_v2"])
def processor_class(request, interface, monkeypatch):
    name = f"llmrec.serve.engines.{request.param}"
    module = __import__(name, fromlist=["SidTrieProcessor"])
    yield module.SidTrieProcessor
    sys.modules.pop(name)  # it derives from what stood in for vLLM


@pytest.mark.parametrize("value", ["yes", "true", 2, -1, 1.0, None, [1], {}], ids=str)
def test_a_switch_that_is_neither_on_nor_off_is_refused(processor_class, value):
    with pytest.raises(ValueError, match=r"sid is .*; true or false is needed, over HTTP 1 or 0\."):
        processor_class.validate_params(params(sid=value))


@pytest.mark.parametrize("value", [True, -1, 65, "1", 1.0], ids=str)
def test_a_prefix_that_is_no_number_of_tokens_is_refused(processor_class, value):
    with pytest.raises(ValueError, match=r"sid_prefix is .*; it is the number of tokens, from 0 to 64"):
        processor_class.validate_params(params(sid=True, sid_prefix=value))


def test_a_prefix_without_the_switch_is_refused(processor_class):
    with pytest.raises(ValueError, match="sid_prefix is 2, but sid is off"):
        processor_class.validate_params(params(sid_prefix=2))


@pytest.mark.parametrize("name", OTHERS)
def test_a_second_constraint_is_refused(processor_class, name):
    asked = SimpleNamespace(extra_args=ON, **{name: OTHERS[name]})
    with pytest.raises(ValueError, match=f"sid and {name} both constrain the answer"):
        processor_class.validate_params(asked)
    processor_class.validate_params(SimpleNamespace(extra_args=OFF, **{name: OTHERS[name]}))


@pytest.mark.parametrize(
    "extra", [{}, {"sid": True}, {"sid": False}, {"sid": 1}, {"sid": 0}, {"other": "yes"}], ids=str
)
def test_a_switch_that_is_on_or_off_is_taken(processor_class, extra):
    processor_class.validate_params(params(**extra))


class V1Batch:
    """Rows as vLLM's persistent batch keeps them, each a request with a growing list of tokens."""

    def __init__(self, checkpoint, processor_class):
        self.processor = processor_class(config_of(checkpoint.folder), torch.device("cpu"), False)
        self.rows, self.width = {}, checkpoint.model.config.vocab_size

    def update(self, removed=(), added=(), moved=()):
        from vllm.v1.sample.logits_processor import BatchUpdate

        for row in removed:
            del self.rows[row]
        self.rows |= {row: (extra, prompt, output) for row, extra, prompt, output in added}
        for source, target, way in moved:
            other = self.rows.get(target)
            self.rows[target] = self.rows.pop(source)
            if way.name == "SWAP" and other is not None:
                self.rows[source] = other
        entries = [(row, params(**extra), prompt, output) for row, extra, prompt, output in added]
        self.processor.update_state(BatchUpdate(len(self.rows), list(removed), entries, list(moved)))

    def check(self, mask):
        """Each row is masked by its own answer, or not at all."""
        logits = torch.randn(len(self.rows), self.width, generator=torch.manual_seed(0))
        expected = logits.clone()
        for row, (extra, prompt, output) in self.rows.items():
            if extra.get("sid"):
                begun = extra.get("sid_prefix", 0)
                answer = [*prompt[-begun:], *output] if begun else output
                mask.apply(expected, torch.tensor([row]), *rectangle([answer], mask.trie.num_levels))
        assert self.processor.apply(logits) is logits and torch.allclose(logits, expected, atol=1e-6)


@pytest.mark.parametrize("processor_class", ["vllm_v1"], indirect=True)
def test_v1_follows_its_rows(exported, processor_class, tmp_path):
    from vllm.v1.sample.logits_processor import MoveDirectionality

    checkpoint = exported("ragged")
    mask, (a, b, _) = ExportedFolder(checkpoint.folder).mask, checkpoint.vocabulary.starts
    batch, outputs = V1Batch(checkpoint, processor_class), [[], [a], [a, b + 1], [9]]
    batch.processor.update_state(None)
    batch.update(added=[(0, ON, [9], outputs[0]), (1, {"sid": 1}, [9], outputs[1]), (2, ON, [9], outputs[2]),
                        (3, OFF, [9], outputs[3])])  # fmt: skip
    batch.check(mask)
    outputs[0].append(a + 3)  # as vLLM appends the token that it has drawn
    outputs[1].append(b)
    batch.processor.update_state(None)
    batch.check(mask)
    swap, one_way = MoveDirectionality.SWAP, MoveDirectionality.UNIDIRECTIONAL
    batch.update(moved=[(0, 3, swap)])  # with a mask and without
    batch.check(mask)
    batch.update(removed=[1], moved=[(3, 1, one_way)])  # the last row fills the gap of an aborted one
    batch.check(mask)
    batch.update(removed=[2], added=[(2, {"sid": 0}, [9], [a])])  # its slot without a mask
    batch.check(mask)
    batch.update(removed=[0], added=[(0, ON, [9], [a, b + 2])])  # and again with one, resumed after a preemption
    batch.check(mask)
    batch.update(added=[(3, ON, None, []), (4, {"sid": True, "sid_prefix": 2}, [9, a, b + 1], [])])
    batch.check(mask)
    batch.update(moved=[(4, 2, one_way)])  # over a row that has gone
    assert sorted(batch.processor.answers) == [0, 1, 2, 3]
    batch.check(mask)


class V2Batch:
    """Slots of requests, and rows in another order at every step, as the V2 model runner has them."""

    def __init__(self, checkpoint, processor_class, slots=5, longest=8):
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcRequestState

        on_device = [
            SimpleNamespace(gpu=torch.zeros(*shape, dtype=torch.int32))
            for shape in ((slots, longest), (slots,), (slots,))
        ]
        self.tokens, self.prompt_len, self.total_len = on_device
        self.tokens.gpu += checkpoint.vocabulary.starts[0]  # of requests that had the slot before
        self.width, self.extra = checkpoint.model.config.vocab_size, {}
        states = LogitsProcRequestState(
            device=torch.device("cpu"), max_num_reqs=slots, vocab_size=self.width, all_token_ids=self.tokens,
            prompt_len=self.prompt_len, prefill_len=self.prompt_len, total_len=self.total_len,
        )  # fmt: skip
        self.processor = processor_class(config_of(checkpoint.folder), states)

    def add(self, slot, extra, prompt, output=()):
        tokens = [*prompt, *output]
        self.tokens.gpu[slot, : len(tokens)] = torch.tensor(tokens)
        self.prompt_len.gpu[slot], self.total_len.gpu[slot] = len(prompt), len(tokens)
        self.extra[slot] = extra
        assert self.processor.add_request(slot, params(**extra)) is bool(extra.get("sid"))

    def check(self, mask, slots):
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext

        order = np.array(slots)
        mapping = torch.from_numpy(order).int()
        lengths = self.total_len.gpu[order]
        ctx = LogitsContext(
            expanded_idx_mapping=mapping, idx_mapping=mapping, idx_mapping_np=order,
            expanded_local_pos=torch.zeros_like(mapping), input_ids=self.tokens.gpu[order, lengths.long() - 1],
            pos=lengths - 1, seq_lens_upper_bound_np=lengths.numpy(),
        )  # fmt: skip
        logits = torch.randn(len(slots), self.width, generator=torch.manual_seed(0))
        expected = logits.clone()
        for row, slot in enumerate(slots):
            if self.extra[slot].get("sid"):
                start = int(self.prompt_len.gpu[slot]) - self.extra[slot].get("sid_prefix", 0)
                answer = self.tokens.gpu[slot, start : int(self.total_len.gpu[slot])].tolist()
                mask.apply(expected, torch.tensor([row]), *rectangle([answer], mask.trie.num_levels))
        self.processor.apply_staged_writes()
        assert self.processor.apply(logits, ctx) is logits and torch.allclose(logits, expected, atol=1e-6)


@pytest.mark.parametrize("processor_class", ["vllm_v2"], indirect=True)
def test_v2_follows_its_slots(exported, processor_class):
    checkpoint = exported("ragged")
    mask, (a, b, _) = ExportedFolder(checkpoint.folder).mask, checkpoint.vocabulary.starts
    batch = V2Batch(checkpoint, processor_class)
    batch.add(0, ON, [9, 8, 7])
    batch.add(1, OFF, [9])
    batch.check(mask, [1])
    batch.add(2, {"sid": 1}, [9], [a])
    batch.add(3, ON, [9, 8], [a, b + 1])
    batch.add(4, {"sid": True, "sid_prefix": 1}, [9, a + 3])
    batch.check(mask, [3, 1, 0, 4, 2])
    batch.tokens.gpu[4, 2], batch.total_len.gpu[4] = b, 3  # as the model runner appends the token that it has drawn
    batch.check(mask, [4, 2, 0])
    batch.add(3, OFF, [9])  # the slot of an aborted request
    batch.add(1, ON, [9, 8, 7, 6, 5], [a, b + 1, 3])
    batch.check(mask, [0, 1, 2, 3, 4])


@pytest.mark.parametrize("processor_class", ["vllm_v2"], indirect=True)
def test_v2_refuses_several_rows_of_a_request(exported, processor_class):
    config = config_of(exported("fixed").folder)
    config.speculative_config = object()
    with pytest.raises(ValueError, match="turn speculative decoding off"):
        processor_class(config, SimpleNamespace(device="cpu", max_num_reqs=1))


def test_greedy_requests_are_masked_too(exported, processor_class):
    if hasattr(processor_class, "is_argmax_invariant"):
        assert not processor_class.is_argmax_invariant(SimpleNamespace())

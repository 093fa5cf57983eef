"""NaN and infinity are found wherever in a tensor they are, in every type that weights have."""

import pytest
import torch

from llmrec.runtime.finite import check_finite, check_weights, not_finite

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_value_anywhere_is_found(dtype, value):
    for size in (1, 7, 8, 33, 4097, 70_001):  # whole vectors of a processor's registers, and remainders
        assert not_finite([("whole", torch.linspace(-2, 2, size).to(dtype))]) == []
        for place in {0, size // 3, size // 2, size - 1}:
            tensor = torch.linspace(-2, 2, size)
            tensor[place] = value
            assert not_finite([("broken", tensor.to(dtype))]) == ["broken"], (size, place)


def test_the_largest_values_of_a_type_are_finite():
    for dtype in TYPES:
        limits = torch.finfo(dtype)
        assert not_finite([("limits", torch.tensor([limits.max, limits.min], dtype=torch.float64).to(dtype))]) == []


def test_names_come_in_order_and_other_tensors_are_passed_over():
    nan = torch.tensor([1.0, torch.nan])
    tensors = {"b": nan, "ints": torch.arange(3), "flags": torch.ones(2, dtype=torch.bool), "empty": torch.empty(0),
               "meta": torch.empty(3, device="meta"), "part": torch.stack([nan, nan]).t()[:, 1:],
               "a": nan[:1]}  # fmt: skip
    assert not_finite(tensors.items()) == ["b", "part"]
    with pytest.raises(ValueError, match="b holds values that are not finite; try again"):
        check_finite(tensors, "try again")


def test_parameters_and_saved_buffers_of_a_model_are_checked_and_masks_are_not():
    model = torch.nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2,), -torch.inf), persistent=False)
    check_weights(model, "here", "Stop.")
    model.register_buffer("bias_of_experts", torch.tensor([1.0, torch.inf]))
    with pytest.raises(ValueError, match=r"1 of the weights here, hold NaN .* first: \['bias_of_experts'\]. Stop."):
        check_weights(model, "here", "Stop.")

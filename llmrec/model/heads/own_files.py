"""Modules that llmrec puts into a causal LM, each with a file of its own beside the weights.

Plain transformers then loads the weights alone, without a key that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

HEAD, CONTENT_ROWS = "item_head", "content_rows"
FILES = {HEAD: "head.safetensors", CONTENT_ROWS: "content.safetensors"}  # by the name of the module in the causal LM
REMEDY = "Restore it, or run `llmrec sft` again."


@contextmanager
def saved_apart(model: nn.Module, directory: str | Path) -> Iterator[None]:
    """Take our modules out of a causal LM while its weights are saved, and write them into their files."""
    own = {name: model._modules.pop(name) for name in FILES if name in model._modules}
    try:
        yield
    finally:
        for name, module in own.items():
            model.add_module(name, module)
    for name, module in own.items():
        if module is not None:
            tensors = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
            save_file(tensors, Path(directory) / FILES[name])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the file of a module.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}). {REMEDY}") from error


def fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Put the tensors of a file into a module of the shape that the weights beside it ask for.

    Raises:
        ValueError: If the shapes differ.
    """
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != expected:
        raise ValueError(
            f"{path} does not belong to the weights beside it: it has {found}, {expected} is needed. {REMEDY}"
        )
    module.load_state_dict(tensors)

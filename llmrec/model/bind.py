"""Binding a checkpoint anew, after its files were changed on purpose."""

from __future__ import annotations

from pathlib import Path

from llmrec.model.checkpoint import FILE, SidConfig, load_tokenizer
from llmrec.runtime.manifest import read_json, write_json
from llmrec.runtime.model_files import BINDING, binding


def bind(directory: str | Path) -> None:
    """Bind the files of a checkpoint as they are now.

    Continue like this after training a checkpoint further with plain transformers, or editing its llmrec.json.

    Args:
        directory: Directory with llmrec.json, weights and tokenizer.

    Raises:
        ValueError: If these do not go together.

    Examples:
        `directory` is a checkpoint of llmrec, whose weights another program may have replaced.

        >>> from llmrec.model.bind import bind
        >>> bind(directory)
    """
    sid_config, _, _ = SidConfig.load(directory)
    tokenizer = load_tokenizer(directory)
    sid_config.vocabulary.check(tokenizer)
    values = read_json(Path(directory) / FILE)
    values.pop(BINDING, None)
    values[BINDING] = binding(directory, values, sid_config.prompt.prefix(tokenizer))
    write_json(Path(directory) / FILE, values)

"""Files of a model directory: bounds of what they claim, checked before a model is built, and hashes that bind them.

A stage's manifest has the hash of every file. A checkpoint that was saved by hand, copied or downloaded has none, so
llmrec.json holds the hashes of the files that a model and its tokenizer are read from, and of its own other entries.
They are of whole files, so one flipped bit of the weights is found. Where a manifest was verified, nothing is hashed
again.
"""

from __future__ import annotations

import json
from pathlib import Path

from llmrec.runtime.manifest import JsonObject, read_json, sha256_file, sha256_json

BINDING = "binding"  # key of llmrec.json
OURS = "llmrec.json"
READ = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json",
        "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
        "chat_template*")  # fmt: skip
MOST_VALUES = 4  # values that a byte of weights may stand for


def binding(directory: str | Path, values: JsonObject, prompt_ids: list[int]) -> JsonObject | None:
    """Describe the files that belong to llmrec.json.

    Args:
        directory: Directory of the checkpoint.
        values: The other entries of llmrec.json.
        prompt_ids: Token ids before every history, by the tokenizer of the checkpoint.

    Returns:
        Hashes of the files and of the entries, and the ids; None if the weights are not there yet.
    """
    paths = _read_files(directory)
    if not any(path.suffix == ".safetensors" for path in paths):
        return None
    written = json.loads(json.dumps(values, default=str))  # as it will be read
    files = {path.name: sha256_file(path) for path in paths}
    return {"files": files, "values_sha256": sha256_json(written), "prompt_ids": prompt_ids}


def check_binding(directory: str | Path) -> None:
    """Refuse a checkpoint whose files are not those that its llmrec.json was written for.

    An llmrec.json of an earlier version, which binds nothing, passes.

    Raises:
        ValueError: If a file is missing, was changed or added, or llmrec.json itself was changed.
    """
    directory = Path(directory)
    try:
        values = read_json(directory / OURS)
    except (OSError, ValueError):
        return  # `SidConfig.load` says what is wrong with it
    bound = values.pop(BINDING, None) if isinstance(values, dict) else None
    if bound is None:
        return
    if not isinstance(bound, dict) or not isinstance(bound.get("files"), dict):
        raise ValueError(f"{directory / OURS} has a '{BINDING}' of another form; {_remedy(directory)}")
    problems = []
    if bound.get("values_sha256") != sha256_json(values):
        problems.append(f"{OURS} was changed")
    present = {path.name: path for path in _read_files(directory)}
    problems += [f"{name} is missing" for name in bound["files"] if name not in present]
    problems += [f"{name} was added" for name in present if name not in bound["files"]]
    known = {name: path for name, path in present.items() if name in bound["files"]}
    problems += [f"{name} was changed" for name, path in known.items() if sha256_file(path) != bound["files"][name]]
    if problems:
        raise ValueError(f"'{directory}' is not as it was saved: {', '.join(problems[:5])}. {_remedy(directory)}")


def check_prompt(directory: str | Path, prompt_ids: list[int]) -> None:
    """Refuse a tokenizer that encodes the instruction otherwise than it did when the checkpoint was saved.

    Raises:
        ValueError: If the ids differ.
    """
    bound = read_json(Path(directory) / OURS).get(BINDING) or {}
    if bound.get("prompt_ids", prompt_ids) != prompt_ids:
        raise ValueError(
            f"The tokenizer of '{directory}' encodes the instruction as {prompt_ids[:8]} …, and did as "
            f"{bound['prompt_ids'][:8]} … when it was saved: its files, or the library that reads them, have changed. "
            f"{_remedy(directory)}"
        )


def check_sizes(directory: str | Path) -> None:
    """Refuse a config.json that asks for a far larger model than its weights are, before it is built.

    Raises:
        ValueError: If a matrix of the sizes in it has more values than the weights can hold.
    """
    path = Path(directory) / "config.json"
    weights = sum(file.stat().st_size for file in Path(directory).glob("*.safetensors"))
    if not path.is_file() or not weights:
        return  # which transformers refuses
    config = read_json(path)
    parts = [config, *(each for each in config.values() if isinstance(each, dict))] if isinstance(config, dict) else []
    for part in parts:
        hidden = part.get("hidden_size") or part.get("n_embd") or part.get("d_model") or 1
        for name in ("vocab_size", "num_hidden_layers", "n_layer", "intermediate_size"):
            size = part.get(name)
            if isinstance(size, int) and isinstance(hidden, int) and size * hidden > MOST_VALUES * weights + 2**20:
                raise ValueError(
                    f"{path} has {name} {size:.3g} and a hidden size of {hidden:.3g}, for which {weights:,} bytes of "
                    "weights are too few. Give the config.json that belongs to the weights."
                )


def _read_files(directory: str | Path) -> list[Path]:
    """List the files that a model and its tokenizer are read from."""
    return sorted({path for pattern in READ for path in Path(directory).glob(pattern) if path.is_file()})


def _remedy(directory: str | Path) -> str:
    return (
        "Restore the files, or, if you changed them on purpose, as by training with plain transformers, run "
        f"`python -c \"from llmrec.model.bind import bind; bind('{directory}')\"`."
    )

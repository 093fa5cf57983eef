"""The model card of a checkpoint: its facts, its training, its measured accuracy, and code that loads it."""

from __future__ import annotations

import json
from pathlib import Path

from llmrec.configs import TRAINING
from llmrec.model.checkpoint import SidConfig
from llmrec.model.sharing.metadata import front_matter
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.answer_head import AnswerHead
from llmrec.sid.catalogs.catalog_record import KEY as HAS_RECORD
from llmrec.sid.table import SidTable

FILE = "README.md"
LOADING = """```python
from llmrec import Recommender

recommender = Recommender.from_pretrained("{name}")
item_ids, scores = recommender.recommend([["{item}"]], k=5)
```"""
GENERATING = """With plain transformers, under the trie:

```python
from llmrec import SidConfig, SidLogitsProcessor, SidTrie, sid_generation_config
from llmrec.model.checkpoint import resolve
from transformers import AutoModelForCausalLM, AutoTokenizer

path = resolve("{name}")
model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
sid_config, table, _ = SidConfig.load(path)
history = table.find_items({{"history": ["{item}"]}})
prompt, _ = sid_config.encode(history, table, tokenizer)
processor = SidLogitsProcessor(SidTrie(table), sid_config.vocabulary, prompt.shape[1], sid_config.normalize_over)
config = sid_generation_config(sid_config.vocabulary)
output = model.generate(prompt, logits_processor=[processor], generation_config=config)
print(tokenizer.decode(output.sequences[0, prompt.shape[1] :], skip_special_tokens=True))
```"""


def write_card(
    directory: str | Path,
    name: str,
    metrics: JsonObject | None = None,
    license: str | None = None,
    out: str | Path | None = None,
) -> None:
    """Write README.md of a checkpoint directory.

    Args:
        directory: Checkpoint with its llmrec.json.
        name: Path or Hub id that readers load it by; the directory may be a temporary one.
        metrics: Content of metrics.json; the card says that nothing was measured when left out.
        license: Id of a licence, as the Hub spells it; the card claims none when left out.
        out: Directory to write to; `directory` when left out.
    """
    sid_config, table, details = SidConfig.load(directory)
    sid = sid_config.vocabulary.text(table.codes([0]))
    head = sid_config.vocabulary.head
    how = "as semantic IDs" if head is None else f"in one forward pass, by the head '{head.kind}'"
    loading = LOADING if head is not None else f"{LOADING}\n\n{GENERATING}"
    facts = {
        "base model": details.get("base_model", "unknown"),
        "items": table.num_items,
        "semantic IDs": f"{table.num_levels} levels of {table.level_sizes} codes",
        "history": f"at most {sid_config.max_history} items",
        "instruction": sid_config.prompt.instruction,
    }
    title = name.rsplit("/", 1)[-1]
    parts = [
        front_matter(title, details, table.num_items, metrics, license),
        f"# {title}",
        f"A causal LM that recommends items of one catalogue {how}, made with llmrec.",
        _list(facts),
        "## Data\n\n" + (_list(details["data"]) if "data" in details else "Not recorded."),
        "## Training\n\n"
        + (
            _training(details, sid_config.vocabulary.items is not None)
            if "counts" in details
            else "Not fine-tuned: extended only."
        ),
        "## Measured\n\n" + (_measured(metrics, head) if metrics else "Nothing was measured for this card."),
        f"## What it shows\n\n{shown(table, details)}",
        "## Load\n\n" + loading.format(name=_quoted(name), item=_quoted(table.item_ids[0]), sid=_quoted(sid)),
    ]
    Path(out or directory, FILE).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def shown(table: SidTable, details: JsonObject) -> str:
    """Say what a reader of the files of a checkpoint learns about the catalogue and its users.

    Args:
        table: Semantic IDs of the checkpoint.
        details: Facts in its llmrec.json.
    """
    seen = [f"the ids of all {table.num_items} items and their semantic IDs"]
    if table.words is not None:
        seen.append("words of their titles, which these are written in")
    if HAS_RECORD in details:
        seen.append("a hash of each title and the number of training interactions of each item")
    return (
        f"These files hold {', '.join(seen)}. They hold no interaction and no user. The weights were trained on "
        "interactions, if there was training, and a tokenizer made from titles (base model 'micro') has their words."
    )


def _quoted(text: str) -> str:
    """Escape text for double quotes in Python."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _list(values: JsonObject) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in values.items())


def _training(details: JsonObject, has_items: bool) -> str:
    """List recipe and counts of every phase, under headings if there are several."""
    phases = [_phase(phase, has_items) for phase in [*details.get("earlier", []), details]]
    if len(phases) == 1:
        return phases[0]
    return "\n\n".join(f"### Phase {number} of {len(phases)}\n\n{text}" for number, text in enumerate(phases, 1))


def _phase(phase: JsonObject, has_items: bool) -> str:
    stage = next(stage for stage in TRAINING if stage in phase)
    return _list({"stage": stage, **applicable(phase[stage], has_items), **phase["counts"]})


def applicable(options: JsonObject, has_items: bool) -> JsonObject:
    """Options of a training stage that had an effect on the weights.

    Args:
        options: Identity of the stage, as llmrec.json has it.
        has_items: True if the model has item rows.
    """
    given = {name: value for name, value in options.items() if value not in (None, [], "none")}
    without = {
        "lora_": given.get("train") in ("full", "sid_tokens"),
        "sid_learning_rate": given.get("train") == "full",
        "patience": "eval_steps" not in given,
        "eval_": "eval_steps" not in given,
        "teacher_": "teacher" not in given,
        "drawn_answers": "teacher" not in given,
        "item_": not has_items,
        "max_steps": given.get("max_steps", 0) <= 0,
        "epochs": given.get("max_steps", 0) > 0,
    }
    left_out = tuple(start for start, has_none in without.items() if has_none)
    if "teacher" in given:
        given["teacher"] = ", ".join(Path(path).name for path in given["teacher"])  # where they lay concerns nobody
    return {name: value for name, value in given.items() if not name.startswith(left_out)}


def _measured(metrics: JsonObject, head: AnswerHead | None) -> str:
    by = {"items": "item rows", "mixture": f"beam {metrics['num_beams']} and item rows"}
    otherwise = f"beam {metrics['num_beams']}" if head is None else f"head '{head.kind}'"
    ranked = by.get(metrics.get("rank", "sid"), otherwise)
    lines = [f"Split: {metrics['split']}, full ranking, {ranked}.", ""]
    names: list[str] = []
    for system, by_column in metrics["systems"].items():
        for column, values in by_column.items():
            shown = {k: v for k, v in values.items() if isinstance(v, float) and "@" in k}
            if not names:
                names = list(shown)
                lines += ["| system | column | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
            lines.append(f"| {system} | {column} | " + " | ".join(f"{shown[n]:.4f}" for n in names) + " |")
    return "\n".join(lines)

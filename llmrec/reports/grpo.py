"""training.html of `llmrec grpo`: the curves by which a run that goes wrong is seen early."""

from __future__ import annotations

from collections.abc import Sequence

from llmrec.evaluation.learning import CUTOFF, NDCG
from llmrec.reports.html import figure, grid, page
from llmrec.reports.svg import COLOURS, Line, legend, plot
from llmrec.runtime.manifest import JsonObject

# Caption, and the keys of the log that it shows with their names.
PLOTS = (
    (f"Valid ndcg@{CUTOFF}", {NDCG: "valid rows"}),
    ("Reward", {"expected_reward": "expected of the policy", "reward": "mean of the roll-outs"}),
    ("Groups", {"idle_share": "idle: equal rewards", "hit_share": "with the target"}),
    ("Entropy of a code", {"entropy": "policy"}),
    ("KL divergence from the start, per code", {"kl": "policy"}),
    ("Distinct roll-outs of a group", {"distinct_share": "share"}),
)


def render(log: Sequence[JsonObject], name: str) -> str:
    """The page.

    Args:
        log: Content of training_log.json.
        name: What was trained.
    """
    figures = [_figure(log, caption, keys) for caption, keys in PLOTS]
    return page(f"Training of {name}", [grid([drawn for drawn in figures if drawn])])


def _figure(log: Sequence[JsonObject], caption: str, keys: dict[str, str]) -> str:
    """A plot over the steps; empty where the log has none of the keys."""
    lines = []
    for colour, (key, name) in zip(COLOURS, keys.items(), strict=False):
        points = [(entry["step"], entry[key]) for entry in log if entry.get(key) is not None]
        if points:
            lines.append(Line(name, *zip(*points, strict=True), colour))
    if not lines:
        return ""
    return figure(caption, plot(lines, "optimiser step", from_zero=False) + (legend(lines) if len(lines) > 1 else ""))

"""training.html of `llmrec grpo`: learning curves that show early when a run goes wrong."""

from __future__ import annotations

from collections.abc import Sequence

from llmrec.evaluation.learning import CUTOFF, NDCG
from llmrec.reports.pages import Figure, render_page
from llmrec.reports.svg import COLOURS, Line, plot
from llmrec.runtime.manifest import JsonObject

# Caption, and the keys of the log that the plot shows, with their names.
PLOTS = (
    (f"Valid ndcg@{CUTOFF}", {NDCG: "valid examples"}),
    ("Reward", {"expected_reward": "expected under the policy", "reward": "mean of the roll-outs"}),
    ("Groups", {"idle_share": "idle: equal rewards", "hit_share": "with the target"}),
    ("Entropy of a code", {"entropy": "policy"}),
    ("KL divergence from the start, per code", {"kl": "policy"}),
    ("Distinct roll-outs of a group", {"distinct_share": "share"}),
)


def render(log: Sequence[JsonObject], name: str) -> str:
    """Render the page.

    Args:
        log: Content of training_log.json.
        name: Name of the run.
    """
    curves = [curve for caption, keys in PLOTS if (curve := _figure(log, caption, keys))]
    return render_page("grpo.html.jinja", f"Training of {name}", curves=curves)


def _figure(log: Sequence[JsonObject], caption: str, keys: dict[str, str]) -> Figure | None:
    """A plot over the steps; None if the log has none of the keys."""
    lines = []
    for colour, (key, name) in zip(COLOURS, keys.items(), strict=False):
        entries = [entry for entry in log if entry.get(key) is not None]
        if entries:
            lines.append(Line(name, [entry["step"] for entry in entries], [entry[key] for entry in entries], colour))
    if not lines:
        return None
    svg = plot(lines, "optimiser step", from_zero=False)
    return Figure(caption, svg, legend=lines if len(lines) > 1 else ())

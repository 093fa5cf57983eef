"""Tables and paired intervals of the distillation experiment, as markdown.

    python scripts/experiments/distillation/analyze.py results.jsonl --ranks out/ranks.zip

A cell is the mean over seeds, with the standard deviation over seeds. An interval resamples users (2,000 times) of the
per-user difference, averaged over the seeds that both sides have; a decoder of seed s is compared with the ranker of
seed s. The variant that is called chosen has the largest mean of plain and seen-excluded N@10 on all valid examples,
averaged over seeds; test chooses nothing. Without --ranks there are only the tables of means; a pair without
ranks stays empty.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from archive import COLUMNS, DATASETS, Archive

DRAWS = 2000
MODELS = (
    *("sid", "sid-short", "kd", "aug", "aug-mix", "items+aug", "items+aug-mix"),
    *("aug-mix-kd.8", "aug-mix-student", "aug-mix-t2", "short-aug-mix", "short-t2", "short-t.5", "short-seen"),
    *("token", "token-smooth", "token-decay", "token-hidden", "token-reg", "token-kd.8", "added-reg"),
    *("half-added", "half-token", "half-token-hidden", "half-token-reg"),
)
OTHER_SIDS = (
    ("aug-mix-kd.8", "aug-mix"),
    ("aug-mix-student", "aug-mix"),
    ("aug-mix-t2", "aug-mix"),
    ("short-t2", "short-aug-mix"),
    ("short-t.5", "short-aug-mix"),
    ("short-seen", "short-aug-mix"),
)
OTHER_ITEMS = (
    ("token", "items+aug-mix"),
    ("half-token", "half-added"),
    ("half-token-hidden", "half-token"),
    ("half-token-reg", "half-token"),
    *((f"token-{name}", "token") for name in ("smooth", "decay", "hidden", "reg", "kd.8")),
    ("token-reg", "added-reg"),
    ("added-reg", "items+aug-mix"),
)
STEPS = (
    (("kd", "0.0"), ("sid", "0.0")),
    (("aug", "0.0"), ("sid", "0.0")),
    (("aug", "0.0"), ("kd", "0.0")),
    (("items+aug", "0.0"), ("aug", "0.0")),
    (("items+aug", "1.0"), ("items+aug", "0.0")),
    (("items+aug", "0.7"), ("items+aug", "1.0")),
    (("aug-mix", "0.0"), ("aug", "0.0")),
    (("items+aug-mix", "0.7"), ("items+aug", "0.7")),
    (("items+aug-mix", "1.0"), ("items+aug", "1.0")),
    *(((a, "0.0"), (b, "0.0")) for a, b in OTHER_SIDS),
    *(((a, variant), (b, variant)) for a, b in OTHER_ITEMS for variant in ("0.0", "1.0", "0.5", "0.7")),
)
HEAD = "R@10 | N@10 | R@10 excl | N@10 excl |"
Model = tuple[str, str]  # name of the run, variant


def is_ranker(name: str) -> bool:
    """Whether a run is a ranker, and not a decoder."""
    return name in ("knn", "sas", "pre", "mix") or name.startswith("r-")


def label(model: Model) -> str:
    """Describe a variant of a decoder."""
    name, variant = model
    if variant.startswith("t"):
        return f"{name}, with its teacher, ½ {'items' if 'items' in variant else 'SIDs'}"
    return f"{name}, {({'0.0': 'SIDs alone', '1.0': 'items alone'}).get(variant, f'mixture {variant}')}"


def means(archive: Archive, data: str, model: Model) -> str:
    """Means over seeds on test, with deviations."""
    cells = []
    for column, metric in COLUMNS:
        values = [run["test"][model[1]][column][metric] for run in archive.runs(data, model[0])]
        deviation = f" ±{np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
        cells.append(f"{np.mean(values):.4f}{deviation}")
    return " | ".join(cells)


@functools.cache
def _resamples(users: int) -> np.ndarray:
    """How often each user is drawn, (DRAWS, users)."""
    rng = np.random.default_rng(0)
    return np.stack([np.bincount(rng.integers(users, size=users), minlength=users) for _ in range(DRAWS)]).astype(
        np.float32
    )


def difference(archive: Archive, data: str, model: Model, other: Model) -> str:
    """Paired differences on the seeds whose ranks both have, with their number; a ranker of one seed stands for all."""
    seeds, others = archive.seeds(data, model[0]), archive.seeds(data, other[0])
    if len(others) == 1 and (other[0] == "knn" or other[0].startswith("r-")):
        pairs = [(seed, others[0]) for seed in seeds]
    else:
        pairs = [(seed, seed) for seed in seeds if seed in others]
    pairs = [(a, b) for a, b in pairs if archive.has_ranks(data, model[0], a) and archive.has_ranks(data, other[0], b)]
    if not pairs:
        return "0 | | | |"
    rows = []
    for column in COLUMNS:
        each = [
            archive.per_user(data, model[0], a, model[1], *column)
            - archive.per_user(data, other[0], b, other[1], *column)
            for a, b in pairs
        ]
        rows.append(np.mean(each, 0))
    drawn = _resamples(len(rows[0])) @ np.stack(rows).T.astype(np.float32) / len(rows[0])
    cells = []
    for mean, low, high in zip(np.stack(rows).mean(1), *np.percentile(drawn, [2.5, 97.5], axis=0), strict=True):
        mark = "" if low <= 0 <= high else ("**" if low > 0 else "_")
        cells.append(f"{mark}{mean:+.4f} [{low:+.4f}, {high:+.4f}]{mark}")
    return f"{len(pairs)} | {' | '.join(cells)}"


def rankers(archive: Archive, data: str) -> list[str]:
    """Rankers of a dataset, the best by valid first."""
    names = [name for name in archive.names(data) if is_ranker(name)]
    return sorted(names, key=lambda name: -archive.valid(data, name, "model"))


def shown_variants(archive: Archive, data: str, name: str) -> tuple[list[str], str]:
    """Variants of a decoder that the tables show, and the chosen one among those without a teacher."""
    variants = archive.variants(data, name)

    def best(among: list[str]) -> str:
        return max(among, key=lambda variant: archive.valid(data, name, variant))

    with_teacher = [variant for variant in variants if variant.startswith("t")]
    chosen = best([variant for variant in variants if not variant.startswith("t")])
    shown = [variant for variant in ("0.0", "1.0") if variant in variants]
    shown += [chosen] if chosen not in ("0.0", "1.0") else []
    return shown + ([best(with_teacher)] if with_teacher else []), chosen


def mean_tables(archive: Archive, data: str) -> tuple[list[str], list[Model]]:
    """Tables of rankers and decoders, and the decoders that they show."""
    head = f"{HEAD}\n|---|---|---|---|---|---|---|"
    lines = [f"\n### {data}: rankers (valid chooses among them)\n\n| | seeds | valid, mean of both N@10 | {head}"]
    for name in rankers(archive, data):
        seeds, valid = len(archive.seeds(data, name)), archive.valid(data, name, "model")
        lines.append(f"| {name} | {seeds} | {valid:.4f} | {means(archive, data, (name, 'model'))} |")
    lines.append(f"\n### {data}: decoders, test (chosen: by valid)\n\n| | seeds | valid | {head}")
    models = []
    for name in [name for name in MODELS if archive.seeds(data, name)]:
        shown, chosen = shown_variants(archive, data, name)
        for variant in shown:
            models.append((name, variant))
            named = label((name, variant)) + (" (chosen)" if variant == chosen else "")
            seeds, valid = len(archive.seeds(data, name)), archive.valid(data, name, variant)
            lines.append(f"| {named} | {seeds} | {valid:.4f} | {means(archive, data, (name, variant))} |")
    return lines, models


def paired_tables(archive: Archive, data: str, models: list[Model]) -> Iterator[str]:
    """Tables of paired differences: decoders less rankers, and what each part adds."""
    head, pre = f"| | seeds | {HEAD}\n|---|---|---|---|---|---|", ("pre", "model")
    best = next(name for name in rankers(archive, data) if name != "mix")
    for bar in dict.fromkeys(("pre", best, "mix")):
        named = f"`{bar}`" + (" (best single ranker by valid)" if bar == best else "")
        yield f"\n### {data}: test, decoder less {named}, paired over users, 95 %\n\n{head}"
        for model in models:
            yield f"| {label(model)} | {difference(archive, data, model, (bar, 'model'))} |"
        if bar == "pre":
            yield f"| mix of pre and ItemKNN | {difference(archive, data, ('mix', 'model'), pre)} |"
            yield f"| sas (layer norm after) | {difference(archive, data, ('sas', 'model'), pre)} |"
    yield f"\n### {data}: what each part adds, paired over users\n\n{head}"
    for model, other in STEPS:
        if archive.seeds(data, model[0]) and archive.seeds(data, other[0]):
            first, second = (f"{m[0]} ({label(m).split(', ', 1)[1]})" for m in (model, other))
            yield f"| {first} less {second} | {difference(archive, data, model, other)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="results.jsonl")
    parser.add_argument("--ranks", type=Path, nargs="*", default=[], help="ranks.zip of the same runs")
    arguments = parser.parse_args()
    archive = Archive.read(arguments.results, arguments.ranks)
    for data in DATASETS:
        lines, models = mean_tables(archive, data)
        print("\n".join(lines))
        if arguments.ranks:
            for line in paired_tables(archive, data, models):
                print(line)


if __name__ == "__main__":
    main()

"""Draw docs/imports.svg: the packages of llmrec in the order in which they may import one another.

Run `python .ci/import_picture.py` after a package is added; tests/test_imports.py says when the picture is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.test_imports import MODULES, ORDER, imports, package  # noqa: E402

PURPOSE = {
    "configs": "options of every stage, YAML and flags",
    "runtime": "stage directories, manifests, processes, device, console",
    "data": "catalogue, readers, splits, simulator",
    "sid": "SidTable, SidVocabulary",
    "evaluation": "ranking, metrics, intervals, strata",
    "baselines": "popularity to SASRec",
    "views": "item vectors",
    "tokenizers": "items to semantic IDs, one paper per file",
    "diagnostics": "quality of semantic IDs",
    "model": "backbone, checkpoint, prompt, token rows",
    "decoding": "trie, tree search, logits processor",
    "reports": "HTML pages, from templates",
    "training": "sft, tasks, dpo, grpo, alternate",
    "recommender": "a checkpoint that answers",
    "serve": "HTTP service",
    "stages": "the story of each command",
    "cli": "the llmrec command",
}
HEIGHT, LEFT, WIDTH, GAP = 34, 30, 500, 8


def edges() -> set[tuple[str, str]]:
    """Pairs (who imports, what) of packages."""
    found = {(package(module), package(name)) for module in MODULES.keys() - {"llmrec"} for name in imports(module)}
    return {(one, other) for one, other in found if one != other}


def picture() -> str:
    names = [name for name in ORDER if any(package(module) == name for module in MODULES.keys() - {"llmrec"})]
    middle = {name: 20 + place * (HEIGHT + GAP) + HEIGHT / 2 for place, name in enumerate(names)}
    size = (LEFT + WIDTH + 330, 40 + len(names) * (HEIGHT + GAP))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<defs><marker id="tip" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0L6 3L0 6z" fill="#7a8aa0"/></marker></defs>',
    ]
    for one, other in sorted(edges(), key=lambda edge: (middle[edge[1]] - middle[edge[0]], edge)):
        reach = 24 + 17 * (names.index(one) - names.index(other))
        right = LEFT + WIDTH
        parts.append(
            f'<path d="M{right} {middle[one]:.0f}C{right + reach} {middle[one]:.0f} {right + reach} '
            f'{middle[other]:.0f} {right + 2} {middle[other]:.0f}" fill="none" stroke="#7a8aa0" stroke-opacity=".55" '
            'marker-end="url(#tip)"/>'
        )
    for name in names:
        y = middle[name] - HEIGHT / 2
        parts.append(
            f'<rect x="{LEFT}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#e8eef8" stroke="#9db1d1"/>'
        )
        parts.append(
            f'<text x="{LEFT + 14}" y="{y + 22:.0f}" font-size="14" font-weight="bold" fill="#1d2b45">{name}</text>'
            f'<text x="{LEFT + 136}" y="{y + 22:.0f}" font-size="12" fill="#42506a">{PURPOSE[name]}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    (ROOT / "docs" / "imports.svg").write_text(picture(), encoding="utf-8")

"""Parts of the documentation that are made when it is built: pages from the root, options, links to the repository."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from llmrec.configs import STAGES

ROOT = Path(__file__).parents[1]
FROM_ROOT = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_page_markdown(markdown: str, page, config, **_) -> str:
    """The text of a page; links to files outside docs/ lead to the repository."""
    source = page.file.src_uri
    if source in FROM_ROOT:
        return (ROOT / FROM_ROOT[source]).read_text(encoding="utf-8").replace("](docs/", "](")
    if source == "options.md":
        return markdown + options()
    return markdown.replace("](../", f"]({config.repo_url}/blob/main/") if "/" not in source else markdown


def options() -> str:
    """A table of options for every stage, from the fields of its config."""
    parts = []
    for stage, config in STAGES.items():
        rows = [f"| `{f.name}` | {default(f)} | {f.metadata['help']} |" for f in dataclasses.fields(config)]
        summary = (config.__doc__ or "").strip()
        parts += [f"\n## {stage}\n\n{summary}\n", "| option | default | meaning |", "|---|---|---|", *rows]
    return "\n".join(parts) + "\n"


def default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return "" if field.default is None else f"`{field.default}`"
    return "required" if field.default_factory is dataclasses.MISSING else f"`{field.default_factory()}`"

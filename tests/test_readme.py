"""The README does what it says: its Python blocks run, its commands parse, its links exist."""

import re
import shlex
from pathlib import Path

import pytest

from llmrec.cli import build_parser
from llmrec.configs import STAGES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```\s*```\n(.*?)```", README, flags=re.DOTALL)
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*/README.md")])
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL) for line in block.splitlines()]


def test_every_python_block_shows_its_output():
    assert len(BLOCKS) == README.count("```python") == 2


@pytest.mark.parametrize("block", [code for code, _ in BLOCKS], ids=["recommend", "plain-transformers"])
def test_python_blocks_run_on_a_small_quickstart(block, quickstart_200, monkeypatch, capsys):
    monkeypatch.chdir(quickstart_200.parent)
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out.strip()
    assert printed
    if "generate(" in block:  # a complete SID follows the instruction and the history
        assert re.search(r"(<a_\d+> ?<b_\d+> ?<c_\d+> ?<d_\d+> ?){2}$", printed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_understood(page):
    starts = rf"(?:accelerate launch scripts/\w+\.py|llmrec (?:{'|'.join(STAGES)}))"
    for command in re.findall(rf"^{starts}(?: .*)?$", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        words = shlex.split(re.sub(r"^accelerate launch scripts/(\w+)\.py", r"llmrec \1", command), comments=True)
        assert build_parser().parse_args(words[1:]).stage in STAGES


def test_the_readme_has_a_command_for_every_stage():
    assert {stage for stage in STAGES if f"llmrec {stage}" in "\n".join(COMMANDS)} == set(STAGES)


def test_the_two_commands_are_the_first_ones():
    assert COMMANDS[:2] == ["pip install -e . && llmrec quickstart", 'pip install -e ".[test]" && pytest']
    assert 'pip install -e ".[test]" && pytest' in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(document):
    path = ROOT / document
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert all((path.parent / link).exists() for link in links), links

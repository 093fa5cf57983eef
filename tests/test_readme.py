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


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("llmrec ")])
def test_commands_are_understood(command):
    arguments = build_parser().parse_args(shlex.split(command)[1:])
    assert arguments.stage in STAGES


def test_the_two_commands_are_the_first_ones():
    assert COMMANDS[:2] == ["pip install -e . && llmrec quickstart", 'pip install -e ".[test]" && pytest']
    assert 'pip install -e ".[test]" && pytest' in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(document):
    path = ROOT / document
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert all((path.parent / link).exists() for link in links), links

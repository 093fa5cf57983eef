"""README and tutorial do what they say: blocks run, commands parse, links exist."""

import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llmrec.cli import build_parser, main
from llmrec.configs import STAGES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OWN_DATA = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
PYTHON = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
BLOCKS = PYTHON.findall(README)
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*/README.md")])
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL) for line in block.splitlines()]


def test_the_first_block_makes_what_it_loads(quickstart_200, monkeypatch, capsys):
    """At the size of the fixture; what it prints are titles."""
    monkeypatch.chdir(quickstart_200.parent)
    whole, reduced = (
        'QuickstartConfig(out="llmrec-quickstart")',
        'QuickstartConfig(out="llmrec-quickstart", num_users=200)',
    )
    assert whole in BLOCKS[0]
    exec(compile(BLOCKS[0].replace(whole, reduced), "README.md", "exec"), {})
    history, answers = capsys.readouterr().out.strip().split(" -> ")
    assert len(history.split(" | ")) == len(answers.split(" | ")) == 3


def test_the_first_block_runs_without_data_and_network(tmp_path, monkeypatch, capsys):
    """On the simulator, whose items are others; at a small size."""

    def unreachable(source):
        raise ValueError("movietweetings is not on this machine.")

    monkeypatch.setattr("llmrec.stages.quickstart.locate", unreachable)
    monkeypatch.chdir(tmp_path)
    small = 'QuickstartConfig(out="llmrec-quickstart", num_users=60, epochs=0.3)'
    block = BLOCKS[0].replace('QuickstartConfig(out="llmrec-quickstart")', small)
    assert small in block
    exec(compile(block, "README.md", "exec"), {})
    shown = capsys.readouterr()
    assert "SIMULATED" in shown.err and len(shown.out.strip().split(" -> ")) == 2


def test_own_data_in_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(PYTHON.findall(OWN_DATA)[0], "own-data.md", "exec"), {})  # writes log.csv and items.csv
    small = BLOCKS[1].replace('train="full"', 'train="full", max_steps=2')
    exec(compile(small, "README.md", "exec"), {})
    assert (tmp_path / "mini" / "checkpoint" / "manifest.json").is_file()


def test_the_tutorial_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    """Every block of docs/own-data.md in its order; its recommendations are those that the page shows."""
    monkeypatch.chdir(tmp_path)
    for language, block in re.findall(r"```(python|bash)\n(.*?)```", OWN_DATA, flags=re.DOTALL):
        if language == "python":
            exec(compile(block, "own-data.md", "exec"), {})
            continue
        for command in block.splitlines():
            capsys.readouterr()
            assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
            if "--history" in command:
                shown = re.search(r"```\n(history: .*?)```", OWN_DATA, flags=re.DOTALL)[1]
                answers = [line.split()[2:] for line in capsys.readouterr().out.splitlines()[1:]]
                assert answers[0] == shown.splitlines()[1].split()[2:]
    assert pq.read_table(tmp_path / "answers.parquet")["user_id"].to_pylist() == ["user-7", "user-8"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_understood(page):
    starts = rf"(?:accelerate launch scripts/\w+\.py|llmrec (?:{'|'.join(STAGES)}))"
    for command in re.findall(rf"^{starts}(?: .*)?$", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        words = shlex.split(re.sub(r"^accelerate launch scripts/(\w+)\.py", r"llmrec \1", command), comments=True)
        assert build_parser(words[1:]).parse_args(words[1:]).stage in STAGES


def test_every_stage_is_in_the_readme():
    assert {stage for stage in STAGES if f"llmrec {stage}" not in README and f"`{stage}`" not in README} == set()


def test_ci_runs_the_test_command_of_the_readme():
    assert (command := 'pip install -e ".[test]" && pytest') in COMMANDS
    assert command in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(document):
    path = ROOT / document
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert all((path.parent / link).exists() for link in links), links

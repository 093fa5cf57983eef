"""The folder of a Space: the container's command serves it, nothing private is in it, and the Hub takes it."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from huggingface_hub import SpaceCard

from llmrec.cli import build_parser, main
from llmrec.configs import ServeConfig
from llmrec.configs.file import load_config
from llmrec.recommender import Recommender
from llmrec.serve.generation import Generation
from llmrec.stages.serve import check_environment


@pytest.fixture(scope="module")
def space(toy, tuned, tmp_path_factory):
    out = tmp_path_factory.mktemp("space") / "space"
    assert main(["export", "--model", str(tuned), "--to", "space", "--catalog", toy[0], "--out", str(out)]) == 0
    return out


def instructions(space) -> list[tuple[str, str]]:
    """Instructions of the Dockerfile, with continued lines joined."""
    text = re.sub(r"\\\n", " ", (space / "Dockerfile").read_text())
    return [tuple(line.split(" ", 1)) for line in text.splitlines() if line and not line.startswith("#")]


def config_of(space) -> ServeConfig:
    command = json.loads(dict(instructions(space))["CMD"])
    assert command[:2] == ["llmrec", "serve"]
    given = {name: value for name, value in vars(build_parser().parse_args(command[1:])).items()
             if name not in ("stage", "config", "json")}  # fmt: skip
    return load_config(ServeConfig, None, given)


def test_the_command_of_the_container_serves_the_checkpoint(space, tuned, toy, monkeypatch):
    monkeypatch.chdir(space)
    config = config_of(space)
    assert (config.host, config.port, config.framed_by) == ("0.0.0.0", 7860, "https://huggingface.co")
    check_environment(config)
    generation = Generation.load(config)
    assert generation.titles["item-0"] == "red apple"
    here = Recommender.from_pretrained(tuned, device="cpu", catalog=toy[0])
    for histories in ([["item-1", "item-2"]], [[]]):
        assert generation.recommender.recommend(histories) == here.recommend(histories)


def test_the_dockerfile_is_in_the_order_and_form_that_docker_and_the_hub_ask_for(space):
    lines = instructions(space)
    names = [name for name, _ in lines]
    assert set(names) <= {"ARG", "FROM", "RUN", "USER", "ENV", "WORKDIR", "COPY", "EXPOSE", "CMD"}
    assert names[:3] == ["ARG", "FROM", "ARG"] and names[-1] == "CMD" and names.count("CMD") == 1
    by_name = dict(lines)
    assert by_name["EXPOSE"] == "7860"
    copied = [text for name, text in lines if name == "COPY"]  # and neither the manifest nor what lies beside it
    assert copied == ["--chown=1000 checkpoint checkpoint", "--chown=1000 catalog catalog"]
    user = next(text for name, text in lines if name == "RUN" and "useradd" in text)
    assert "--uid 1000" in user and shlex.split(user)[-1] == "user" and by_name["USER"] == "1000"
    assert names.index("USER") < names.index("WORKDIR") < names.index("COPY")  # nothing of the app is root's
    assert "ENV" in names and not re.search("TOKEN|KEY|SECRET", (space / "Dockerfile").read_text())


def test_the_head_of_its_card_is_read_by_the_parser_of_the_hub(space):
    card = SpaceCard.load(space / "README.md", ignore_metadata_errors=False)
    assert (card.data.sdk, card.data.app_port) == ("docker", 7860)
    assert "these columns of its items are shown: item_id, title, text." in card.text


def test_it_is_pushed_as_a_private_space_without_paths_and_interactions(hub, space, capsys):
    (space / ".env").write_text("LLMREC_API_KEY=secret")
    assert main(["push", "--source", str(space), "--repo-id", "ann/shop"]) == 0
    assert "its owner alone sees it" in capsys.readouterr().out
    files = hub.files("ann/shop", "spaces")
    assert hub.repositories["spaces", "ann/shop"].private and "manifest.json" not in files
    assert {"Dockerfile", "README.md", "catalog/items.parquet", "checkpoint/model.safetensors"} <= files.keys()
    assert not any("interactions" in name or name.startswith(".") for name in files.keys() - {".gitattributes"})
    for name, content in files.items():
        assert str(space.parent).encode() not in content and b"user-" not in content, name
    files_before = dict(files)
    (space / "README.md").write_text((space / "README.md").read_text().replace("Recommendations", "My shop"))
    assert main(["push", "--source", str(space), "--repo-id", "ann/shop"]) == 0  # a card may be edited
    changed = {name for name, content in hub.files("ann/shop", "spaces").items() if content != files_before[name]}
    assert changed == {"README.md"}


def test_a_catalogue_of_other_items_or_for_another_target_is_refused(toy, tuned, turns, tmp_path, capsys):
    base = ["export", "--model", str(tuned), "--out", str(tmp_path / "out")]
    assert main([*base, "--to", "flashrec", "--catalog", toy[0]]) == 2
    assert "catalog is for a Space" in capsys.readouterr().err
    assert main([*base, "--to", "space", "--catalog", str(tmp_path)]) == 2
    assert not (tmp_path / "out").exists()

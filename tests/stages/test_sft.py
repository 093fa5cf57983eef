"""The sft stage, and contracts of PEFT and transformers: law 12, phases, counts, hooks."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import Trainer, TrainingArguments

from llmrec.cli import main
from llmrec.configs import AlternateConfig, SftConfig
from llmrec.configs.file import load_config
from llmrec.model.checkpoint import SidConfig, load_tokenizer
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.recommender import Recommender
from llmrec.runtime.device import resolve_dtype
from llmrec.runtime.manifest import read_manifest, verify
from llmrec.stages import sft as stage
from llmrec.training import weights
from llmrec.training.arguments import use_one_gpu
from llmrec.training.sft.examples import HistoryCollator, build_dataset
from llmrec.training.sft.losses import sid_loss_in_forward
from llmrec.training.trainer import SidTrainer
from tests.support.extended import fine_tune, losses, same_weights, sft_config, weights_of
from tests.support.prepared import write_catalog

VERSIONS = {name: importlib.metadata.version(name) for name in ("peft", "transformers", "accelerate")}


@pytest.mark.parametrize("train", ["lora", "full"])
def test_law_12_the_seed_decides_the_loss_curve_and_the_weights(tmp_path, toy, train):
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        fine_tune(tmp_path / name, *toy, seed=seed, train=train, dropout=0.1)
    assert losses(tmp_path / "one") == losses(tmp_path / "again") != losses(tmp_path / "other")
    assert same_weights(tmp_path / "one", tmp_path / "again") and not same_weights(tmp_path / "one", tmp_path / "other")


def test_what_the_stage_leaves(capsys, tmp_path, toy):
    catalog, base = toy
    flags = ["--catalog", catalog, "--model", str(base), "--out", str(tmp_path / "sft"), "--max-steps", "3",
             "--batch-size", "8", "--max-history", "3", "--device", "cpu", "--instruction", "next plum"]  # fmt: skip
    assert main(["sft", *flags, "--json"]) == 0
    printed = capsys.readouterr()
    counts = json.loads(printed.out)
    assert "{'loss'" not in printed.err
    # Users train on 2 to 7 items (21 users, sizes 2 3 4 5 6 7 2 …), cut in windows of 4 that step by 2.
    sizes = [2 + user % 6 for user in range(21)]
    assert counts["targets"] == sum(sizes)
    assert counts["examples"] == sum({2: 1, 3: 1, 4: 1, 5: 2, 6: 2, 7: 3}[size] for size in sizes)
    assert counts["steps"] == 3 and counts["tokens_per_second"] > 0 and counts["loss"] > 0
    manifest = read_manifest(verify(tmp_path / "sft", "sft"))
    assert manifest["counts"] == {key: value for key, value in counts.items() if key != "out"}
    sid_config, table, details = SidConfig.load(tmp_path / "sft")
    assert (sid_config.max_history, sid_config.prompt.instruction, sid_config.normalize_over) == (
        3,
        "next plum",
        "level",
    )
    assert details["sft"]["max_steps"] == 3 and details["data"]["split"] == "leave_one_out"
    assert table.sha256 == SidConfig.load(base)[1].sha256
    sid_config.vocabulary.check(load_tokenizer(tmp_path / "sft"))
    assert (tmp_path / "sft" / "generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()


def test_normalize_over_vocabulary_is_saved_for_decoding(tmp_path, toy):
    fine_tune(tmp_path / "sft", *toy, normalize_over="vocabulary", max_steps=1, report_to=[])
    assert SidConfig.load(tmp_path / "sft")[0].normalize_over == "vocabulary"


def test_the_loss_of_the_first_step_is_smoothed_as_asked(tmp_path, toy, tuned):
    """A trained model is sure of its targets, so its loss grows linearly with the smoothed mass."""
    first = {}
    for smoothing in (0.0, 0.5, 1.0):
        out = tmp_path / str(smoothing)
        fine_tune(out, toy[0], tuned, train="full", max_steps=1, label_smoothing=smoothing)
        first[smoothing] = losses(out)[0]
    assert first[0.5] == pytest.approx((first[0.0] + first[1.0]) / 2, abs=2e-4)
    assert first[0.0] < 1 < first[1.0]


def test_the_loss_goes_down_on_a_learnable_catalogue(tmp_path, toy):
    """Each next item is fixed by the one before it; only the first of a sequence is a guess."""
    fine_tune(tmp_path / "sft", *toy, train="full", max_steps=30, learning_rate=5e-3, batch_size=24, max_history=10)
    curve = losses(tmp_path / "sft")
    assert curve[0] > 1.5 and np.mean(curve[-3:]) < 0.5


def test_max_steps_of_0_leaves_epochs(tmp_path, toy):
    assert fine_tune(tmp_path / "sft", *toy, max_steps=0, epochs=1, batch_size=12)["steps"] == 3  # 27 windows


def test_last_item_trains_the_same_targets(tmp_path, toy):
    one = fine_tune(tmp_path / "one", *toy, max_steps=1, batch_size=128, max_history=20)
    cut = fine_tune(tmp_path / "cut", *toy, max_steps=1, batch_size=128, max_history=20, targets="last_item")
    assert one["targets"] == cut["targets"] == cut["examples"]
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "cut"), rel=1e-5)


def test_gradient_accumulation_equals_one_batch(tmp_path, toy):
    """Also if micro-batches hold different numbers of targets, and over several epochs with a filled last batch."""
    for micro in (8, 2):
        fine_tune(tmp_path / str(micro), *toy, micro_batch_size=micro, max_steps=6)
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "8"), rel=1e-5)
    one, other = weights_of(tmp_path / "8"), weights_of(tmp_path / "2")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


def test_an_unknown_tracker_is_refused(tmp_path, toy):
    """A tracker that is not installed is named; transformers knows it by that name."""
    with pytest.raises((ValueError, ImportError, RuntimeError), match=r"(?i)no-such-tracker"):
        fine_tune(tmp_path / "sft", *toy, report_to=["no-such-tracker"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train", "full", "--quantization", "nf4"], "quantization 'nf4' needs train 'lora' or 'sid_tokens'"),
        (["--batch-size", "10", "--micro-batch-size", "4"], "batch_size 10 does not divide"),
        (["--max-history", "100"], "the model's context is 128; lower max_history"),
        (["--chat-template"], "chat_template is true but the tokenizer has none"),
        (["--instruction", ""], "The instruction gives no tokens"),
    ],
)
def test_wrong_input_leaves_nothing_behind(capsys, tmp_path, toy, flags, message):
    catalog, base = toy
    argv = ["sft", "--catalog", catalog, "--model", str(base), "--out", str(tmp_path / "sft"), "--max-history", "5"]
    assert main([*argv, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sft").exists() and not (tmp_path / "sft.partial").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sid_loss: full", "unknown key 'sid_loss' in .*it is now called 'normalize_over'"),
        ("loss_on: last_item", "unknown key 'loss_on' in .*it is now called 'targets'"),
        ("eval_rows: 9", "unknown key 'eval_rows' in .*it is now called 'eval_examples'"),
        ("train: rows", "train is 'rows'; it is now called 'sid_tokens'"),
        ("normalize_over: full", "normalize_over is 'full'; it is now called 'vocabulary'"),
        ("lora_dropout: 0.1", "unknown key 'lora_dropout' in .*removed: use dropout"),
        ("crop: 0.5", "unknown key 'crop' in .*removed: augmented histories"),
        ("category_column: shop", "unknown key 'category_column' in .*removed: the first of the columns category"),
    ],
)
def test_old_names_are_refused_with_the_new_ones(tmp_path, line, message):
    (tmp_path / "sft.yaml").write_text(f"catalog: c\nmodel: m\nout: o\n{line}\n")
    with pytest.raises(ValueError, match=message):
        load_config(SftConfig, tmp_path / "sft.yaml")


def test_a_base_of_another_catalogue_is_refused(capsys, tmp_path, toy, catalog):
    items = catalog.items.take(list(range(11, -1, -1)))
    other = write_catalog(tmp_path / "other", items, catalog._split)
    argv = ["sft", "--catalog", other.source, "--model", str(toy[1]), "--out", str(tmp_path / "sft")]
    assert main(argv) == 2
    assert "was extended for another catalogue" in capsys.readouterr().err


def test_phases_follow_one_another(capsys, tmp_path, toy):
    """SID tokens first, then LoRA, then all weights; the prompt and the history of the last phase are used."""
    catalog, base = toy
    fine_tune(tmp_path / "one", catalog, base, train="sid_tokens", max_steps=20, sid_learning_rate=1e-2)
    assert "differ" not in capsys.readouterr().err
    fine_tune(tmp_path / "two", catalog, tmp_path / "one", max_steps=3, instruction="next plum")
    assert "instruction, chat_template or max_history differ from the earlier phase's" in capsys.readouterr().err
    fine_tune(tmp_path / "three", catalog, tmp_path / "two", train="full", max_history=3, instruction="next plum")
    assert losses(tmp_path / "two")[0] < losses(tmp_path / "one")[0] - 0.3, "it starts where the one before ended"
    sid_config, _, details = SidConfig.load(tmp_path / "three")
    assert (sid_config.prompt.instruction, sid_config.max_history) == ("next plum", 3)
    assert [phase["sft"]["train"] for phase in details["earlier"]] == ["sid_tokens", "lora"]
    assert [phase["counts"]["steps"] for phase in details["earlier"]] == [20, 3]
    assert (details["sft"]["train"], details["counts"]["steps"], details["base_model"]) == ("full", 4, "llm")
    card = (tmp_path / "three" / "README.md").read_text()
    headings = [
        "### Phase 1 of 3\n\n",
        "- train: sid_tokens",
        "### Phase 2 of 3\n\n",
        "- train: lora",
        "### Phase 3 of 3\n\n",
    ]
    assert [card.find(text) for text in headings] == sorted(
        card.find(text) for text in headings
    ) and "- train: full" in card
    assert Recommender.from_pretrained(tmp_path / "three", device="cpu").recommend([["item-0"]], k=2)[0][0]
    flags = ["--model", str(tmp_path / "three"), "--out", str(tmp_path / "eval"), "--device", "cpu"]
    assert main(["evaluate", "--catalog", catalog, *flags, "--max-examples", "4", "--baselines"]) == 0


@pytest.mark.parametrize("train", ["sid_tokens", "lora", "full"])
def test_a_phase_that_learns_nothing_keeps_the_weights_of_the_one_before(tmp_path, toy, tuned, train):
    fine_tune(tmp_path / "sft", toy[0], tuned, train=train, learning_rate=1e-30, sid_learning_rate=1e-30)
    assert same_weights(tmp_path / "sft", tuned)


def test_law_1_a_phase_on_another_split_is_refused(tmp_path, toy, tuned):
    items, split = (pq.read_table(Path(toy[0]) / name) for name in ("items.parquet", "split.parquet"))
    other = write_catalog(tmp_path / "other", items, split.slice(0, 60))
    with pytest.raises(ValueError, match="made on another split of the items"):
        fine_tune(tmp_path / "sft", other.source, tuned)


def test_contract_hooks_of_the_trainer(tmp_path, toy):
    config = sft_config(tmp_path / "sft", *toy)
    sid_config, table, _ = SidConfig.load(toy[1])
    tokenizer = load_tokenizer(toy[1])
    examples = build_dataset([np.arange(5)] * 8, 5, "every_item")
    collator = HistoryCollator([4], SidHistoryEncoder(table, sid_config.vocabulary), 0)
    device = torch.device("cpu")
    dtype = resolve_dtype(config.precision, device)
    model = weights.load_trainable(config, sid_config.vocabulary, dtype)
    with sid_loss_in_forward(model, sid_config.vocabulary, "level"):
        ours = stage.make_trainer(config, model, tokenizer, examples, collator, tmp_path, device, dtype)
        assert ours.train_dataset.column_names == ["rows", "num_context", "user", "start"], VERSIONS
        assert type(ours) is SidTrainer and SidTrainer.compute_loss is Trainer.compute_loss
        assert ours.model_accepts_loss_kwargs, VERSIONS
        batch = next(iter(ours.get_train_dataloader()))
        expected = ours.model(**batch, num_items_in_batch=7).loss
        found = ours.compute_loss(ours.model, dict(batch), num_items_in_batch=7)
        torch.testing.assert_close(found, expected, msg=str(VERSIONS))
        before, total = (ours.model(**batch, num_items_in_batch=1).loss for _ in range(2))
        torch.testing.assert_close(before, total)
    names = [name for name, parameter in ours.model.named_parameters() if parameter.requires_grad]
    assert sum("trainable_tokens_delta" in name for name in names) == 1, VERSIONS
    groups = ours.create_optimizer().param_groups
    assert [len(group["params"]) for group in groups] == [len(names) - 1, 1]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert [group["lr"] for group in groups] == [2e-4, 1e-3]


def test_a_bias_of_the_output_matrix_is_scored(tokenizer, sid_table, vocabulary):
    """PEFT's wrapper of trained embeddings shows `weight` alone."""
    from transformers import PhiConfig, PhiForCausalLM

    config = PhiConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                       num_attention_heads=4, max_position_embeddings=128)  # fmt: skip
    model = PhiForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    batch = HistoryCollator([4], SidHistoryEncoder(sid_table, vocabulary), 0)(
        list(build_dataset([np.arange(9)], 20, "every_item"))
    )
    expected = model(**batch).loss
    model = weights.add_adapter(model, sft_config("", "", ""), vocabulary).eval()
    with sid_loss_in_forward(model, vocabulary, "vocabulary"):
        torch.testing.assert_close(model(**batch).loss, expected)


def test_a_finished_run_is_not_repeated(tmp_path, toy):
    """A second call with the same config trains nothing and returns the same counts."""
    first = fine_tune(tmp_path / "sft", *toy, max_steps=1)
    written = (tmp_path / "sft" / "model.safetensors").stat().st_mtime_ns
    assert fine_tune(tmp_path / "sft", *toy, max_steps=1) == first
    assert (tmp_path / "sft" / "model.safetensors").stat().st_mtime_ns == written
    shutil.rmtree(tmp_path / "sft")


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        (SftConfig(out="run", catalog="catalog", model="base"), "scripts/sft.py` uses all."),
        (
            AlternateConfig(out="run", catalog="catalog", model="base", sid="sid", views="views").llm("Next:", False),
            "one is used.",
        ),
    ],
    ids=["sft", "alternate"],
)
def test_contract_one_process_keeps_to_one_of_several_gpus(tmp_path, capsys, config, hint):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=4)
    assert arguments.n_gpu == 0, VERSIONS
    arguments._n_gpu = 2  # what _setup_devices finds in a process that sees two
    assert arguments.n_gpu == 2 and arguments.train_batch_size == 8, VERSIONS
    use_one_gpu(arguments, config)
    assert arguments.n_gpu == 1 and arguments.train_batch_size == 4, VERSIONS
    assert capsys.readouterr().err.strip().endswith(hint)

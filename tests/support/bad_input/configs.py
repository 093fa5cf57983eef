"""Flags and YAML files."""

from __future__ import annotations

from . import Case
from .damage import folder, text

CONFIG = "prepare --config @run.yaml"
SIMULATED = "dataset: simulated\n"

CASES = {
    "unknown key": Case(CONFIG, ("unknown key 'k_cor' in", "run.yaml", "did you mean 'k_core'"),
                        {"run.yaml": text(SIMULATED + "k_cor: 5\n")}, given=False),
    "wrong type": Case(CONFIG, ("k_core is 'five'; an integer is needed (in", "run.yaml"),
                       {"run.yaml": text(SIMULATED + "k_core: five\n")}, given=False),
    "fraction as an integer": Case(CONFIG, ("k_core is '2.5'; an integer",),
                                   {"run.yaml": text(SIMULATED + "k_core: 2.5\n")}, given=False),
    "list as text": Case(CONFIG, ("dataset is ['simulated']; text is needed",),
                         {"run.yaml": text("dataset: [simulated]\n")}, given=False),
    "text as a switch": Case(CONFIG, ("overwrite is 'maybe'; true or false",),
                             {"run.yaml": text(SIMULATED + "overwrite: maybe\n")}, given=False),
    "number that is none": Case("sft --config @run.yaml", ("learning_rate is '.nan'; a finite number is needed",),
                                {"run.yaml": text("learning_rate: .nan\n")}),
    "value outside the choices": Case(CONFIG, ("split is 'random'; choose from leave_one_out, temporal",),
                                      {"run.yaml": text(SIMULATED + "split: random\n")}, given=False),
    "key given twice": Case(CONFIG, ("run.yaml", "sets k_core more than once"),
                            {"run.yaml": text(SIMULATED + "k_core: 5\nk_core: 10\n")}, given=False),
    "several problems": Case(
        CONFIG + " --seed -1",
        ("unknown key 'datset'", "k_core is 'x'", "num_users is 0; at least 1", "seed is -1", "'out' is required"),
        {"run.yaml": text("datset: simulated\nk_core: x\nnum_users: 0\n")}, given=False),
    "missing keys": Case("sft", ("'out' is required", "'catalog' is required", "'model' is required: Directory"),
                         given=False),
    "no YAML": Case(CONFIG, ("run.yaml' is not valid YAML", "line 1"), {"run.yaml": text("a: b: c\n")}, given=False),
    "code in YAML": Case(CONFIG, ("run.yaml' is not valid YAML", "python/object"),
                         {"run.yaml": text("out: !!python/object/apply:os.getcwd []\n")}, given=False),
    "YAML that is no mapping": Case(CONFIG, ("run.yaml' must map keys to values", "a list"),
                                    {"run.yaml": text("- dataset\n")}, given=False),
    "config that is not UTF-8": Case(CONFIG, ("run.yaml' is not UTF-8", "byte 9"),
                                     {"run.yaml": text("dataset: é\n".encode("latin1"))}, given=False),
    "absent config": Case(CONFIG, ("run.yaml' does not exist", "--config"), given=False),
    "directory as config": Case(CONFIG, ("run.yaml' is a directory",), {"run.yaml": folder()}, given=False),
    "unknown flag": Case("tokenize --codebok-size 8", ("unknown key 'codebok_size' in the command line",
                                                       "did you mean 'codebook_size'")),
    "unknown flag with its value": Case("tokenize --codebok-size=8", ("did you mean 'codebook_size'",)),
    "value without a flag": Case("prepare movietweetings", ("unexpected argument 'movietweetings'", "--help"),
                                 given=False),
    "one run to compare": Case("compare --runs run/eval", ("--runs is ['run/eval']; two or more",), given=False),
    "no run to compare": Case("compare --runs", ("--runs is empty", "llmrec evaluate"), given=False),
    "names for other runs": Case("compare --runs a b --names a", ("--names has 1 names for 2 --runs",), given=False),
    "micro batch of no items": Case("tokenize --method simcit --micro-batch-size 0",
                                    ("micro_batch_size is 0; at least 1",)),
    "prefix of one level": Case("tokenize --method simcit --num-levels 1 --prefix-weight 0.5",
                                ("prefix_weight is 0.5 for one level", "raise num_levels")),
    "micro batch of a method without": Case("tokenize --micro-batch-size 8", ("unknown key 'micro_batch_size'",)),
    "unknown stage": Case("tokenise", ("there is no stage 'tokenise'", "tokenize"), given=False),
}  # fmt: skip

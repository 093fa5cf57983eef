"""Every item tokenizer on Amazon Beauty, beneath one decoder and one training budget.

    python scripts/experiments/beauty_tokenizers.py --work /tmp/grid --results /tmp/grid/results.jsonl --parallel 8

Needs runs/beauty/catalog and runs/beauty/views (recipes/beauty-smollm2-135m: prepare; embed with --views text
collaborative sasrec famae, on the same machine, since minutes of views count; compare minutes with --parallel 1).
decoder.py says what is beneath: a small decoder, or SmolLM2-135M from runs/smollm2-135m by `--decoder smollm2`.

Each tokenizer is used plain and distilled, from the ranker of `llmrec teach` in --teacher, with answers drawn from it.
Every one has a run with the first of --seeds, those that conclusions rest on (MATTER) one with each seed. They come
first, so that a call that is cut off has what matters. results.open.txt lists the runs that are still to be done; the
same call again does them. docs/tokenizers.md has the tables. Its table of 12 epochs had `--epochs 12 --dropout .2
--max-history 20`, and neither a teacher nor validation during training.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from decoder import DECODERS, beauty_parser, cells, decoder_steps, llm_of, recommended
from grid import ROOT, Run, Step, carry_out, load, tell_failures
from probe import Probe, probe

from llmrec.configs import ExtendConfig
from llmrec.data.catalog import Catalog
from llmrec.sid.table import SidTable

TEXT, BEHAVIOUR, SASREC, FAMAE = ["text"], ["collaborative"], ["sasrec"], ["famae"]
BOTH, WITH_SASREC = [*TEXT, *BEHAVIOUR], [*TEXT, *SASREC]
METHODS: dict[str, dict[str, Any]] = {
    "random": {"method": "random"},
    "sorted": {"method": "sorted"},
    "atomic": {"method": "atomic", "collision": "accept"},
    "atomic, content rows": {"method": "atomic", "collision": "accept"},
    "p5_cid": {"method": "p5_cid", "collision": "accept"},
    "p5_cid, path-unique tokens": {"method": "p5_cid", "tokens": "path_unique", "collision": "accept"},
    "rq_kmeans": {"method": "rq_kmeans", "view_names": BOTH},
    "rq_kmeans, text": {"method": "rq_kmeans", "view_names": TEXT},
    "rq_kmeans, behaviour": {"method": "rq_kmeans", "view_names": BEHAVIOUR},
    "rq_kmeans, SASRec": {"method": "rq_kmeans", "view_names": SASREC},
    "rq_kmeans, text and SASRec": {"method": "rq_kmeans", "view_names": WITH_SASREC},
    "rq_kmeans, sinkhorn_reassign": {"method": "rq_kmeans", "view_names": BOTH, "collision": "sinkhorn_reassign"},
    "rq_kmeans, capacity": {"method": "rq_kmeans", "view_names": BOTH, "balance": "capacity"},
    "rq_kmeans, onerec": {"method": "rq_kmeans", "view_names": BOTH, "balance": "onerec"},
    "hierarchical_kmeans": {"method": "hierarchical_kmeans", "view_names": BOTH, "collision": "accept"},
    "rec_forest": {"method": "rec_forest", "view_names": BOTH, "collision": "accept"},
    "gaoq": {"method": "gaoq", "view_names": BOTH, "collision": "hungarian_leaf"},
    "resid": {"method": "gaoq", "view_names": FAMAE, "collision": "hungarian_leaf"},
    "famae, hierarchical_kmeans": {
        "method": "hierarchical_kmeans", "view_names": FAMAE, "branching": [20, 41, 15], "collision": "hungarian_leaf",
    },
    "famae, rq_vae": {"method": "rq_vae", "view_names": FAMAE},
    "rq_kmeans, item rows": {"method": "rq_kmeans", "view_names": BOTH},
    "opq": {"method": "opq", "view_names": BOTH},
    "opq, codes": {"method": "opq", "view_names": BOTH, "num_levels": 32, "collision": "accept"},
    "opq, vectors": {"method": "opq", "view_names": BOTH, "num_levels": 32, "collision": "accept"},
    "action_piece": {"method": "action_piece", "view_names": BOTH, "collision": "accept"},
    "token_rec": {"method": "token_rec", "view_names": BOTH},
    "token_rec, projection": {"method": "token_rec", "view_names": BOTH, "collision": "accept"},
    "lm_indexer": {"method": "lm_indexer", "view_names": TEXT},
    "fsq": {"method": "fsq", "view_names": BOTH},
    "rvq": {"method": "rvq", "view_names": BOTH},
    "rq_kmeans_plus": {"method": "rq_kmeans_plus", "view_names": BOTH},
    "rq_vae": {"method": "rq_vae", "view_names": BOTH},
    "rq_vae, text": {"method": "rq_vae", "view_names": TEXT},
    "rq_vae, four aliases": {"method": "rq_vae", "view_names": BOTH, "aliases": 4},
    "rq_vae, as LC-Rec": {
        "method": "rq_vae", "view_names": BOTH, "num_levels": 4, "sinkhorn_epsilon": 0.003,
        "collision": "sinkhorn_reassign",
    },
    "cost": {"method": "cost", "view_names": BOTH},
    "letter": {"method": "letter", "view_names": [*BOTH, *SASREC], "collision": "sinkhorn_reassign"},
    "letter, aligned with PPMI": {
        "method": "letter", "view_names": BOTH, "collaborative_view": "collaborative", "quantize_collaborative": True,
        "collision": "sinkhorn_reassign",
    },
    "letter, text": {"method": "letter", "view_names": WITH_SASREC, "collision": "sinkhorn_reassign"},
    "etegrec, before alternate": {"method": "etegrec", "view_names": SASREC},
    "titles": {"method": "titles", "llm": "micro", "collision": "accept"},  # or the LLM of the other decoder
    "keywords": {"method": "keywords", "llm": "micro", "collision": "accept"},
    "simcit": {"method": "simcit", "view_names": BOTH},
    "simcit, as released": {
        "method": "simcit", "view_names": BOTH, "codebook_size": 128, "num_levels": 2, "batch_size": 256,
        "learning_rate": 2e-4, "weight_decay": 1e-3, "temperature_law": "constant", "temperature": 0.2,
        "noise_law": "constant", "distances": "absolute", "hard_codes": False, "codebook_start": "uniform",
        "allow_collapse": True,
    },
    "letter, text, aligned with PPMI": {
        "method": "letter", "view_names": BOTH, "collaborative_view": "collaborative", "collision": "sinkhorn_reassign",
    },
}  # fmt: skip

# What a row has beside its identifiers, from the recipe of the method.
EXTENDED: dict[str, dict[str, Any]] = {
    "atomic, content rows": {"micro_words": ExtendConfig.micro_words},
    "opq, codes": {"head": "codes", "head_temperature": 0.03},
    "opq, vectors": {"head": "vectors"},
    "rq_kmeans, item rows": {"item_rows": True},
    "token_rec, projection": {"head": "projection"},
}
LEARNED: dict[str, dict[str, Any]] = {
    "action_piece": {"targets": "last_item", "eval_steps": 1200},
    "atomic, content rows": {"content_passes": 1, "content_weight": 100, "masked_epochs": 4},
    "rq_kmeans, item rows": {"item_dropout": 0.3, "item_decay": 1.0},
    "titles": {"max_history": 39},  # of 25 tokens each, in a context of 1024
}
RANKED = {"rq_kmeans, item rows": "mixture"}
# One example per target makes seven times as many steps of an epoch; so these are three times the steps of the others.
SHORTER = {"action_piece": 0.4}
# The controls, and a method of each kind whose place in the order docs/tokenizers.md and docs/papers.md speak of.
MATTER = (
    "random", "atomic", "rq_kmeans", "rq_kmeans, text", "rq_kmeans, capacity", "rq_vae", "letter", "simcit", "resid",
    "gaoq",
)  # fmt: skip
# The weights are those of the best of these validations. Every 440 steps are five epochs.
VALIDATION = {"eval_steps": 440, "eval_examples": 3000}
VALID = {"max_examples": 3000}


def runs_of(arguments: argparse.Namespace) -> list[Run]:
    """All runs of the table, those of MATTER first."""
    first, rest = arguments.seeds[0], [name for name in METHODS if name not in MATTER]
    order = [(name, seed) for seed in arguments.seeds for name in MATTER], [(name, first) for name in rest]
    plain, others = ([run_of(arguments, *each) for each in part] for part in order)
    if not arguments.teacher:
        return plain + others
    distilled, others_distilled = ([run_of(arguments, *each, distilled=True) for each in part] for part in order)
    return [*plain, *distilled, *others, *others_distilled]


def run_of(arguments: argparse.Namespace, name: str, seed: int, distilled: bool = False) -> Run:
    given = {"catalog": arguments.catalog, "views": arguments.views, "device": arguments.device}
    options, extended, learned = METHODS[name], EXTENDED.get(name, {}), {**LEARNED.get(name, {})}
    if name in SHORTER:
        learned["epochs"] = arguments.epochs * SHORTER[name]
    if distilled:
        learned |= {"teacher": arguments.teacher, "drawn_answers": True}
        learned.pop("masked_epochs", None)  # a teacher is asked about whole histories
    if "llm" in options:  # items in words of the decoder
        options, learned = {**options, "llm": llm_of(arguments.decoder)}, {**learned, "normalize_over": "vocabulary"}
        extended = {"micro_words": ExtendConfig.micro_words} if arguments.decoder == "micro" else {}
    if "head" in extended:  # it learns the teacher's whole distribution, so no answers are drawn
        learned.pop("drawn_answers", None)
    steps = (("tokenize", {**given, **options}), *beneath(arguments, extended, RANKED.get(name, "sid"), **learned))
    return Run(f"{name}, distilled" if distilled else name, steps, seed)


def beneath(
    arguments: argparse.Namespace, extended: dict[str, Any] | None = None, rank: str = "sid", **learned: Any
) -> tuple[Step, ...]:
    """extend, sft and the evaluations, with the decoder and the budget of the command line.

    Args:
        arguments: Of `asked`.
        extended: Options of extend that make the difference.
        rank: How the evaluations rank.
        learned: Options of sft that make the difference.
    """
    budget = {"dropout": arguments.dropout, "max_history": arguments.max_history, **VALIDATION}
    sft = {**(budget if arguments.decoder == "micro" else {}), **learned}  # a recipe has its own budget
    ranked = {} if rank == "sid" else {"rank": rank}
    return decoder_steps(
        {"catalog": arguments.catalog}, arguments.epochs, arguments.device, arguments.decoder, sft=sft,
        extend=extended or {}, valid={**VALID, **ranked}, test=ranked,
    )  # fmt: skip


def measure(run: Run, directories: list[Path], with_probe: bool = False) -> dict[str, Any]:
    """What the table shows of a run, with the probe if asked; it reads semantic IDs, and neither words nor pieces."""
    sid, extended, sft, *evaluated = directories
    report, counts = load(sid / "report.json"), load(sft / "manifest.json")["counts"]
    tokens = counts["tokens_per_second"] * counts["train_seconds"] / dict(run.steps)["sft"]["epochs"]
    ours = load(evaluated[-1] / "metrics.json")["systems"]["ours"]
    return {
        "collision_rate": report["before_policy"]["collision_rate"],
        "perplexity_share": [level["perplexity_share"] for level in report["levels"]],
        "level_sizes": [level["codebook_size"] for level in report["levels"]],
        **({"probe": asdict(probed(run, sid))} if with_probe else {}),
        **tokenization(run, sid),
        "parameters": load(extended / "manifest.json")["counts"]["parameters"],
        "tokens_per_sequence": tokens / counts["examples"],
        "train_s": counts["train_seconds"],
        "num_steps": counts["steps"],
        "saved_step": counts.get("saved_step"),
        "users_per_s": ours["plain"]["examples_per_s"],
        "loss": counts["loss"],
        "curve": load(evaluated[0] / "metrics.json")["learning"]["ours"],
        **recommended(evaluated),
    }


def probed(run: Run, sid: Path) -> Probe:
    """The learnability probe of the semantic IDs."""
    options = run.steps[0][1]
    return probe(Catalog.load(ROOT / options["catalog"]), SidTable.load(sid), run.seed, options["device"])


def tokenization(run: Run, sid: Path) -> dict[str, float | None]:
    """Seconds of the views that a method reads, of the method itself (no report), and minutes of both.

    A view is counted for every method that reads it, FAMAE for ReSID as the text encoder for LETTER; None where
    the views were not made by one `llmrec embed`, whose manifest says what each took.
    """
    options, fit_s = run.steps[0][1], load(sid / "manifest.json")["counts"]["fit_seconds"]
    manifest = ROOT / options["views"] / "manifest.json"
    known = load(manifest)["counts"].get("seconds", {}) if manifest.is_file() else {}
    names = options.get("view_names", [])
    views_s = sum(known[name] for name in names) if known.keys() >= set(names) else None
    return {"views_s": views_s, "fit_s": fit_s, "minutes": None if views_s is None else (views_s + fit_s) / 60}


def show(results: list[dict[str, Any]]) -> None:
    """A line per run, by valid recall."""
    whole = [result for result in results if "error" not in result]
    print(
        f"{'':34} seed | valid R N, seen excl. R N | test R N, seen excl. R N  | collisions perplexity, minutes, "
        "train s, users/s, probe"
    )
    for r in sorted(whole, key=lambda r: -r["valid"]["plain"]["recall@10"]):
        valid, test = cells(r)
        print(
            f"{r['name']:34} {r['seed']:4} | {valid}   | {test}   | {r['collision_rate']:10.4f} "
            f"{r['perplexity_share'][0]:10.2f}, {shown(r):>7}, {r['train_s']:7.0f}, {r.get('users_per_s', 0):7.0f}, "
            f"{r['probe']['item_cross_entropy'] if 'probe' in r else '-'}"
        )
    minutes = {name: [r.get("minutes") for r in whole if r["name"] == name] for name in ("letter", "resid")}
    if all(found and None not in found for found in minutes.values()):
        print(f"minutes of letter / minutes of resid: {mean(minutes['letter']) / mean(minutes['resid']):.1f}")
    tell_failures(results)


def shown(result: dict[str, Any]) -> str:
    """Minutes to tokenize, where they are known."""
    return "?" if result.get("minutes") is None else f"{result['minutes']:.2f}"


def asked(description: str) -> argparse.ArgumentParser:
    """Flags of a table of tokenizers."""
    made = beauty_parser(description, epochs=30)
    made.add_argument("--dropout", type=float, default=0.2, help="of the small decoder")
    made.add_argument("--max-history", type=int, default=50, help="of the small decoder")
    made.add_argument("--decoder", choices=DECODERS, default=DECODERS[0])
    return made


def main() -> None:
    made = asked(__doc__.splitlines()[0])
    made.set_defaults(seeds=[0, 1, 2])
    made.add_argument("--teacher", nargs="*", default=["runs/beauty/teacher"], help="none for plain runs only")
    made.add_argument("--probe", action="store_true", help="measure learnability as well, for probe_claim.py")
    arguments = made.parse_args()
    carry_out(arguments, runs_of(arguments), partial(measure, with_probe=arguments.probe), show)


if __name__ == "__main__":
    main()

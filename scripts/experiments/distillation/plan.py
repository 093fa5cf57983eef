"""The jobs of the distillation experiment, the most urgent first.

A job is {"id", "data", "kind", "seed"} with options of its kind: `ranker` (sasrec.py), `knn` (itemknn.py), `mix`
(teacher.py) or `sid` (train.py, losses.py). `teacher` lists the jobs that must have been fitted before. README.md
explains the names.
"""

from __future__ import annotations

from typing import Any

from fitting import Job

MAIN, SMALL, SEEDS = ("games", "beauty", "mt"), ("industrial", "foursquare"), range(3)
DISTILLED: dict[str, Any] = {"kd": 0.5}
DRAWN: dict[str, Any] = {"kd": 0.5, "drawn": 1.0}
ITEM_ROWS: dict[str, Any] = {**DRAWN, "items": True}
ADDED: dict[str, Any] = ITEM_ROWS
TOKEN: dict[str, Any] = {**ITEM_ROWS, "item_tokens": True}
REGULARISED: dict[str, Any] = {"item_smoothing": 0.1, "item_decay": 1.0, "hidden_rows": 0.3}
HALF = {"beauty": 1915, "games": 1896}  # steps: half of the rule in train.py
FEWER: dict[str, Any] = {"evals": 6, "selection": 3000}
PUBLISHED = {"negatives": 256, "d": 64, "layers": 1, "heads": 1, "drop": 0.2}
RANKERS: dict[str, dict[str, Any]] = {
    "post": {},
    "d64": {"d": 64},
    "pre-d256": {"block": "pre", "d": 256},
    "ss": {"negatives": 256},
    "esasrec-lit": {**PUBLISHED, "block": "ligr"},
    "ligr": {"block": "ligr"},
}


class Plan:
    """A list of jobs that grows."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def add(self, name: str, data: str, kind: str, seed: int = 0, **options: Any) -> None:
        """Add a job; decoders are compiled."""
        if kind == "sid":
            options["compile"] = True
        self.jobs.append({"id": f"{data}-{name}-s{seed}", "data": data, "kind": kind, "seed": seed, **options})

    def bars(self) -> None:
        """Add SASRec, ItemKNN, their mixture, and the first plain decoders."""
        for seed in SEEDS:
            for data in MAIN:
                self.add("pre", data, "ranker", seed, block="pre")
        for data in MAIN + SMALL:
            self.add("knn", data, "knn")
        for seed in SEEDS:
            for data in MAIN:
                self.add("mix", data, "mix", seed, teacher=[f"{data}-pre-s{seed}", f"{data}-knn-s0"])
        for data in MAIN:
            self.add("sid", data, "sid")
        for name in ("pre-d256", "ligr", "esasrec-lit"):
            self.add(f"r-{name}", "games", "ranker", **RANKERS[name])
        for name in ("post", "pre-d256", "ligr", "esasrec-lit", "ss", "d64"):
            self.add(f"r-{name}", "mt", "ranker", **RANKERS[name])

    def decoders(self) -> None:
        """Add the main grid: plain, distilled, drawn answers and item rows, by SASRec and by its mixture."""
        for seed in SEEDS:
            for data in MAIN:
                teacher = [f"{data}-pre-s{seed}"]
                self.add("items+aug", data, "sid", seed, teacher=teacher, **ITEM_ROWS)
                self.add("aug", data, "sid", seed, teacher=teacher, **DRAWN)
                if seed:
                    self.add("sid", data, "sid", seed)
                else:
                    self.add("kd", data, "sid", seed, teacher=teacher, **DISTILLED)
            self.add("sid-short", "mt", "sid", seed, steps=400)
            for data in MAIN:
                teacher = [f"{data}-mix-s{seed}"]
                self.add("items+aug-mix", data, "sid", seed, teacher=teacher, **ITEM_ROWS)
                self.add("aug-mix", data, "sid", seed, teacher=teacher, **DRAWN)

    def small(self) -> None:
        """Add the small datasets, one seed. Users return to places: Foursquare's teacher keeps seen items."""
        for data in SMALL:
            self.add("pre", data, "ranker", block="pre")
            self.add("mix", data, "mix", teacher=[f"{data}-pre-s0", f"{data}-knn-s0"])
            exclude = data != "foursquare"
            self.add("items+aug-mix", data, "sid", teacher=[f"{data}-mix-s0"], **ITEM_ROWS, exclude=exclude)
            self.add("items+aug", data, "sid", teacher=[f"{data}-pre-s0"], **ITEM_ROWS, exclude=exclude)
            self.add("sid", data, "sid")

    def ablations(self) -> None:
        """Add what differs in one option on Beauty, and the other seeds of plain distillation."""
        teacher = ["beauty-pre-s0"]
        self.add("aug-seen", "beauty", "sid", teacher=teacher, exclude=False, **DRAWN)
        self.add("aug-kd.8", "beauty", "sid", teacher=teacher, **{**DRAWN, "kd": 0.8})
        self.add("aug-t2", "beauty", "sid", teacher=teacher, temp=2.0, **DRAWN)
        self.add("aug-t.5", "beauty", "sid", teacher=teacher, temp=0.5, **DRAWN)
        self.add("items+kd", "beauty", "sid", teacher=teacher, items=True, **DISTILLED)
        self.add("itemsonly+kd", "beauty", "sid", teacher=teacher, items=True, sid_w=0.0, **DISTILLED)
        for seed in SEEDS[1:]:
            for data in MAIN:
                self.add("kd", data, "sid", seed, teacher=[f"{data}-pre-s{seed}"], **DISTILLED)

    def item_forms(self) -> None:
        """Add the two forms of item rows, their regularisation, and what differs in one option; the mixed teacher."""

        def add(name: str, data: str, seed: int = 0, **options: Any) -> None:
            self.add(name, data, "sid", seed, teacher=[f"{data}-mix-s{seed}"], **{**DRAWN, **options})

        single = {"smooth": {"item_smoothing": 0.1}, "decay": {"item_decay": 1.0}, "hidden": {"hidden_rows": 0.3}}
        regularised = {"token-reg": {**TOKEN, **REGULARISED}, "added-reg": {**ADDED, **REGULARISED}}
        heavier = {"token-kd.8": {**TOKEN, "kd": 0.8}, "token-reg-kd.8": {**TOKEN, **REGULARISED, "kd": 0.8}}
        singles = {f"token-{name}": {**TOKEN, **options} for name, options in single.items()}
        for name, options in {"token": TOKEN, **regularised, **heavier, **singles}.items():
            add(name, "mt", steps=1982, selection=4000, evals=10, **options)
            if name != "token-decay":
                add(f"half-{name}", "beauty", steps=HALF["beauty"], **FEWER, **options)
        add("token", "mt", 1, steps=1982, selection=4000, evals=10, **TOKEN)
        for seed in SEEDS[:2]:
            add("half-added", "beauty", seed, steps=HALF["beauty"], **FEWER, **ADDED)
        add("half-token", "beauty", 1, steps=HALF["beauty"], **FEWER, **TOKEN)
        for name, options in {"token": TOKEN, "token-reg": regularised["token-reg"], "added": ADDED}.items():
            add(f"half-{name}", "games", steps=HALF["games"], **FEWER, **options)
        for name, options in {"kd.8": {"kd": 0.8}, "student": {"student_draws": True}}.items():
            add(f"aug-mix-{name}", "mt", steps=1982, selection=4000, evals=10, **options)
            add(f"aug-mix-{name}", "beauty", steps=3831, **FEWER, **options)
        for name, options in {"t2": {"temp": 2.0}, "t.5": {"temp": 0.5}, "seen": {"exclude": False}}.items():
            add(f"short-{name}", "mt", steps=700, selection=4000, evals=6, **options)
            add(f"aug-mix-{name}", "beauty", steps=3831, **FEWER, **options)
        add("short-aug-mix", "mt", steps=700, selection=4000, evals=6)


def all_jobs() -> list[Job]:
    """List all jobs of the second queue, and the decoders of the third."""
    plan = Plan()
    plan.bars()
    plan.decoders()
    averaged = [f"beauty-pre-s{seed}" for seed in SEEDS]
    plan.add("aug-avg3", "beauty", "sid", teacher=averaged, **DRAWN)
    plan.add("aug-student", "beauty", "sid", teacher=averaged[:1], student_draws=True, **DRAWN)
    plan.add("items", "beauty", "sid", items=True)
    plan.small()
    plan.ablations()
    plan.item_forms()
    return plan.jobs


def with_teachers(wanted: list[Job], known: list[Job]) -> list[Job]:
    """Put the teachers that jobs need before them.

    Args:
        wanted: Jobs to run.
        known: More jobs, among which teachers are found.

    Returns:
        All teachers and theirs, then the wanted jobs, each once.
    """
    by_id = {job["id"]: job for job in [*known, *wanted]}
    ordered: dict[str, Job] = {}

    def add(job: Job) -> None:
        for teacher in job.get("teacher", []):
            add(by_id[teacher])
        ordered.setdefault(job["id"], job)

    for job in wanted:
        for teacher in job.get("teacher", []):
            add(by_id[teacher])
    for job in wanted:
        add(job)
    return list(ordered.values())

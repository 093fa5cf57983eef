"""Fusion and the choice of a mixture: by hand, against a direct computation, and on planted members."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmrec.configs.ensemble import WAYS
from llmrec.evaluation.ensemble.fusion import Fusion, Gated, Mixture, Weighted
from llmrec.evaluation.ensemble.search import Measured, best, changed, complexity, grid, search
from llmrec.evaluation.ensemble.shortlist import Shortlist, shortlist, without_seen
from llmrec.evaluation.metrics import ndcg, recall, target_position
from llmrec.evaluation.protocol import evaluate, per_batch
from llmrec.evaluation.ranking import UNFILLED, Ranking
from tests.evaluation.test_protocol import fake_rank, random_rows

N = 12  # items


def listed(rows: list[list[tuple[int, float]]], targets: list[int]) -> Shortlist:
    """A shortlist from (item, probability) pairs; equal neighbours are a tie group."""
    width = max(map(len, rows))
    items, scores = np.full((len(rows), width), UNFILLED), np.full((len(rows), width), -np.inf)
    groups = np.full((len(rows), width), -1)
    for i, row in enumerate(rows):
        for slot, (item, probability) in enumerate(row):
            items[i, slot], scores[i, slot] = item, math.log(probability)
            tied = slot > 0 and row[slot - 1][1] == probability
            groups[i, slot] = groups[i, slot - 1] + (not tied)
    ranking = Ranking(items, groups, scores)
    examples = random_rows(len(rows))
    examples.targets[:] = targets
    in_order = iter(np.argsort(-np.diff(examples.offsets), kind="stable").tolist())

    def rank(histories, k, exclude=None):
        rows_of = [next(in_order) for _ in histories]
        return Ranking(ranking.items[rows_of], ranking.groups[rows_of], ranking.scores[rows_of])

    return shortlist(per_batch(rank), examples, width, "plain", 64)


FIRST = [(3, 0.5), (5, 0.3), (7, 0.1)]
SECOND = [(5, 0.6), (9, 0.2)]


@pytest.mark.parametrize(
    ("mixture", "order"),
    [
        # 3: .25, 5: .15 + .3, 7: .05, 9: .1
        (Weighted("probabilities", (0.5, 0.5)), [5, 3, 9, 7]),
        # 3: .45, 5: .27 + .06, 7: .09, 9: .02
        (Weighted("probabilities", (0.9, 0.1)), [3, 5, 7, 9]),
        # 3: .3/61, 5: .3/62 + .7/61, 7: .3/63, 9: .7/62
        (Weighted("ranks", (0.3, 0.7)), [5, 9, 3, 7]),
        # 3: .7, 5: .7 x .683 + .3, 7: 0, 9: 0; ln .5, ln .3, ln .1 scaled: 1, .683, 0
        (Weighted("scores", (0.7, 0.3)), [5, 3, 7, 9]),
        # The first member's largest probability is .5: share sigmoid(5 x .5) = .924; 3: .924, 5: .631 + .076
        (Gated(5, 0.0), [3, 5, 7, 9]),
        # Share sigmoid(25 x (.5 - .5)) = .5; 3: .5, 5: .341 + .5
        (Gated(25, 0.5), [5, 3, 7, 9]),
    ],
)
def test_one_example_by_hand(mixture, order):
    for target in (3, 5, 7, 9, 11):
        members = [listed([row], [target]) for row in (FIRST, SECOND)]
        outcome = Fusion(members, np.array([target])).outcome(mixture, 4)
        assert outcome.items[0].tolist() == order
        tied = mixture.way in ("scores", "gate") and target in (7, 9)  # both have 0
        expected = (-1, 1) if target == 11 else (2, 2) if tied else (order.index(target), 1)
        assert (outcome.position.start[0], outcome.position.size[0]) == expected


def random_members(seed: int, targets: np.ndarray, count: int = 3) -> list[Shortlist]:
    """Shortlists of 1 to 6 items, with ties; no two items of a list but tied ones have one probability."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        rows = []
        for _ in targets:
            size = rng.integers(1, 7)
            levels = np.sort(rng.choice(np.arange(1, 40), size=size, replace=False))[::-1] / 100
            places = np.sort(rng.integers(0, size, size=size))
            rows.append(list(zip(rng.permutation(N)[:size].tolist(), levels[places].tolist(), strict=True)))
        found.append(listed(rows, targets.tolist()))
    return found


def direct(members: list[Shortlist], i: int, mixture: Mixture) -> dict[int, float]:
    """Item -> fused score of example i, as the header of fusion.py defines it."""
    confidence = math.exp(members[0].scores[i, 0])
    if isinstance(mixture, Gated):
        first = 1 / (1 + math.exp(-mixture.steepness * (confidence - mixture.threshold)))
        shares = (first, 1 - first)
    else:
        shares = mixture.weights
    fused: dict[int, float] = {}
    for share, member in zip(shares, members, strict=True):
        row = [
            (item, score) for item, score in zip(member.items[i].tolist(), member.scores[i], strict=True) if item >= 0
        ]
        for item, score in row:
            high, low = row[0][1], row[-1][1]
            value = {
                "probabilities": math.exp(score),
                "ranks": 1 / (61 + sum(other > score for _, other in row)),
                "scores": 1.0 if high == low else (score - low) / (high - low),
            }["scores" if mixture.way == "gate" else mixture.way]
            fused[item] = fused.get(item, 0.0) + share * value
    return fused


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "mixture",
    [*(Weighted(way, (0.5, 0.3, 0.2)) for way in WAYS[:3]), Weighted("probabilities", (0.0, 1.0, 0.0)), Gated(9, 0.2)],
)
def test_fusion_equals_a_direct_computation(mixture, seed):
    targets = np.random.default_rng(seed + 10).integers(0, N, size=30)
    members = random_members(seed, targets, 2 if isinstance(mixture, Gated) else 3)
    fusion = Fusion(members, targets)
    position = fusion.outcome(mixture, 3).position
    for i, target in enumerate(targets.tolist()):
        fused = direct(members, i, mixture)
        if target not in fused:
            assert (position.start[i], position.size[i], position.group[i]) == (-1, 1, -1)
            continue
        larger = {round(score, 9) for score in fused.values() if score > fused[target] + 1e-9}
        assert position.start[i] == sum(score > fused[target] + 1e-9 for score in fused.values())
        assert position.size[i] == sum(abs(score - fused[target]) < 1e-9 for score in fused.values())
        assert position.group[i] == len(larger)
    assert fusion.ndcg(mixture, 3) == pytest.approx(ndcg(position, 3).mean())


@pytest.mark.parametrize("way", WAYS[:3])
def test_a_member_with_all_the_weight_is_the_ensemble(way):
    targets = np.random.default_rng(3).integers(0, N, size=40)
    members = random_members(0, targets)
    for i, member in enumerate(members):
        weights = tuple(float(i == j) for j in range(3))
        ours = Fusion(members, targets).outcome(Weighted(way, weights), 5).position
        same = member.position.start >= 0
        if way == "scores":  # the scaled score of a list's last items is 0, as that of the items that it lacks
            same &= member.position.start < np.where(member.items < 0, 0, member.places).max(axis=1)
        assert same.sum() > 3
        np.testing.assert_array_equal(ours.start[same], member.position.start[same])
        np.testing.assert_array_equal(ours.size[same], member.position.size[same])


@pytest.mark.parametrize("column", ["plain", "seen_excluded"])
def test_a_shortlist_has_the_places_of_an_evaluation(column):
    """Also of a target that stands beyond its depth, and where a shared SID is cut by it."""
    rows = random_rows()
    member = shortlist(per_batch(fake_rank), rows, 5, column, 7)
    expected = evaluate(per_batch(fake_rank), rows, 5, column, 64)
    for found, wanted in zip(member.position, expected.position, strict=True):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(member.items, expected.items)
    assert (member.position.start >= 5).any()
    histories = [rows.history(i) for i in range(len(rows))]
    direct = fake_rank(histories, 5, histories if column == "seen_excluded" else None)
    for i in range(len(rows)):
        for slot in range(5):
            position = target_position(direct, direct.items[:, slot])
            assert member.items[i, slot] < 0 or member.places[i, slot] == position.start[i]


def test_what_is_excluded_leaves_its_probability_to_the_others():
    rows = random_rows(2)
    rows.values[:], rows.targets[:] = 3, 9  # both histories hold item 3 alone
    plain = listed([[(3, 0.6), (5, 0.3), (7, 0.05)], [(5, 0.4), (9, 0.1)]], [9, 9])
    excluded = listed([[(5, 0.3), (7, 0.05), (9, 0.02)], [(5, 0.4), (9, 0.1)]], [9, 9])
    found = np.exp(without_seen(excluded, plain, rows).scores)
    np.testing.assert_allclose(found[0], [0.75, 0.125, 0.05])  # divided by .4
    np.testing.assert_allclose(found[1, :2], [0.4, 0.1])  # item 3 is not among the likely ones
    sure = listed([[(3, 1.0)], [(3, 1.0)]], [9, 9])
    found = np.exp(without_seen(excluded, sure, rows).scores)
    np.testing.assert_allclose(found.sum(axis=1), 1)  # rounding left nothing: shares of what is listed
    nothing = listed([[], [(9, 1.0)]], [9, 9])
    assert np.exp(without_seen(nothing, sure, rows).scores).tolist() == [[0.0], [1.0]]


def test_a_shortlist_is_kept_on_disk(tmp_path):
    member = shortlist(per_batch(fake_rank), random_rows(), 5, "plain", 7)
    member.save(tmp_path / "scratch" / "one.npz")
    again = Shortlist.load(tmp_path / "scratch" / "one.npz")
    for name in ("items", "places", "scores", "invalid"):
        np.testing.assert_array_equal(getattr(again, name), getattr(member, name))
    assert again.seconds == member.seconds and (again.position.start == member.position.start).all()


def test_scores_that_are_no_log_probabilities_are_refused():
    def logits(histories, k, exclude=None):
        ranking = fake_rank(histories, k, exclude)
        return Ranking(ranking.items, ranking.groups, ranking.scores + 40)

    with pytest.raises(ValueError, match="score 40, which is no log-probability"):
        shortlist(per_batch(logits), random_rows(), 5, "plain", 64)


def test_grids_hold_all_weights_of_a_step():
    for members, parts, count in ((2, 20, 21), (3, 10, 66), (4, 10, 286)):
        weights = list(grid(members, parts))
        assert len(set(weights)) == count
        assert all(sum(one) == pytest.approx(1) and min(one) >= 0 for one in weights)


def planted(good: int, count: int) -> tuple[dict[str, Fusion], np.ndarray]:
    """Members of which only one lists the targets, first, all with the same probabilities."""
    targets = np.arange(8)
    rows = [[[(int(t) if m == good else int(t + 1 + m) % N, 0.5), (int(t + 7) % N, 0.2)] for t in targets]
            for m in range(count)]  # fmt: skip
    members = [listed(of_member, targets.tolist()) for of_member in rows]
    return {"plain": Fusion(members, targets)}, targets


@pytest.mark.parametrize(("count", "good"), [(2, 1), (3, 0), (4, 2), (6, 4)])
def test_the_search_finds_the_member_that_knows(count, good):
    fusions, _ = planted(good, count)
    found = search(fusions, WAYS[:3], count, 1)
    chosen = best(found)
    assert chosen.value == 1.0
    assert chosen.mixture == Weighted("probabilities", tuple(float(i == good) for i in range(count)))


def test_of_equal_mixtures_the_simpler_is_chosen():
    def measured(mixture: Mixture, value: float) -> Measured:
        return Measured(mixture, {"plain": value, "seen_excluded": value})

    in_order = [
        Weighted("probabilities", (0.0, 1.0, 0.0)),
        Weighted("ranks", (0.0, 1.0, 0.0)),
        Weighted("probabilities", (0.5, 0.5, 0.0)),
        Weighted("probabilities", (0.3, 0.7, 0.0)),
        Weighted("scores", (0.5, 0.5, 0.0)),
        Gated(5, 0.1),
        Weighted("probabilities", (0.3, 0.4, 0.3)),
    ]
    assert sorted(reversed(in_order), key=complexity) == in_order
    while in_order:
        values = [measured(one, 0.25 + (i % 2) * 1e-12) for i, one in enumerate(reversed(in_order))]
        assert best([*values, measured(Gated(1, 0.0), 0.2)]).mixture == in_order.pop(0)
    assert best([measured(Gated(1, 0.0), 0.3), measured(Weighted("ranks", (1.0, 0.0)), 0.2)]).mixture == Gated(1, 0.0)


def test_a_changed_weight_scales_the_others():
    assert changed((0.5, 0.3, 0.2), 0, 0.2) == pytest.approx((0.2, 0.48, 0.32))
    assert changed((1.0, 0.0, 0.0), 0, 0.4) == pytest.approx((0.4, 0.3, 0.3))
    assert changed((0.5, 0.5), 1, 1.0) == pytest.approx((0.0, 1.0))


def test_members_that_know_different_targets_are_better_together():
    """Each knows half of the targets and is sure of them; of the other half it names another item, and is not sure."""
    targets = np.arange(10)
    rows = [[[(t, 0.8)] if (t + m) % 2 == 0 else [((t + 6) % N, 0.2)] for t in targets.tolist()] for m in range(2)]
    members = [listed(of_member, targets.tolist()) for of_member in rows]
    for member in members:
        assert recall(member.position, 1).mean() == 0.5
    chosen = best(search({"plain": Fusion(members, targets)}, WAYS, 2, 1))
    assert chosen.value == 1.0 and chosen.mixture == Weighted("probabilities", (0.5, 0.5))

"""Probe: tables that follow a planted structure rank above those that do not, and its numbers are its model's."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmrec.data.catalog import Catalog
from llmrec.sid.table import SidTable

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "experiments"))
from probe import _cross_entropy, _fit, _positions, _prefixes, probe
from probe.log_linear import LogLinear, log_sum_exp_of_sums
from probe.targets import Targets

sys.path.pop(0)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

GROUPS, PLACES = 12, 12
NUM_ITEMS = GROUPS * PLACES
IDS = [f"item-{row}" for row in range(NUM_ITEMS)]
PLANTED = np.stack(np.divmod(np.arange(NUM_ITEMS), PLACES), axis=1)


def catalog_of(sequences: list[list[int]], ids: list[str], test_targets: list[int] | None = None) -> Catalog:
    """Leave-one-out: the last item of a sequence is test (or another one), the one before it valid."""
    rows = []
    for user, sequence in enumerate(sequences):
        items = [ids[row] for row in sequence]
        for split, end in (("train", -3), ("valid", -2), ("test", -1)):
            history, target = (items[:end], items[end])
            if split == "test" and test_targets is not None:
                history, target = items[1:end], ids[test_targets[user]]
            rows.append({"user_id": f"user-{user}", "split": split, "history": history, "target": target})
    items = pa.table({"item_id": ids, "title": ids})
    return Catalog(items, pa.Table.from_pylist(rows))


def planted_sequences(num_users: int = 250, length: int = 12) -> list[list[int]]:
    """Mostly the same group again, and mostly the next place, in whichever group: both codes can be foretold."""
    rng, sequences = np.random.default_rng(0), []
    for _ in range(num_users):
        group, place, sequence = rng.integers(GROUPS), rng.integers(PLACES), []
        for _ in range(length):
            sequence.append(int(group * PLACES + place))
            group = group if rng.random() < 0.8 else rng.integers(GROUPS)
            place = (place + 1) % PLACES if rng.random() < 0.8 else rng.integers(PLACES)
        sequences.append(sequence)
    return sequences


@pytest.fixture(scope="module")
def planted() -> Catalog:
    return catalog_of(planted_sequences(), IDS)


def run(catalog: Catalog, codes: np.ndarray, **options):
    return probe(catalog, SidTable(catalog.item_ids, codes), device="cpu", epochs=options.pop("epochs", 15), **options)


@pytest.fixture(scope="module")
def found(planted):
    """The probe of the planted codes and of what is left of them."""
    rng = np.random.default_rng(1)
    within = PLANTED.copy()
    for group in range(GROUPS):
        within[PLANTED[:, 0] == group, 1] = rng.permutation(PLACES)
    names = [rng.permutation(GROUPS), rng.permutation(PLACES)]
    tables = {
        "planted": PLANTED,
        "within": within,
        "bijection": PLANTED[rng.permutation(NUM_ITEMS)],
        "renamed": np.stack([names[level][PLANTED[:, level]] for level in range(2)], axis=1),
        "atomic": np.arange(NUM_ITEMS)[:, None],
    }
    return {name: run(planted, codes) for name, codes in tables.items()}


def test_planted_codes_are_above_permuted_children_above_a_bijection(found):
    planted, within, bijection = (found[name] for name in ("planted", "within", "bijection"))
    assert planted.lp < within.lp - 0.2 < bijection.lp - 0.4
    assert planted.recall_at_50 > within.recall_at_50 + 0.02 > bijection.recall_at_50 + 0.04
    assert planted.ndcg_at_10 > within.ndcg_at_10 + 0.02 > bijection.ndcg_at_10 + 0.04
    # Permuting children leaves the first level alone and costs at the second.
    assert within.cross_entropy[0] == pytest.approx(planted.cross_entropy[0], abs=0.1)
    assert within.cross_entropy[1] > planted.cross_entropy[1] + 0.2
    assert planted.gain[0] > within.gain[1]


def test_the_entropies_do_not_tell_these_tables_apart(found):
    for name in ("planted", "within", "bijection", "atomic"):
        assert sum(found[name].item_entropy) == pytest.approx(np.log(NUM_ITEMS))
        assert sum(found[name].entropy) == pytest.approx(sum(found["planted"].entropy))


def test_names_of_codes_do_not_matter(found):
    assert found["renamed"].lp == pytest.approx(found["planted"].lp, abs=0.05)
    assert found["renamed"].recall_at_50 == pytest.approx(found["planted"].recall_at_50, abs=0.03)
    np.testing.assert_allclose(found["renamed"].entropy, found["planted"].entropy)


def test_atomic_ids_learn_something(found):
    atomic = found["atomic"]
    assert len(atomic.cross_entropy) == 1 and atomic.lp < np.log(NUM_ITEMS)
    assert atomic.recall_at_50 > 50 / NUM_ITEMS


@pytest.mark.parametrize("codes", [PLANTED, np.arange(NUM_ITEMS)[:, None]])
def test_an_unfitted_probe_knows_nothing(planted, codes):
    untrained = run(planted, codes, epochs=0)
    np.testing.assert_allclose(untrained.cross_entropy, np.log(codes.max(axis=0) + 1), rtol=1e-6)
    # All items tie: each of the 144 stands as likely at any place.
    assert untrained.recall_at_50 == pytest.approx(50 / NUM_ITEMS)
    assert untrained.ndcg_at_10 == pytest.approx((1 / np.log2(np.arange(10) + 2)).sum() / NUM_ITEMS)


def test_one_code_for_all_items(planted):
    one = run(planted, np.zeros((NUM_ITEMS, 1), np.int64), epochs=1)
    assert (one.cross_entropy, one.gain, one.entropy, one.lp) == ([0.0], [0.0], [0.0], 0.0)
    assert one.item_cross_entropy == pytest.approx(np.log(NUM_ITEMS))
    assert one.recall_at_50 == pytest.approx(50 / NUM_ITEMS)


def test_entropies_by_hand():
    # Trained on: a twice, b once, c once. Level 0: a b | c, with 3/4 and 1/4; level 1 under the former: 2/3 and 1/3.
    catalog = catalog_of([[0, 0, 1, 2, 0, 0]], list("abc"))
    result = run(catalog, np.array([[0, 0], [0, 1], [1, 0]]), epochs=0)

    def entropy(*shares):
        return -sum(share * np.log(share) for share in shares)

    np.testing.assert_allclose(result.entropy, [entropy(3 / 4, 1 / 4), 3 / 4 * entropy(2 / 3, 1 / 3)])
    np.testing.assert_allclose(result.item_entropy, [entropy(2 / 3, 1 / 3), 2 / 3 * np.log(2)])
    ln2 = np.log(2)
    np.testing.assert_allclose(result.gain, [1 - ln2 / h for h in result.entropy], rtol=1e-6)


def fitted(codes: np.ndarray, sizes: list[int], catalog: Catalog) -> tuple[LogLinear, Targets]:
    generator = torch.Generator().manual_seed(0)
    model = LogLinear(codes, _prefixes(codes), sizes, generator)
    _fit(model, Targets.of(catalog.train, torch.device("cpu"), every=True), 8, generator)
    model.requires_grad_(False)
    return model, Targets.of(catalog.examples("valid"), torch.device("cpu"))


VARIABLE = np.array([[0, -1, -1], [1, 0, -1], [1, 1, 0], [1, 1, 1], [2, 0, 0], [2, 0, 0]])  # the last two share theirs
SIZES = [3, 2, 2]


@pytest.fixture
def small() -> Catalog:
    rng = np.random.default_rng(3)
    return catalog_of(rng.integers(6, size=(30, 7)).tolist(), list("abcdef"))


def test_scores_of_sids_are_products_of_level_probabilities(small):
    model, valid = fitted(VARIABLE, SIZES, small)
    scores = model.sid_scores(model.history_vector(valid.take(slice(0, 3))[0]), model.prefix_logits())  # (3, 5)
    sids = model.prefixes[:, -1]
    vectors = dict(zip(("recent", "last", "earlier"), (model.recent, model.last, model.earlier), strict=True))
    for row, item in itertools.product(range(3), range(6)):
        history = small.examples("valid").history(row)
        tokens = [[code + 3 * (level > 0) + 2 * (level > 1) for level, code in enumerate(VARIABLE[i]) if code >= 0]
                  for i in history]  # fmt: skip
        h = sum(vectors["recent"][t].sum(0) for t in tokens) / len(tokens) + vectors["last"][tokens[-1]].sum(0)
        expected = 1.0
        for level, code in enumerate(VARIABLE[item][VARIABLE[item] >= 0]):
            start = sum(SIZES[:level])
            block = slice(start, start + SIZES[level])
            p = model.prefix[level][model.prefixes[item, level]]
            for earlier in range(level):
                p = p + vectors["earlier"][sum(SIZES[:earlier]) + VARIABLE[item, earlier]]
            expected *= (model.weight[block] @ (h + p) + model.bias[block]).softmax(0)[code].item()
        assert scores[row, sids[item]].exp().item() == pytest.approx(expected, rel=1e-5)


def test_both_ways_to_a_target_agree(small):
    model, valid = fitted(VARIABLE, SIZES, small)
    histories, items = valid.take(slice(None))
    scores = model.sid_scores(model.history_vector(histories), model.prefix_logits())
    own = scores.gather(1, model.prefixes[items, -1][:, None])
    assert -own.mean().item() == pytest.approx(_cross_entropy(model, valid).sum(), rel=1e-5)
    assert (scores.exp().sum(dim=1) < 1).all()  # the rest is of codes that no item has


@settings(derandomize=True, max_examples=50, deadline=None)
@given(terms=hnp.arrays(np.float64, st.tuples(st.integers(2, 5), st.integers(1, 6)), elements=st.floats(-150, 150)))
def test_normalisers_as_a_product_are_those_of_the_sums(terms):
    of_history, of_prefix = torch.from_numpy(terms[:2]), torch.from_numpy(terms)
    expected = (of_history[:, None] + of_prefix).logsumexp(dim=2)
    torch.testing.assert_close(log_sum_exp_of_sums(of_history, of_prefix), expected)


def test_the_end_of_a_shorter_sid_costs_nothing(small):
    untrained = run(small, VARIABLE, epochs=0)
    targets = small.examples("valid").targets
    shares = [(VARIABLE[targets, level] >= 0).mean() for level in range(3)]
    np.testing.assert_allclose(untrained.cross_entropy, np.array(shares) * np.log(SIZES), rtol=1e-6)
    assert 0 < shares[2] < shares[1] < 1
    assert untrained.item_cross_entropy == pytest.approx(untrained.lp + (targets > 3).mean() * np.log(2))


def test_positions_are_those_of_a_sort(small, monkeypatch):
    model, valid = fitted(VARIABLE, SIZES, small)
    monkeypatch.setattr("probe.SCORES", 40)  # several batches
    position = _positions(model, valid)
    histories, items = valid.take(slice(None))
    scores = model.sid_scores(model.history_vector(histories), model.prefix_logits())[:, model.prefixes[:, -1]]
    for row, target in enumerate(items.tolist()):
        order = scores[row].argsort(descending=True, stable=True).tolist()
        group = {4, 5} if target in (4, 5) else {target}
        assert position.start[row] == min(order.index(item) for item in group)
        assert position.size[row] == len(group)


def test_targets_and_left_contexts_by_hand():
    catalog = catalog_of([[3, 1, 2, 0, 1], [2, 0, 3, 1, 0]], list("abcd"))  # trained on 3 1 2 and 2 0 3
    histories, items = Targets.of(catalog.train, torch.device("cpu"), every=True).take(slice(None))
    assert items.tolist() == [1, 2, 0, 3]
    assert histories[:, :3].tolist() == [[3, -1, -1], [1, 3, -1], [2, -1, -1], [0, 2, -1]]
    histories, items = Targets.of(catalog.examples("valid"), torch.device("cpu")).take(slice(None))
    assert items.tolist() == [0, 1]
    assert histories[:, :4].tolist() == [[2, 1, 3, -1], [3, 0, 2, -1]]


def test_a_history_is_cut_to_its_last_ten_items():
    catalog = catalog_of([[*range(15), 0, 0]], [str(row) for row in range(15)])
    histories, _ = Targets.of(catalog.examples("valid"), torch.device("cpu")).take(slice(None))
    assert histories.tolist() == [list(range(14, 4, -1))]


def test_shared_sids_pay_in_nats_and_share_the_credit(planted):
    halved = PLANTED // [1, 2]  # two items to a SID
    shared, distinct = run(planted, halved), run(planted, np.insert(halved, 2, PLANTED[:, 1] % 2, axis=1))
    assert shared.lp < distinct.lp
    assert shared.item_cross_entropy == pytest.approx(shared.lp + np.log(2))
    assert distinct.item_cross_entropy == distinct.lp
    untrained = run(planted, halved, epochs=0)
    assert untrained.recall_at_50 == pytest.approx(50 / NUM_ITEMS)


def test_only_the_first_sid_of_an_item_counts(planted):
    rows = np.concatenate([np.arange(NUM_ITEMS), np.arange(NUM_ITEMS)])
    extra = SidTable(IDS, np.concatenate([PLANTED, PLANTED[::-1]]), rows)
    assert probe(planted, extra, device="cpu", epochs=1) == run(planted, PLANTED, epochs=1)


def test_test_rows_are_never_read(planted, monkeypatch):
    other = catalog_of(
        planted_sequences(), IDS, test_targets=list(np.random.default_rng(9).integers(NUM_ITEMS, size=250))
    )
    assert other.examples("test").targets.tolist() != planted.examples("test").targets.tolist()
    asked, examples = [], Catalog.examples
    monkeypatch.setattr(Catalog, "examples", lambda self, split: asked.append(split) or examples(self, split))
    assert run(other, PLANTED, epochs=1) == run(planted, PLANTED, epochs=1)
    assert set(asked) <= {"train", "valid"}


def test_valid_rows_do_not_shape_the_fit(planted):
    split = planted._split
    valid = split.filter(pa.compute.equal(split["split"], "valid"))
    twice = Catalog(planted.items, pa.concat_tables([split, valid]))
    once, both = run(planted, PLANTED, epochs=1), run(twice, PLANTED, epochs=1)
    np.testing.assert_allclose(both.cross_entropy, once.cross_entropy, rtol=1e-6)
    assert both.recall_at_50 == pytest.approx(once.recall_at_50)


def test_same_seed_same_numbers(planted):
    first, again, other = (run(planted, PLANTED, epochs=1, seed=seed) for seed in (4, 4, 5))
    assert first == again
    assert first.cross_entropy != other.cross_entropy


def test_ranked_rows_can_be_fewer(planted):
    some = run(planted, PLANTED, epochs=1, max_ranked=40)
    assert some.num_ranked == 40
    assert some.cross_entropy == run(planted, PLANTED, epochs=1).cross_entropy


def test_refuses_a_table_of_other_items(planted):
    with pytest.raises(ValueError, match=r"143 items but 'catalog' has 144; first missing: \['item-143'\]"):
        probe(planted, SidTable(IDS[:-1], PLANTED[:-1]))
    with pytest.raises(ValueError, match="in another order"):
        probe(planted, SidTable(IDS[::-1], PLANTED))


def test_refuses_a_catalogue_without_targets_or_valid_rows():
    rows = [{"user_id": "u", "split": "train", "history": [], "target": "a"}]
    schema = pa.schema([("user_id", pa.string()), ("split", pa.string()), ("history", pa.list_(pa.string())),
                        ("target", pa.string())])  # fmt: skip
    empty = Catalog(pa.table({"item_id": ["a"], "title": ["a"]}), pa.Table.from_pylist(rows, schema))
    with pytest.raises(ValueError, match=r"no training targets.*; 'catalog' has no 'valid' examples"):
        probe(empty, SidTable(["a"], np.array([[0]])))


def test_refuses_options_that_measure_nothing(planted):
    with pytest.raises(ValueError, match="epochs is -1 and max_ranked 0"):
        run(planted, PLANTED, epochs=-1, max_ranked=0)

"""Properties of answers: right whatever is asked, whoever asks beside it, and however often."""

from __future__ import annotations

import gc
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.decoding.ranker import MAX_DECODERS
from llmrec.model.checkpoint import SidConfig
from llmrec.model.prompts import Prompt
from llmrec.recommender import Recommender
from llmrec.sid.catalogs.catalog_record import CatalogRecord
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from tests.conftest import CODES, tiny_llm, word_tokenizer

IDS = [f"item-{row}" for row in range(12)]
NEW = set(IDS[:3])
items = st.sampled_from(IDS)
item_lists = st.lists(items, max_size=14)
histories = st.lists(st.lists(items, min_size=1, max_size=12), max_size=6)
# Values that are no part of any request, in the place of one that is.
junk = st.one_of(
    st.none(), st.booleans(), st.floats(), st.integers(max_value=0), st.text(max_size=3), st.binary(max_size=3),
    st.lists(st.integers(), min_size=1, max_size=3), st.dictionaries(st.text(max_size=2), st.integers(), min_size=1),
    st.lists(st.lists(st.text(max_size=3), min_size=1), min_size=1, max_size=2), st.just(object()),
)  # fmt: skip


@pytest.fixture(scope="module")
def recommender(tuned):
    return Recommender.from_pretrained(tuned, device="cpu")


@pytest.fixture(scope="module", params=["sid", "items", "mixture"])
def ranked(request, tuned) -> Recommender:
    """A random model with item rows, which ranks in each of the three ways, and of whose items a quarter is new."""
    tokenizer = word_tokenizer()
    table = SidTable(IDS, CODES, level_sizes=[4, 4, 4])
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes, num_items=12)
    record = CatalogRecord(np.arange(12, dtype=np.uint64), np.arange(12) // 3)
    sid_config = SidConfig(vocabulary, Prompt(), 5, "vocabulary")
    return Recommender(tiny_llm(len(tokenizer)), tokenizer, table, sid_config, rank=request.param, record=record)


@st.composite
def requests(draw) -> dict:
    users = draw(histories)
    own = st.lists(st.none() | item_lists, min_size=len(users), max_size=len(users))
    asked = {
        "histories": users,
        "k": draw(st.one_of(st.integers(1, 15), st.just(10**30), st.just(np.int64(4)))),
        "exclude": draw(st.one_of(st.just("seen"), st.none(), item_lists, own)),
        "allow": draw(st.one_of(st.none(), st.lists(items, min_size=1, max_size=12), own)),
        "batch_size": draw(st.sampled_from([1, 2, 32, np.int32(3)])),
    }
    if draw(st.booleans()):
        asked["num_beams"] = draw(st.integers(min(asked["k"], 12), 200))
    return asked


def permitted(asked: dict) -> list[set[str]]:
    """The items that each user may get."""
    count, exclude, allow = len(asked["histories"]), asked["exclude"], asked["allow"]
    is_one = isinstance(exclude, list) and all(isinstance(entry, str) for entry in exclude)
    barred = [set() for _ in range(count)]
    if exclude == "seen" or is_one:
        barred = [set(history) | set(exclude if is_one else ()) for history in asked["histories"]]
    elif exclude is not None:
        barred = [set(own or ()) for own in exclude]
    if allow is None or not count:
        allow = [None] * count
    elif allow and all(isinstance(entry, str) for entry in allow):
        allow = [allow] * count
    return [set(IDS if own is None else own) - each for own, each in zip(allow, barred, strict=True)]


@settings(max_examples=150, deadline=None)
@given(asked=requests())
def test_an_answer_has_k_items_where_k_are_permitted_and_no_other(recommender, asked):
    found, scores = recommender.recommend(**asked)
    assert len(found) == len(scores) == len(asked["histories"])
    for answer, points, allowed in zip(found, scores, permitted(asked), strict=True):
        assert set(answer) <= allowed and len(set(answer)) == len(answer) == min(asked["k"], len(allowed))
        assert points == sorted(points, reverse=True) and np.isfinite(points).all() and len(points) == len(answer)


@settings(max_examples=60, deadline=None)
@given(asked=requests(), min_new=st.integers(0, 4))
def test_new_items_get_their_places_by_every_ranking(ranked, asked, min_new):
    """As many as are permitted, among k permitted items that are sorted by score; users without a history included."""
    asked["histories"] = [history[1:] for history in asked["histories"]]
    min_new = min(min_new, asked["k"])
    found, scores = ranked.recommend(**asked, min_new=min_new)
    for answer, points, allowed in zip(found, scores, permitted(asked), strict=True):
        assert set(answer) <= allowed and len(set(answer)) == len(answer) == min(asked["k"], len(allowed))
        assert points == sorted(points, reverse=True) and np.isfinite(points).all()
        assert len(NEW.intersection(answer)) >= min(min_new, len(NEW & allowed))


@settings(max_examples=300, deadline=None)
@given(asked=requests(), name=st.sampled_from(["histories", "k", "exclude", "allow", "num_beams", "batch_size"]),
       wrong=junk)  # fmt: skip
def test_a_request_with_one_wrong_value_is_answered_or_refused_with_a_sentence(recommender, asked, name, wrong):
    """Nothing but ValueError, before the model runs."""
    backbone, calls = recommender.model.model, []
    forward = backbone.forward

    def counted(*args, **kwargs):
        calls.append(1)
        return forward(*args, **kwargs)

    backbone.forward = counted
    try:
        recommender.recommend(**asked | {name: wrong})
    except ValueError as error:
        assert not calls and str(error).endswith(".") and "\n" not in str(error), error
    finally:
        del backbone.forward


@settings(max_examples=60, deadline=None)
@given(asked=requests(), data=st.data())
def test_users_asked_in_another_order_get_the_same_answers(recommender, asked, data):
    """Bit for bit the same items; scores within the rounding of another batch."""
    order = data.draw(st.permutations(range(len(asked["histories"]))))
    found, scores = recommender.recommend(**asked)
    moved = dict(asked, histories=[asked["histories"][user] for user in order])
    for name in ("exclude", "allow"):
        lists = asked[name]
        if isinstance(lists, list) and lists and not all(isinstance(entry, str) for entry in lists):
            moved[name] = [lists[user] for user in order]
    again, points = recommender.recommend(**moved)
    assert again == [found[user] for user in order]
    for one, user in zip(points, order, strict=True):
        assert one == pytest.approx(scores[user], rel=1e-4, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(asked=requests(), batch_size=st.integers(1, 7))
def test_the_size_of_batches_changes_no_answer(recommender, asked, batch_size):
    found, scores = recommender.recommend(**asked)
    again, points = recommender.recommend(**asked | {"batch_size": batch_size})
    assert again == found
    assert all(one == pytest.approx(other, rel=1e-4, abs=1e-5) for one, other in zip(points, scores, strict=True))


def test_threads_get_the_answers_that_one_caller_gets(recommender):
    rng = np.random.default_rng(0)
    asked = [
        {"histories": [[IDS[row] for row in rng.integers(0, 12, 3)] for _ in range(rng.integers(1, 5))],
         "k": int(rng.integers(1, 12)), "exclude": [IDS[rng.integers(12)]], "num_beams": int(rng.integers(12, 40))}
        for _ in range(64)
    ]  # fmt: skip
    alone = [recommender.recommend(**each) for each in asked]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda each: recommender.recommend(**each), asked))
    assert together == alone


def test_memory_stays_bounded_over_calls_with_every_beam_width(tuned):
    """Decoders of beam widths that nobody asks for any more are dropped, and nothing else is kept."""
    recommender = Recommender.from_pretrained(tuned, device="cpu")

    def ask(number: int) -> None:
        width = 1 + number % 11
        recommender.recommend([["item-1", "item-2"]], k=1, num_beams=width, allow=IDS[number % 5 :], exclude=IDS[:2])

    for number in range(22):
        ask(number)
    gc.collect()
    tracemalloc.start()
    try:
        ask(0)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(110):
            ask(number)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(recommender.ranker._decoders) == MAX_DECODERS
    assert grown < 100_000  # bytes


@pytest.mark.parametrize("k", [1, 3, 4])
def test_items_with_several_sids_fill_k_places(recommender, k):
    """4 items with 14 SIDs between them: the beam counts SIDs, of which one item may own the best eleven."""
    rng, aliased = np.random.default_rng(0), []
    for _ in range(20):
        places = rng.permutation(64)[:14]
        codes = np.stack([places // 16, places // 4 % 4, places % 4], axis=1)
        rows = np.concatenate([np.arange(4), rng.choice(4, 10, p=[0.85, 0.05, 0.05, 0.05])])
        aliased.append(SidTable(IDS[:4], codes, item_rows=rows, level_sizes=[4, 4, 4]))
    for table in aliased:
        one = Recommender(recommender.model, recommender.tokenizer, table, recommender.sid_config)
        found = one.recommend([["item-0"], ["item-1", "item-2"]], k=k, exclude=None)[0]
        assert [len(set(answer)) for answer in found] == [k, k]

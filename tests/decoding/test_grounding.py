"""Grounding: distances and popularity by hand, vectors as the model has them, and every item in its place."""

import numpy as np
import pytest
import torch

from llmrec import SidConfig, SidTable, SidVocabulary
from llmrec.data.examples import Examples
from llmrec.decoding.grounding.popularity import POWERS, choose_power, inject
from llmrec.decoding.grounding.ranker import GroundedRanker
from llmrec.model.backbone import run_backbone
from llmrec.model.prompts import Prompt
from llmrec.sid.table import EMPTY
from tests.conftest import tiny_llm

pytestmark = pytest.mark.usefixtures("one_thread")
END, EOS, PREFIX = 4, 3, [5, 6]
TITLES = [[7], [7, 8], [9], [9, 7, 8], [8, 8], [10]]


def ranker_of(popularity=None, power=0.0, titles=TITLES):
    table = SidTable.of_tokens([f"item-{row}" for row in range(len(titles))], [[*title, END] for title in titles])
    vocabulary = SidVocabulary.of_words(table.words, EOS)
    sid_config = SidConfig(vocabulary, Prompt("x"), 5, "vocabulary", length_penalty=1.0)
    return GroundedRanker(tiny_llm(30), table, sid_config, PREFIX, popularity, power)


def test_popularity_by_hand():
    """Distances 2, 3, 4 and 6 are 0, .25, .5 and 1; popularity 0, 1, .25 and .5 halves the second one, and so on."""
    distances, popularity = torch.tensor([[2.0, 3.0, 4.0, 6.0]]), torch.tensor([10.0, 50.0, 20.0, 30.0])
    expected = {0: [0, 0.25, 0.5, 1], 1: [0, 0.125, 0.4, 0.6667], 2: [0, 0.0625, 0.32, 0.4444]}
    for power, values in expected.items():
        assert inject(distances, popularity, power)[0].tolist() == pytest.approx(values, abs=1e-4)
    assert inject(distances, None, 2)[0].tolist() == pytest.approx(expected[0])


@pytest.mark.parametrize("power", POWERS)
def test_the_nearest_item_stays_first(power):
    generator = torch.Generator().manual_seed(0)
    distances, popularity = torch.rand(50, 20, generator=generator), torch.rand(20, generator=generator) * 99
    assert inject(distances, popularity, power).argmin(dim=1).equal(distances.argmin(dim=1))


def test_equal_distances_and_equal_popularity_are_no_division_by_zero():
    assert inject(torch.ones(2, 3), torch.ones(3), 2.0).tolist() == [[0.0] * 3] * 2


def test_the_power_is_the_least_that_ranks_the_targets_best():
    distances, popularity = torch.tensor([[0.0, 1.0, 0.9, 2.0]]), torch.tensor([0.0, 9.0, 0.0, 0.0])
    assert choose_power(distances, popularity, torch.tensor([1]), cutoff=2) == 0.25
    assert choose_power(distances, popularity, torch.tensor([2]), cutoff=2) == 0


def test_vectors_are_means_of_the_states_of_titles_alone():
    ranker = ranker_of()
    for row, title in enumerate(TITLES):
        with torch.no_grad():
            states = run_backbone(ranker.model, input_ids=torch.tensor([title])).last_hidden_state[0]
        torch.testing.assert_close(ranker.vectors_ND[row], states.mean(dim=0), atol=1e-5, rtol=1e-5)
    written = torch.tensor([[9, 7, 8, END, 11], [7, END, END, END, END], [8, 8, EMPTY, EMPTY, EMPTY]])
    torch.testing.assert_close(ranker.embed(written), ranker.vectors_ND[[3, 0, 4]], atol=1e-5, rtol=1e-5)


def test_what_is_written_is_what_generate_writes():
    """Of two histories of different lengths at once, and of each alone; a title ends with its end."""
    ranker = ranker_of()
    histories = [np.array([0, 3]), np.array([5])]
    together = ranker.write(histories)
    assert together.shape[1] <= 4
    for row, history in enumerate(histories):
        alone = ranker.write([history])[0].tolist()
        assert together[row, : len(alone)].tolist() == alone
        prompt = [*PREFIX, *(token for item in history for token in [*TITLES[item], END])]
        output = ranker.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), num_beams=4,
            max_new_tokens=4, do_sample=False, eos_token_id=END, pad_token_id=END, length_penalty=1.0,
            early_stopping=False,
        )  # fmt: skip
        assert output[0, len(prompt) :].tolist() == alone


def test_all_items_are_ranked_by_their_distance(monkeypatch):
    ranker = ranker_of()
    monkeypatch.setattr(ranker, "write", lambda histories: torch.tensor([[*TITLES[3], END]] * len(histories)))
    histories = [np.array([0]), np.array([1, 2])]
    ranking = ranker.rank(histories, k=6)
    distances = (ranker.vectors_ND - ranker.vectors_ND[3]).norm(dim=1)
    assert ranking.items[0].tolist() == distances.argsort().tolist()
    assert ranking.items[0, 0] == 3
    barred = ranker.rank(histories, 6, exclude=[np.array([3]), np.array([], int)], allow=[None, [1, 4]])
    assert barred.items[0].tolist()[:5] == [item for item in distances.argsort().tolist() if item != 3]
    assert set(barred.items[1].tolist()[:2]) == {1, 4}
    assert (barred.items[1, 2:] < 0).all()


def test_the_power_of_a_ranker_comes_from_valid_examples(monkeypatch):
    examples = Examples(["a", "b", "c"], np.array([0, 1, 2]), np.array([0, 1, 2, 3]), np.array([5, 5, 5]))
    ranker = ranker_of(np.array([0, 1, 0, 2, 0, 90]))
    far = torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0, 1.2]])
    monkeypatch.setattr(ranker, "distances", lambda histories: far.repeat(len(histories), 1))
    assert ranker.choose_power(examples, batch_size=2) > 0
    assert ranker.power == ranker.choose_power(examples)
    assert ranker_of().choose_power(examples) == 0  # popularity is not known


def test_semantic_ids_are_refused(sid_table, llm, vocabulary):
    sid_config = SidConfig(vocabulary, Prompt("x"), 5, "vocabulary")
    with pytest.raises(ValueError, match="rank 'ground' looks up titles"):
        GroundedRanker(llm, sid_table, sid_config, PREFIX)

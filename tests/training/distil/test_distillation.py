"""Tree distillation in the loss of sft: against a slow computation, packed and padded, and with drawn answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.baselines.queries import Queries
from llmrec.model.backbone import logits, run_backbone
from llmrec.model.history.choice import make_history_encoder
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.sid.aliases import aliases_of, join_aliases
from llmrec.sid.table import EMPTY, SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.distil.batch import NO_QUERY, BatchQueries
from llmrec.training.distil.code_targets import AliasTargets
from llmrec.training.distil.distillation import Distillation
from llmrec.training.distil.query_collator import QueryCollator
from llmrec.training.sft.captured_step import CapturedLoss
from llmrec.training.sft.examples import HistoryCollator, build_dataset
from llmrec.training.sft.losses import IGNORED, sid_loss_in_forward
from tests.conftest import CODES, tiny_llm
from tests.training.sft.test_captured_step import Eager

CPU = torch.device("cpu")
PREFIX, PAD, SMOOTHING = [4, 5], 0, 0.1
SEQUENCES = [np.array([0, 3, 5, 7]), np.array([2]), np.arange(11, 4, -1), np.array([1, 8])]


class Table:
    """A teacher whose answer depends on the last item and the number of items before the answer."""

    exclude_seen = True

    def __init__(self, num_items: int):
        self.logits = torch.randn(num_items + 1, num_items, generator=torch.Generator().manual_seed(3))

    def probabilities(self, queries: Queries, exclude_seen: bool, temperature: float = 1.0) -> torch.Tensor:
        assert not torch.is_autocast_enabled("cpu")
        last = queries.items[queries.sequence, (queries.length - 1).clamp(min=0)]
        scores = (
            self.logits[torch.where(queries.length > 0, last + 1, 0)] / temperature + queries.length.unsqueeze(1) / 9
        )
        if exclude_seen:
            items = queries.items[queries.sequence]
            seen = torch.arange(items.shape[1]) < queries.length.unsqueeze(1)
            hidden = torch.zeros_like(scores, dtype=torch.long).scatter_add(1, items, seen.long()) > 0
            scores = scores.masked_fill(hidden, -torch.inf)
        return scores.softmax(dim=1)


def ragged() -> SidTable:
    """The table of the tests, with some semantic IDs cut short."""
    codes = np.array(CODES)
    codes[[3, 6, 11], 2] = EMPTY  # no other one begins with these two codes
    return SidTable([f"item{row}" for row in range(len(codes))], codes, level_sizes=[4, 4, 4][: codes.shape[1]])


def collator_of(table, vocabulary, packing=True, drawn_answers=False) -> QueryCollator:
    return QueryCollator(
        PREFIX, make_history_encoder(table, vocabulary), PAD, packing=packing, seed=1, drawn_answers=drawn_answers
    )


def distillation_of(table, vocabulary, weight=0.4) -> Distillation:
    tokens = torch.from_numpy(make_history_encoder(table, vocabulary).tokens_ANL)
    targets = AliasTargets(table, vocabulary.level_sizes, CPU)
    return Distillation(Table(table.num_items), targets, tokens, weight, 1.5, True, PAD)


def examples_of(max_history=5, targets="every_item") -> list:
    return build_dataset(SEQUENCES, max_history, targets).to_list()


def test_queries_by_hand(sid_table, vocabulary):
    batch = collator_of(sid_table, vocabulary, packing=False)(
        build_dataset([np.array([7, 8]), np.array([1, 2, 3])], 5, "every_item").to_list()
    )
    queries = BatchQueries(**batch["queries"])
    assert queries.items.tolist() == [[7, 8], [1, 2]]
    assert queries.sequence.tolist() == [0, 0, 1, 1, 1]
    assert queries.length.tolist() == [0, 1, 0, 1, 2]
    assert queries.answers.tolist() == [7, 8, 1, 2, 3]
    assert (queries.user.tolist(), queries.start.tolist()) == ([0, 1], [0, 0])
    none = [NO_QUERY] * 2
    assert queries.query_of.tolist() == [[*none, 0, 0, 0, 1, 1, 1, -1, -1, -1], [*none, 2, 2, 2, 3, 3, 3, 4, 4, 4]]
    assert queries.drawn_places.shape == (0, 3)


def test_a_window_knows_its_place_in_the_sequence(sid_table, vocabulary):
    examples = build_dataset([np.arange(2), np.arange(12)], 3, "every_item").to_list()
    queries = BatchQueries(**collator_of(sid_table, vocabulary)(examples)["queries"])
    for window, user, start in zip(queries.items, queries.user, queries.start, strict=True):
        assert window[0] == start and (user == 1 or start == 0)  # the sequences count from 0
    places = queries.start[queries.sequence] + queries.length
    assert torch.equal(places, queries.answers)
    assert sorted(places[queries.user[queries.sequence] == 1].tolist()) == list(range(12))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("cut_short", [True, False])
def test_a_batch_without_draws_is_that_of_sft(sid_table, vocabulary, packing, cut_short):
    """Labels belong to the query of their item, and nothing else does."""
    table = ragged() if cut_short else sid_table
    collator = collator_of(table, vocabulary, packing)
    batch = collator(examples_of())
    plain = HistoryCollator(PREFIX, collator.encoder, PAD, packing)(examples_of())
    queries = BatchQueries(**batch.pop("queries"))
    assert batch.keys() == plain.keys()
    assert all(torch.equal(batch[name], plain[name]) for name in plain)
    assert torch.equal(queries.query_of != NO_QUERY, batch["labels"] != IGNORED)
    for query, answer in enumerate(queries.answers.tolist()):
        tokens = collator.encoder.tokens_NL[answer]
        assert batch["labels"][queries.query_of == query].tolist() == tokens[tokens != EMPTY].tolist()


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("cut_short", [True, False])
def test_drawn_answers_continue_their_window(sid_table, vocabulary, packing, cut_short):
    table = ragged() if cut_short else sid_table
    collator, distillation = collator_of(table, vocabulary, packing, True), distillation_of(table, vocabulary)
    batch = collator(examples_of())
    queries = BatchQueries(**batch["queries"])
    torch.manual_seed(0)
    ids, labels, codes, answers, probabilities = distillation.teach(batch["input_ids"], batch["labels"], queries)
    drawn = codes.is_drawn.nonzero().flatten()
    assert len(drawn) == 4, "one for each example with a target that has an item before it"
    for query in drawn.tolist():
        assert probabilities[query, answers[query]] > 0
        own = queries.query_of == query
        tokens = collator.encoder.tokens_NL[answers[query]]
        tokens = tokens[tokens != EMPTY].tolist()
        assert labels[own].tolist() == tokens + [IGNORED] * (int(own.sum()) - len(tokens))
        row, place = (own.nonzero()[0]).tolist()
        window = queries.items[queries.sequence[query], : queries.length[query]].numpy()
        before = [*PREFIX, *collator.encoder.encode_history(window).tolist()]
        assert ids[row, place - len(before) : place + len(tokens)].tolist() == before + tokens
    assert torch.equal(labels != IGNORED, (batch["labels"] != IGNORED) | (labels != batch["labels"]))


def aliased() -> SidTable:
    """Two aliases with codes of their own."""
    codes = np.array(CODES)
    return join_aliases([f"item{row}" for row in range(12)], [codes, codes[::-1, ::-1]], [4, 4, 4], share_codes=False)


def test_windows_and_drawn_answers_are_written_in_one_alias(tokenizer):
    table = aliased()
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes)
    collator, distillation = collator_of(table, vocabulary, False, True), distillation_of(table, vocabulary)
    seen = set()
    for epoch in range(3):
        collator.epoch = epoch
        batch = collator(examples_of())
        queries = BatchQueries(**batch["queries"])
        ids, labels, _, answers, _ = distillation.teach(batch["input_ids"], batch["labels"], queries)
        for query, (alias, answer) in enumerate(zip(queries.alias.tolist(), answers.tolist(), strict=True)):
            one = SidHistoryEncoder(aliases_of(table)[alias], vocabulary)
            own, tokens = queries.query_of == query, one.tokens_NL[answer].tolist()
            assert labels[own].tolist() == tokens
            row, place = (own.nonzero()[0]).tolist()
            window = queries.items[queries.sequence[query], : queries.length[query]].numpy()
            before = [*PREFIX, *one.encode_history(window).tolist()]
            assert ids[row, place - len(before) : place + len(tokens)].tolist() == before + tokens
            seen.add(alias)
    assert seen == {0, 1}


@pytest.mark.parametrize("normalize_over", ["level", "vocabulary"])
def test_the_loss_of_a_window_is_that_of_its_alias_by_the_definition(tokenizer, normalize_over):
    table = aliased()
    vocabulary = SidVocabulary.add_to(tokenizer, table.level_sizes)
    llm, examples = tiny_llm(len(tokenizer)), examples_of(5)
    collator, distillation = collator_of(table, vocabulary), distillation_of(table, vocabulary)
    collator.epoch = 2
    with torch.no_grad(), sid_loss_in_forward(llm, vocabulary, normalize_over, SMOOTHING, teach=distillation.teach):
        found = float(llm(**collator(examples)).loss)
    drawn = collator.encoder.draw_aliases(len(examples), collator.rngs(examples)).tolist()
    assert set(drawn) == {0, 1}
    total = count = 0
    for example, alias in zip(examples, drawn, strict=True):
        one, targets = aliases_of(table)[alias], len(example["rows"]) - example["num_context"]
        total += targets * slow_loss(llm, one, vocabulary, distillation, [example], normalize_over)
        count += targets
    assert found == pytest.approx(total / count, rel=1e-5)


def test_draws_differ_between_epochs_and_repeat_within_one(sid_table, vocabulary):
    collator = collator_of(sid_table, vocabulary, drawn_answers=True)
    lengths = []
    for epoch in (0, 0, 1, 2, 3):
        collator.epoch = epoch
        queries = BatchQueries(**collator(examples_of(9))["queries"])
        lengths.append(queries.length[-3:].tolist())
    assert lengths[0] == lengths[1] and len(set(map(tuple, lengths))) > 1


@torch.no_grad()
def slow_loss(model, table, vocabulary, distillation, examples, normalize_over) -> float:
    """The loss of the data's targets, one code after another, by the definition."""
    encoder, total, count = SidHistoryEncoder(table, vocabulary), 0.0, 0
    for example in examples:
        rows = example["rows"]
        for place in range(example["num_context"], len(rows)):
            window = torch.tensor([rows])
            one = torch.tensor([0])
            queries = Queries(window, one, torch.tensor([place]), one, one)
            probabilities = distillation.teacher.probabilities(queries, True, distillation.temperature)[0].numpy()
            answer = rows[place]
            own = [code for code in table.codes([answer])[0] if code != EMPTY]
            tokens = vocabulary.token_ids(np.array(own))
            ids = [*PREFIX, *encoder.encode_history(np.array(rows[:place], int)), *tokens]
            states = run_backbone(model, input_ids=torch.tensor([ids])).last_hidden_state[0]
            for level in range(len(own)):
                block = vocabulary.rows(level, CPU)
                size = table.level_sizes[level]
                scores = logits(model, states[len(ids) - len(own) + level - 1], None)
                log_probs = (scores if normalize_over == "vocabulary" else scores[block]).log_softmax(-1)
                masses = np.zeros(size)
                for codes, row in zip(table.all_codes, table.item_rows, strict=True):
                    if codes[level] != EMPTY and (codes[:level] == own[:level]).all():
                        masses[codes[level]] += probabilities[row]
                target = tokens[level] if normalize_over == "vocabulary" else own[level]
                plain = -(1 - SMOOTHING) * log_probs[target] - SMOOTHING * log_probs.mean()
                weight = distillation.weight if masses.sum() > 0 else 0.0
                codes_log_probs = log_probs[block] if normalize_over == "vocabulary" else log_probs
                taught = -(torch.tensor(masses / max(masses.sum(), 1e-30)) * codes_log_probs).sum()
                total += float((1 - weight) * plain + weight * taught)
                count += 1
    return total / count


@pytest.mark.parametrize("normalize_over", ["level", "vocabulary"])
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("cut_short", [True, False])
def test_loss_equals_the_definition(llm, sid_table, vocabulary, normalize_over, packing, cut_short):
    table = ragged() if cut_short else sid_table
    distillation, examples = distillation_of(table, vocabulary), examples_of(5)
    batch = collator_of(table, vocabulary, packing)(examples)
    with (
        torch.no_grad(),
        sid_loss_in_forward(llm, vocabulary, normalize_over, SMOOTHING, teach=distillation.teach),
        torch.autocast("cpu", torch.bfloat16, enabled=False),
    ):
        found = float(llm(**batch).loss)
    expected = slow_loss(llm, table, vocabulary, distillation, examples, normalize_over)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("packing", [True, False])
def test_titles_learn_the_sums_along_their_trie(llm, packing):
    """The words of titles that begin alike, where a word stands at several levels and in several titles."""
    end, titles = 9, [[6], [6, 7], [6, 7, 6], [7, 6], [7], [8, 8, 8], [6, 8], [8], [8, 6], [7, 7], [6, 6], [7, 8, 6]]
    table = SidTable.of_tokens([f"item{row}" for row in range(12)], [[*title, end] for title in titles])
    vocabulary = SidVocabulary.of_words(table.words, 3)
    distillation, examples = distillation_of(table, vocabulary), examples_of(5)
    batch = collator_of(table, vocabulary, packing)(examples)
    with torch.no_grad(), sid_loss_in_forward(llm, vocabulary, "vocabulary", SMOOTHING, teach=distillation.teach):
        found = float(llm(**batch).loss)
    expected = slow_loss(llm, table, vocabulary, distillation, examples, "vocabulary")
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_targets_of_one_example_each_have_the_same_loss(llm, sid_table, vocabulary):
    distillation = distillation_of(sid_table, vocabulary)
    losses = []
    for targets in ("every_item", "last_item"):
        batch = collator_of(sid_table, vocabulary)(examples_of(20, targets))
        with torch.no_grad(), sid_loss_in_forward(llm, vocabulary, "level", teach=distillation.teach):
            losses.append(float(llm(**batch).loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_all_drawn_answers_weigh_as_much_as_all_targets(llm, sid_table, vocabulary):
    """A model of zeros pays ln 4 for each code: (1 - w) + w at the targets, and w at the drawn answers."""
    with torch.no_grad():
        llm.get_output_embeddings().weight.zero_()
    batch = collator_of(sid_table, vocabulary, drawn_answers=True)(examples_of())
    teach = distillation_of(sid_table, vocabulary, 0.4).teach
    with torch.no_grad(), sid_loss_in_forward(llm, vocabulary, "level", teach=teach):
        assert float(llm(**batch).loss) == pytest.approx(1.4 * np.log(4), rel=1e-5)


def test_the_teacher_runs_outside_of_autocast(llm, sid_table, vocabulary):
    batch = collator_of(sid_table, vocabulary)(examples_of())
    teach = distillation_of(sid_table, vocabulary).teach
    with torch.autocast("cpu", torch.bfloat16), sid_loss_in_forward(llm, vocabulary, "level", teach=teach):
        llm(**batch).loss.backward()  # the teacher of the tests checks it
    assert llm.get_input_embeddings().weight.grad.isfinite().all()


def test_words_and_answers_of_tasks_learn_their_labels_alone(llm, sid_table, vocabulary):
    """A token without a query costs what it costs without a teacher."""
    batch = collator_of(sid_table, vocabulary)(examples_of())
    queries = {**batch.pop("queries"), "query_of": torch.full_like(batch["labels"], NO_QUERY)}
    teach = distillation_of(sid_table, vocabulary).teach
    with torch.no_grad(), sid_loss_in_forward(llm, vocabulary, "level", SMOOTHING, teach=teach):
        assert float(llm(**batch, queries=queries).loss) == pytest.approx(float(llm(**batch).loss), rel=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_captured_steps_have_the_same_gradients(monkeypatch, sid_table, vocabulary, architecture, tokenizer):
    """The arguments of a captured step, run without a graph, give the loss and the gradients of the plain step."""
    monkeypatch.setattr("llmrec.training.sft.captured_step.CudaGraphs", Eager)
    batch = collator_of(sid_table, vocabulary, drawn_answers=True)(examples_of())
    results = []
    for is_captured in (False, True):
        model = tiny_llm(len(tokenizer), architecture=architecture).train()
        captured = CapturedLoss(model, 3, (PAD, 0, IGNORED)) if is_captured else None
        teach = distillation_of(sid_table, vocabulary).teach
        torch.manual_seed(5)
        with sid_loss_in_forward(model, vocabulary, "level", SMOOTHING, captured, teach=teach):
            loss = model(**batch, num_items_in_batch=torch.tensor(42)).loss
            loss.backward()
        results.append((float(loss.detach()), model.get_input_embeddings().weight.grad))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1])

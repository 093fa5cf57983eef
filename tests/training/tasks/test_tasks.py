"""Alignment tasks: prompts and answers, law 1, random draws, and labels."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from llmrec.configs.tasks import SLOT, TASKS
from llmrec.data.catalog import Catalog
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.model.prompts import Prompt
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.training.sft.examples import HistoryCollator, add_draws, build_dataset
from llmrec.training.sft.losses import IGNORED, sid_loss_in_forward
from llmrec.training.tasks.cases import HistoryCases, Texts
from llmrec.training.tasks.examples import build_tasks
from llmrec.training.tasks.item_texts import task_problems
from tests.conftest import TITLES, tiny_llm, word_tokenizer
from tests.sid.test_ordinary_text import byte_level, unigram
from tests.support.extended import sft_config

property_test = settings(derandomize=True, max_examples=50, deadline=None)
GENRES = [["zzz", "fruit"], ["fruit"], ["fruit"], ["fruit"], ["fruit"], ["fruit"],
          ["drink", "hot"], ["drink", "hot"], ["drink", "hot"], ["drink"], ["drink"], None]  # fmt: skip


@pytest.fixture
def items(catalog) -> pa.Table:
    """The 12 items with genres, and with a text that says more than the title of the even ones."""
    texts = [f"{title}. very tasty" if row % 2 == 0 else title for row, title in enumerate(TITLES)]
    return catalog.items.set_column(2, "text", [texts]).append_column("genres", [GENRES])


@pytest.fixture
def rich(catalog, items) -> Catalog:
    return Catalog(items, catalog._split)


@pytest.fixture
def tokenizer():
    """Knows every word of the items and of the templates, whatever its case."""
    from tokenizers import normalizers

    templates = [template.replace(SLOT, " ; ") for task in TASKS.values() for template in task.templates]
    tokenizer = word_tokenizer([*TITLES, "very tasty fruit drink hot", *templates])
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


@pytest.fixture
def encoder(sid_table, vocabulary) -> SidHistoryEncoder:
    return SidHistoryEncoder(sid_table, vocabulary)


def built(catalog, tokenizer, *names: str, num_histories: int = 12, **options) -> dict:
    config = sft_config("", "", "", tasks=list(names), task_weights=[1.0] * len(names), **options)
    return build_tasks(config, catalog, tokenizer, num_histories)


def asked(task, tokenizer, encoder, epochs: int = 1, seed: int = 0) -> list[tuple[str, str]]:
    """Prompts and answers of whole epochs, as text with a space between tokens."""
    pairs = [task.draw(seed, epoch, index, encoder) for epoch in range(epochs) for index in range(task.num_draws)]
    return [tuple(" ".join(tokenizer.convert_ids_to_tokens(part)) for part in pair) for pair in pairs]


PLUM, PLUM_SID = "blue plum", "<a_0> <b_3> <c_2>"  # item 3


@pytest.mark.parametrize(
    ("name", "given", "answer"),
    [
        ("sid_to_title", PLUM_SID, f"{PLUM} <eos>"),
        ("title_to_sid", PLUM, PLUM_SID),
        ("description_to_sid", "very tasty", "<a_0> <b_1> <c_0>"),  # item 2
        # User 1 trains on items 1, 3 and 5; what he did after them is held out.
        ("titles_to_sid", f"green apple ; {PLUM}", "<a_1> <b_0> <c_0>"),
        ("sids_to_title", f"<a_0> <b_0> <c_1> {PLUM_SID}", "sweet melon <eos>"),
    ],
)
def test_task_examples_by_hand(rich, tokenizer, encoder, name, given, answer):
    """Its prompt is one of the templates, every one of which is drawn."""
    task = built(rich, tokenizer, name)[name]
    expected = {f"{t.split(SLOT)[0].lower()}{given} {t.split(SLOT)[1].strip().lower()}" for t in TASKS[name].templates}
    found = {prompt for prompt, found in asked(task, tokenizer, encoder, 30) if found == answer}
    assert expected == {prompt for prompt in found if f" {given} " in prompt and len(prompt) <= max(map(len, expected))}


@pytest.mark.parametrize("name", ["sid_to_title", "title_to_sid", "sids_to_title", "titles_to_sid", "category_to_sids"])
def test_items_are_shown_with_their_own_tokens_and_answered_without(rich, tokenizer, sid_table, name):
    vocabulary = SidVocabulary.add_to(tokenizer, sid_table.level_sizes, num_items=12)
    encoder, task = SidHistoryEncoder(sid_table, vocabulary), built(rich, tokenizer, name)[name]
    for prompt, answer in asked(task, tokenizer, encoder):
        assert "<|item_" not in answer and ("<a_" in prompt) == ("<|item_" in prompt) == name.startswith("sid")
        for row in map(int, re.findall(r"<\|item_(\d+)\|>", prompt)):
            sid = " ".join(tokenizer.convert_ids_to_tokens(encoder.encode_answer([row])))
            assert f"{sid} <|item_{row}|>" in prompt
        assert len(f"{prompt} {answer}".split(" ")) <= task.longest(vocabulary)


def test_a_category_names_a_few_of_its_items(rich, tokenizer, encoder):
    """Six fruits: three of them; three hot drinks: all three, in any order. The item of the case comes first. The first
    category of all is a word that the tokenizer does not know."""
    task = built(rich, tokenizer, "category_to_sids", num_histories=14)["category_to_sids"]
    members = {"fruit": range(6), "drink": range(6, 11), "hot": range(6, 9)}
    assert len(task.cases) == 14 and task.cases.num_left_out == 1
    sids = {row: " ".join(tokenizer.convert_ids_to_tokens(encoder.encode_history([row]))) for row in range(12)}
    for prompt, answer in asked(task, tokenizer, encoder, 10):
        category = next(name for name in members if f" {name} " in prompt)
        words = answer.split(" ")
        shown = [" ".join(words[i : i + 3]) for i in range(0, len(words), 3)]
        assert len(shown) == 3 and set(shown) <= {sids[row] for row in members[category]}
    answers = [task.cases.case(case, np.random.default_rng(seed))[1] for seed in range(9) for case in range(14)]
    assert [rows[0] for rows in answers] == [*range(11), 6, 7, 8] * 9
    assert all(len(set(rows)) == 3 for rows in answers)  # none twice


def test_prompts_begin_as_every_prompt_of_the_model_does(rich, tokenizer, encoder):
    tokenizer.add_bos_token = True
    task = built(rich, tokenizer, "title_to_sid")["title_to_sid"]
    opening = Prompt("Which semantic ID has the item").prefix(tokenizer)
    assert any(task.draw(0, 0, i, encoder)[0][: len(opening)].tolist() == opening for i in range(12))


def test_a_chat_template_wraps_the_question(rich, tokenizer, encoder):
    tokenizer.chat_template = "{% for m in messages %}red {{ m.content }} tea{% endfor %} black"
    task = built(rich, tokenizer, "title_to_sid", chat_template=True)["title_to_sid"]
    for prompt, answer in asked(task, tokenizer, encoder):
        assert prompt.startswith("red ") and answer.startswith("<a_")
        assert prompt.endswith(" black")


def test_texts_are_cut_and_only_whole_known_ones_are_answers(tokenizer):
    texts = Texts.encode(["red apple", "", "green tea very tasty", "red zzz", "zzz", "red"], tokenizer, 2)
    assert [ids.tolist() for ids in texts.tokens] == [
        tokenizer.convert_tokens_to_ids(words.split())
        for words in ("red apple", "", "green tea", "red <unk>", "<unk>", "red")
    ]
    assert texts.is_known.tolist() == [True, False, True, True, False, True]
    assert texts.is_answer.tolist() == [True, False, False, False, False, True]


def test_markup_in_a_text_is_no_special_token(tokenizer):
    """An end-of-text token in a title would end the prompt or the answer early; prompts are encoded as before."""
    before = tokenizer.encode("green tea<eos>")
    texts = Texts.encode(["green tea<eos>", "red<bos> apple"], tokenizer, 64)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert not special & set(np.concatenate(texts.tokens).tolist())
    assert texts.is_answer.tolist() == [False, False]  # the markup is of no word that this tokenizer knows
    assert tokenizer.encode("green tea<eos>") == before


def test_items_without_a_title_are_left_out_and_counted(catalog, tokenizer, encoder, capsys):
    titles = [None, " ", *TITLES[2:]]
    catalog = Catalog(catalog.items.set_column(1, "title", [titles]), catalog._split)
    tasks = built(catalog, tokenizer, "title_to_sid", "titles_to_sid", "sids_to_title")
    assert tasks["title_to_sid"].cases.rows.tolist() == list(range(2, 12))
    line = "task title_to_sid: 12 examples per epoch from 10 cases (2 left out: no whole text)"
    assert line in capsys.readouterr().err
    # Sequences 0 1 2, 1 3 5, 2 5 8, 3 4 5, 4 6 8, 5 8 11: two items of each come after another.
    cases = [tuple(map(list, tasks["titles_to_sid"].cases.case(i, None))) for i in range(9)]
    assert cases[0] == ([3], [5]) and cases[1:3] == [([2], [5]), ([2, 5], [8])]
    assert tasks["titles_to_sid"].cases.num_left_out == 3  # 1 and 2 after 0 (1), and 3 after 1
    assert tasks["sids_to_title"].cases.num_left_out == 1  # item 1 after 0


@property_test
@given(st.lists(st.lists(st.integers(0, 29), min_size=1, max_size=12), min_size=1, max_size=5), st.integers(1, 6))
def test_law_1_cases_are_runs_of_one_training_sequence(sequences, max_history):
    every = np.ones(30, dtype=bool)
    cases = HistoryCases([np.array(sequence) for sequence in sequences], max_history, every, every)
    expected = [
        (sequence[max(0, place - max_history) : place], [sequence[place]])
        for sequence in sequences
        for place in range(1, len(sequence))
    ]
    assert [tuple(map(list, cases.case(i, None))) for i in range(len(cases))] == expected


@property_test
@given(st.data(), st.integers(0, 2**32 - 1))
def test_law_1_no_held_out_item_in_a_drawn_history(data, seed):
    """Items 9 to 11 are held out of every training sequence: no question about histories shows or expects them."""
    train = data.draw(st.lists(st.lists(st.integers(0, 8), min_size=2, max_size=6), min_size=1, max_size=4))
    ids = [f"item-{row}" for row in range(12)]
    rows = [
        {"user_id": f"u{u}", "split": split, "history": [ids[i] for i in history], "target": ids[target]}
        for u, items in enumerate(train)
        for split, history, target in (
            ("train", items[:-1], items[-1]), ("valid", items, 9 + u % 3), ("test", [*items, 9 + u % 3], 11 - u % 3)
        )
    ]  # fmt: skip
    titles = [f"t{row}" for row in range(12)]
    catalog = Catalog(pa.table({"item_id": ids, "title": titles, "text": titles}), pa.Table.from_pylist(rows))
    tokenizer = word_tokenizer(titles)
    vocabulary = SidVocabulary.add_to(tokenizer, [12])
    encoder = SidHistoryEncoder(SidTable(ids, np.arange(12)[:, None], level_sizes=[12]), vocabulary)
    held_out = set(tokenizer.convert_tokens_to_ids(["t9", "t10", "t11"]))
    held_out |= set(encoder.encode_history([9, 10, 11]).tolist())
    for task in built(catalog, tokenizer, "titles_to_sid", "sids_to_title").values():
        for index in range(task.num_draws):
            assert not held_out & set(np.concatenate(task.draw(seed, 0, index, encoder)).tolist())


@pytest.mark.parametrize("num_draws", [1, 5, 12, 31])
def test_every_case_comes_equally_often(rich, tokenizer, num_draws):
    task = built(rich, tokenizer, "title_to_sid", num_histories=num_draws)["title_to_sid"]
    orders = [[task.case_of(3, epoch, index) for index in range(num_draws)] for epoch in range(12)]
    assert np.bincount(np.concatenate(orders), minlength=12).tolist() == [num_draws] * 12
    assert num_draws == 1 or orders[0] != orders[-1]


@property_test
@given(st.integers(0, 2**32 - 1), st.integers(0, 1000), st.integers(0, 10**6))
def test_a_draw_depends_on_seed_epoch_and_index(seed, epoch, index):
    """The same again; with other seeds, epochs or indices it may differ."""
    item_ids = [f"item-{row}" for row in range(12)]
    catalog = Catalog(
        pa.table({"item_id": item_ids, "title": TITLES}),
        pa.table({"user_id": ["u"], "split": ["train"], "history": [["item-0"]], "target": ["item-1"]}),
    )
    task = built(catalog, word_tokenizer(), "title_to_sid", num_histories=10**6 + 1)["title_to_sid"]

    class Rows:
        def encode_answer(self, rows, rng=None):
            return np.array(rows)

    def draw(seed, epoch, index):
        return [part.tolist() for part in task.draw(seed, epoch, index, Rows())]

    first = draw(seed, epoch, index)
    assert draw(seed, epoch, index) == first
    for others in (
        [draw((seed + i) % 2**32, epoch, index) for i in range(1, 9)],
        [draw(seed, epoch + i, index) for i in range(1, 9)],
        [draw(seed, epoch, abs(index - i)) for i in range(1, 9)],
    ):
        assert any(other != first for other in others)


def test_another_task_changes_no_draw(rich, tokenizer, encoder):
    alone = built(rich, tokenizer, "title_to_sid")["title_to_sid"]
    beside = built(rich, tokenizer, "sid_to_title", "title_to_sid")["title_to_sid"]
    assert asked(alone, tokenizer, encoder) == asked(beside, tokenizer, encoder)


def test_examples_of_an_epoch(rich, tokenizer):
    """6 histories; weights of 0.5 and 2 make 3 and 12 draws, and 1 is shared out where none are given."""
    config = sft_config("", "", "", tasks=["title_to_sid", "sid_to_title"], task_weights=[0.5, 2.0])
    tasks = build_tasks(config, rich, tokenizer, 6)
    assert {name: task.num_draws for name, task in tasks.items()} == {"title_to_sid": 3, "sid_to_title": 12}
    config = sft_config("", "", "", tasks=["title_to_sid", "sid_to_title"])
    assert [task.num_draws for task in build_tasks(config, rich, tokenizer, 6).values()] == [3, 3]
    histories = build_dataset(rich.train.sequences(), 5, "every_item")
    examples = add_draws(histories, {"title_to_sid": 2})
    assert examples[5] == {"rows": [5, 8, 11], "num_context": 0, "user": 5, "start": 0, "task": "", "index": 0}
    assert examples[6:]["index"] == [0, 1] and examples[6:]["rows"] == [[], []]
    assert add_draws(histories.select([]), {"title_to_sid": 2})[0]["task"] == "title_to_sid"


@pytest.fixture
def mixed(rich, tokenizer, encoder) -> tuple[HistoryCollator, list[dict]]:
    """Every task, 3 draws each, among 6 histories and a blank example."""
    tasks = built(rich, tokenizer, *TASKS, num_histories=3)
    histories = build_dataset(rich.train.sequences(), 5, "every_item")
    examples = [*add_draws(histories, dict.fromkeys(TASKS, 3)), {"rows": [], "num_context": 0, "task": "", "index": 0}]
    collator = HistoryCollator(Prompt().prefix(tokenizer), encoder, tokenizer.pad_token_id, tasks=tasks)
    return collator, [examples[i] for i in np.random.default_rng(0).permutation(len(examples))]


def test_labels_are_the_answer_alone(mixed):
    collator, examples = mixed
    drawn = collator.draw(examples)
    assert {each["task"] for each in examples} == {"", *TASKS}
    for each, (ids, labels) in zip(examples, drawn, strict=True):
        if each["task"]:
            prompt, answer = collator.tasks[each["task"]].draw(0, 0, each["index"], collator.encoder)
        else:
            prompt, answer = np.array(collator.prefix), collator.encoder.encode_history(each["rows"])
        assert ids.tolist() == [*prompt, *answer]
        assert labels.tolist() == [*[IGNORED] * len(prompt), *answer]
    batch = collator(examples)
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(ids) for ids, _ in drawn]
    assert [each["task"] for each in examples if not each["rows"]].count("") == 1


def test_draws_do_not_depend_on_the_batch(mixed):
    collator, examples = mixed
    together = [ids.tolist() for ids, _ in collator.draw(examples)]
    assert [collator.draw([each])[0][0].tolist() for each in examples[::-1]] == together[::-1]
    collator.epoch = 1
    assert [ids.tolist() for ids, _ in collator.draw(examples)] != together


@pytest.mark.parametrize("normalize_over", ["level", "vocabulary"])
def test_packed_and_padded_batches_have_the_same_loss(mixed, tokenizer, vocabulary, normalize_over):
    collator, examples = mixed
    model = tiny_llm(len(tokenizer))
    found = []
    with torch.no_grad(), sid_loss_in_forward(model, vocabulary, normalize_over):
        for collator.packing in (False, True):
            found.append(float(model(**collator(examples), num_items_in_batch=1).loss))
        alone = sum(float(model(**collator([each]), num_items_in_batch=1).loss) for each in examples)
    assert found == [pytest.approx(alone, rel=1e-5)] * 2


def test_a_packed_batch_says_how_many_words_it_answers_in(mixed, vocabulary):
    """At most: the number is rounded up, so that the shapes of a captured step are few."""
    collator, examples = mixed
    collator.packing = True
    batch, sids = collator(examples), vocabulary.token_range
    words = [label for label in batch["labels"].flatten().tolist() if label != IGNORED and label not in sids]
    assert 0 < len(words) <= batch["most_words"] == 64
    collator.tasks = {}
    assert "most_words" not in collator([each for each in examples if not each["task"]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["title_to_sids"]}, "unknown task 'title_to_sids'; did you mean 'title_to_sid'?"),
        ({"tasks": ["xyz"]}, "unknown task 'xyz'; choose from sid_to_title"),
        ({"tasks": ["title_to_sid"] * 2}, "tasks repeats a name"),
        ({"tasks": ["title_to_sid"], "task_weights": [1.0, 2.0]}, "task_weights has 2 numbers for 1 tasks"),
        *(
            ({"tasks": ["title_to_sid"], "task_weights": [weight]}, "every weight must be above 0")
            for weight in (0.0, 1e6)
        ),
        (
            {"tasks": ["title_to_sid"], "task_weights": [float("nan")]},
            "task_weights is [nan]; a list of finite numbers",
        ),
        ({"histories": False}, "nothing to train on: histories is false and tasks is empty"),
    ],
)
def test_wrong_task_options_are_refused_before_anything_is_read(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sft_config("", "", "", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["category_to_sids"]}, "needs one of the columns category, genres, brand"),
        ({"tasks": ["description_to_sid"]}, "needs a column 'text' that says more than the title"),
    ],
)
def test_tasks_without_their_column_are_refused(catalog, options, message):
    assert message in "; ".join(task_problems(sft_config("", "", "", **options), catalog))
    assert task_problems(sft_config("", "", "", targets="last_item", tasks=["title_to_sid"]), catalog) == []


def test_a_task_that_the_texts_leave_empty_is_refused(catalog, sid_table, encoder):
    with pytest.raises(ValueError, match=r"Task 'sid_to_title' has no case.*Leave it out"):
        built(catalog, word_tokenizer(["nothing"]), "sid_to_title")


HOSTILE = ["<a_1><b_2><c_0>", "red <a_1> apple", "</s>", "tea<|item_3|>", "<|im_end|> plum", "＜/s＞ <s>"]


@pytest.mark.parametrize("kind", [byte_level, unigram], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", TASKS)
def test_titles_texts_and_categories_with_markers_are_inert(catalog, sid_table, kind, name):
    """The only SID tokens are those of items, and the only special token is the end of an answer."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=kind(), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    vocabulary = SidVocabulary.add_to(tokenizer, sid_table.level_sizes, num_items=12)
    titles = [f"{TITLES[row]} {HOSTILE[row % len(HOSTILE)]}" for row in range(12)]
    items = pa.table({"item_id": catalog.item_ids, "title": titles, "text": [f"{title}. {title}" for title in titles],
                      "genres": [[HOSTILE[row % 3], "fruit"] for row in range(12)]})  # fmt: skip
    task = built(Catalog(items, catalog._split), tokenizer, name)[name]
    encoder, sids = SidHistoryEncoder(sid_table, vocabulary), set(vocabulary.added_range)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for index in range(task.num_draws):
        given, answer = task.cases.case(task.case_of(0, 0, index), np.random.default_rng([0, 0, task.number, index]))
        prompt, completion = task.draw(0, 0, index, encoder)
        shown = 0 if TASKS[name].given != "sid" else len(encoder.encode_history(given))
        assert sum(token in sids for token in prompt.tolist()) == shown
        assert not special & set(prompt.tolist())
        if TASKS[name].answer == "sid":
            assert completion.tolist() == encoder.encode_answer(answer).tolist()
        else:
            assert not (sids | special) & set(completion[:-1].tolist()) and completion[-1] == tokenizer.eos_token_id

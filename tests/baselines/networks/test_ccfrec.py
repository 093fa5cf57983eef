"""CCFRec: items fused of codes and texts, masked codes, the contrast, and `teach`, which gives it both."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, embedding

from llmrec.baselines.networks import CCFRec, NeuralRanker, SASRec
from llmrec.baselines.networks.ccfrec import IGNORED
from llmrec.baselines.networks.examples import next_items, training_windows
from llmrec.baselines.networks.trainer import summed_loss
from llmrec.baselines.queries import Queries
from llmrec.baselines.taught import load_ranker
from llmrec.cli import main
from llmrec.data.catalog import Catalog
from llmrec.sid.table import SidTable
from tests.conftest import CODES
from tests.support.extended import write_sid
from tests.support.networks import batch_of, split

SIZES = torch.tensor([4, 4, 4])
NO_AUXILIARY = {"code_weight": 0.0, "contrast_weight": 0.0}


def network(num_texts: int = 2, **options) -> CCFRec:
    torch.manual_seed(0)
    texts = torch.randn(num_texts, 12, 16)
    return CCFRec(torch.from_numpy(CODES), SIZES, texts, 8, **{"hidden": 16, **options}).eval()


def batch():
    sequences = [np.array([3, 1, 4, 1, 5, 9, 2, 6]), np.array([2, 7, 1]), np.array([8, 0])]
    return batch_of(next_items(training_windows(sequences, 8)))


def test_without_texts_and_weights_it_is_sasrec_on_the_means_of_codes():
    """Logits are cosines over the temperature; masking draws no random number, so that dropout is the same too."""
    net = network(num_texts=0, dropout=0.3, **NO_AUXILIARY).train()
    plain = SASRec(12, 8, hidden=16, dropout=0.3).train()
    own = {name: tensor for name, tensor in net.state_dict().items() if name in plain.state_dict()}
    plain.load_state_dict({**own, "items.weight": net.items(net.code_rows()).mean(dim=1).detach()})
    torch.manual_seed(1)
    states = plain(batch().history, plain.items.weight)
    expected = cosine_similarity(states.flatten(0, 1)[batch().places][:, None], plain.items.weight[None], dim=2) / 0.07
    torch.manual_seed(1)
    loss = summed_loss(net, batch())
    cross_entropy = torch.nn.functional.cross_entropy(expected, batch().targets, reduction="sum")
    torch.testing.assert_close(loss, cross_entropy, atol=1e-4, rtol=1e-5)


def test_scores_are_cosines_with_every_item():
    net = network()
    vectors = net.vectors()
    read = net.fused(net.code_rows(), torch.arange(12)).mean(dim=1)
    scored = read + embedding(net.code_rows(), net.items.weight).mean(dim=1)
    state = net(torch.tensor([[3, 1]]), vectors)[0, 1]
    expected = cosine_similarity(state[None], scored) / 0.07
    torch.testing.assert_close(net.last_scores([np.array([3, 1])])[0], expected, atol=1e-5, rtol=1e-5)
    items = torch.tensor([[4, 9, 0]])
    torch.testing.assert_close(net.scores_of(state[None], vectors, items)[0], expected[items[0]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net.encode(embedding(torch.tensor([[3, 1]]), read))[0, 1], state)


def test_items_of_equal_codes_differ_by_their_texts_alone():
    vectors = network().vectors()
    assert not torch.allclose(vectors[4], vectors[5])
    vectors = network(num_texts=0).vectors()
    torch.testing.assert_close(vectors[4], vectors[5])


def test_only_masked_codes_are_labels():
    net = network()
    rows = net.code_rows()[torch.arange(12).repeat(50).view(50, 12)]
    is_real = torch.arange(12) < 10
    torch.manual_seed(0)
    shown, labels = net.masked_codes(rows, is_real.expand(50, 12))
    chosen = labels != IGNORED
    assert torch.equal(labels[chosen], rows[chosen]) and torch.equal(shown[~chosen], rows[~chosen])
    assert not chosen[:, 10:].any()
    assert chosen[:, :10].float().mean().item() == pytest.approx(0.5, abs=0.05)
    is_mask = shown[chosen] == net.mask
    assert is_mask.float().mean().item() == pytest.approx(0.8, abs=0.05)
    assert 0.05 < ((shown != rows) & chosen & (shown != net.mask)).sum() / chosen.sum() < 0.12
    assert shown.max() == net.mask == 12


def test_losses_of_equal_cosines_are_the_logarithms_of_the_choices():
    """A masked code has the 4 codes of its level to choose from, and a history the 3 of its batch."""
    net = network()
    outputs, labels = torch.zeros(5, 3, 16), torch.full((5, 3), IGNORED)
    labels[0, 0], labels[3, 2], labels[4, 1] = 2, 8 + 1, 4 + 3
    assert net.code_loss(outputs, labels).item() == pytest.approx(math.log(4))
    assert net.contrast(torch.zeros(3, 16), torch.randn(3, 16)).item() == pytest.approx(math.log(3))
    alike = torch.eye(3, 16)
    assert net.contrast(alike, alike).item() == pytest.approx(math.log(1 + 2 * math.exp(-1 / 0.07)), abs=1e-6)
    assert net.code_loss(outputs, torch.full((5, 3), IGNORED)).item() == 0


def test_auxiliary_losses_train_fusion_and_mask():
    net = network(dropout=0.0, fusion_dropout=0.0).train()
    torch.manual_seed(0)
    summed_loss(net, batch()).backward()
    assert net.items.weight.grad[net.mask].any(), "the mask was read"
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.fusion.parameters())
    torch.manual_seed(0)
    both, alone = summed_loss(net, batch()), summed_loss(network(dropout=0.0, **NO_AUXILIARY), batch())
    assert both > alone + 1


def test_it_learns_and_is_kept_with_codes_and_texts():
    sequences = [[(user + step) % 12 for step in range(4 + user % 6)] for user in range(60)]
    catalog = split(sequences, [[*items, (items[-1] + 1) % 12] for items in sequences], [[0, 1]])
    features = {"codes": torch.from_numpy(CODES), "level_sizes": SIZES, "texts": torch.randn(2, 12, 16)}
    options = {"hidden": 16, "layers": 1, "fusion_layers": 1, "dropout": 0.1, "learning_rate": 1e-2, "max_epochs": 12}
    ranker = NeuralRanker(CCFRec, catalog, 0, "cpu", features=features, **options)
    assert max(epoch.quality for epoch in ranker.log) > 0.8
    again = NeuralRanker(CCFRec, catalog, 1, "cpu", weights=ranker.tensors(), **options)
    histories = [np.array([3, 4, 5]), np.array([7])]
    assert torch.equal(ranker.scores(histories), again.scores(histories))
    with pytest.raises(ValueError, match="run `llmrec teach --ranker ccfrec --sid DIR`"):
        NeuralRanker(CCFRec, catalog, 0, "cpu", **options)


@pytest.fixture(scope="module")
def prepared(toy, tmp_path_factory):
    """Semantic IDs and two texts of the toy catalogue; only read."""
    root = tmp_path_factory.mktemp("texts")
    flags = ["--catalog", toy[0], "--views", "text", "--text-encoder", "tfidf", "--device", "cpu"]
    (root / "views").mkdir()
    for name in ("title", "text"):
        assert main(["embed", *flags, "--text-template", f"{{{name}}}", "--out", str(root / name)]) == 0
        shutil.copy(root / name / "text.safetensors", root / "views" / f"{name}.safetensors")
    table = SidTable(Catalog.load(toy[0]).item_ids, CODES, level_sizes=[4, 4, 4])
    return write_sid(root / "sid", table), root / "views"


def teach(toy, out, *flags) -> int:
    small = ["--hidden", "8", "--layers", "1", "--fusion-layers", "1", "--max-epochs", "2", "--device", "cpu"]
    return main(["teach", "--catalog", toy[0], "--ranker", "ccfrec", "--out", str(out), *small, *flags])


def test_teach_fits_it_and_evaluate_compares_with_it(capsys, tmp_path, toy, prepared):
    sid, views = map(str, prepared)
    assert teach(toy, tmp_path / "ccfrec", "--sid", sid, "--views", views) == 0, capsys.readouterr().err
    facts = json.loads((tmp_path / "ccfrec" / "ranker.json").read_text())
    assert facts["ranker"] == "ccfrec" and facts["options"]["temperature"] == 0.07
    flags = ["--catalog", toy[0], "--baselines", str(tmp_path / "ccfrec"), "--k", "3", "--out", str(tmp_path / "test")]
    assert main(["evaluate", *flags]) == 0
    taught, calls = load_ranker(tmp_path / "ccfrec", Catalog.load(toy[0]), torch.device("cpu")), []
    ranker = taught.ranker
    vectors = ranker.network.vectors
    ranker.network.vectors = lambda: calls.append(1) or vectors()
    asked = Queries(torch.tensor([[3, 1, 0]]), torch.tensor([0, 0]), torch.tensor([1, 2]), *torch.zeros(2, 1).long())
    torch.testing.assert_close(ranker.logits(asked), ranker.logits(asked))
    assert len(calls) == 1, "a teacher fuses the items once"
    torch.testing.assert_close(ranker.logits(asked)[1], ranker.scores([np.array([3, 1])])[0], atol=1e-5, rtol=1e-5)
    assert "ccfrec" in json.loads((tmp_path / "test" / "metrics.json").read_text())["systems"]


def test_what_it_cannot_read_is_refused(capsys, tmp_path, toy, prepared):
    sid, views = map(str, prepared)
    shorter = np.where(np.arange(36).reshape(12, 3) == 5, -1, np.arange(36).reshape(12, 3))
    uneven = write_sid(tmp_path / "uneven", SidTable(Catalog.load(toy[0]).item_ids, shorter))
    other = write_sid(tmp_path / "other", SidTable([f"x{row}" for row in range(12)], CODES))
    cases = [
        ([], "'sid' is needed: a directory of `llmrec tokenize`"),
        (["--sid", str(uneven)], "has items with several semantic IDs, shorter ones, words or pieces"),
        (["--sid", str(other)], "has semantic IDs of other items"),
        (["--sid", sid, "--views", views, "--view-names", "brand"], "view_names asks for ['brand']"),
        (["--sid", sid, "--heads", "3"], "3 heads need a multiple of 3"),
    ]
    for flags, message in cases:
        assert teach(toy, tmp_path / "out", *flags) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert main(["evaluate", "--catalog", toy[0], "--baselines", "ccfrec", "--out", str(tmp_path / "test")]) == 2
    assert "unknown baseline 'ccfrec'" in capsys.readouterr().err

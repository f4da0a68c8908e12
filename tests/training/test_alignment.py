"""The trainer: when prototypes are refreshed, that it learns, and that a resumed run is the undisturbed one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.ops.prototypes import kmeans_prototypes
from pipelines.options.align import AlignOptions
from pipelines.stores.checkpoint import read_checkpoint, write_checkpoint
from pipelines.training.alignment import AlignmentTrainer
from pipelines.training.alignment_data import AlignmentData, photo_order

EMBED, CLASSES, WORDS, PATCHES = 8, 4, 2, 6
LABELS = [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2), (0,), (1,), (2,), (1,), (0, 1)]  # class 3 has no photo
CPU = torch.device("cpu")


def photos(labels: list[tuple[int, ...]] = LABELS, noise: float = 0.3) -> AlignmentData:
    """Patches of class c near axis c, of the background near axis 5; CAMs know which is which, nearly."""
    rng = np.random.default_rng(0)
    tokens = noise * rng.normal(size=(len(labels), PATCHES, EMBED)) + 0.5  # the common part that CLIP's features have
    cams = []
    for row, own in zip(tokens, labels, strict=True):
        kinds = [*own, *rng.choice([*own, 5], PATCHES - len(own))]  # class of each patch
        for patch, kind in zip(row, kinds, strict=True):
            patch[kind] += 1
        seen = np.array([[0.9 if kind == index else 0.1 for kind in kinds] for index in own])
        cams.append(seen.astype(np.float32))
    return AlignmentData(tokens.astype(np.float16), cams, labels)


@pytest.fixture(scope="module")
def text() -> Tensor:
    """Not aligned with anything; rows near one another as CLIP's are."""
    generator = torch.Generator().manual_seed(5)
    centre, own = torch.randn(EMBED, generator=generator), torch.randn(CLASSES + WORDS, EMBED, generator=generator)
    return F.normalize(centre + 0.3 * own, dim=1)


@pytest.fixture(scope="module")
def make(text: Tensor) -> Callable[..., AlignmentTrainer]:
    def trainer(data: AlignmentData | None = None, **options: Any) -> AlignmentTrainer:
        settings = {"hidden": 16, "batch": 4, "iterations": 8, "learning_rate": 5e-3, **options}
        return AlignmentTrainer(data or photos(), text, CLASSES, AlignOptions(**settings), CPU)

    return trainer


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def kept(trainer: AlignmentTrainer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.state().items()}


@pytest.mark.parametrize(
    ("options", "due"),
    [
        pytest.param({"refresh": 3}, [0, 3, 6, 8], id="every third step, and at the end"),
        pytest.param({"refresh": 4}, [0, 4, 8], id="the end is due, once"),
        pytest.param({"refresh": 100}, [0, 8], id="start and end"),
        pytest.param({"refresh": 1}, list(range(9)), id="every step"),
        pytest.param({}, [0, 3, 6, 8], id="every epoch: twelve photos are three steps"),
        pytest.param(
            {"batch": 5, "iterations": 0, "min_iterations": 0, "epochs": 2},
            [0, 3, 6],
            id="the last batch of an epoch is filled up",
        ),
        pytest.param({"iterations": 0, "min_iterations": 0, "epochs": 0.1}, [0, 1], id="at least a step"),
        pytest.param({"iterations": 0, "min_iterations": 0, "epochs": 1.5}, [0, 3, 4], id="part of an epoch"),
        pytest.param({"iterations": 0, "min_iterations": 7, "epochs": 1.5}, [0, 3, 6, 7], id="few photos, more passes"),
    ],
)
@pytest.mark.parametrize("prototypes", ["class", "kmeans"])
def test_prototypes_are_refreshed_when_due(make, monkeypatch, prototypes, options, due):
    seen, refresh = [], AlignmentTrainer.refresh

    def spy(trainer: AlignmentTrainer) -> None:
        seen.append(trainer.iteration)
        refresh(trainer)

    monkeypatch.setattr(AlignmentTrainer, "refresh", spy)
    trainer = make(prototypes=prototypes, **options)
    current = None
    for loss in trainer.steps():
        assert np.isfinite(loss)
        if trainer.iteration not in due and trainer.iteration > 1:
            assert trainer.prototypes is current
        current = trainer.prototypes
    assert seen == due
    assert trainer.iteration == due[-1]


@pytest.mark.parametrize("loss", ["cross", "intra", "direct"])
@pytest.mark.parametrize("prototypes", ["class", "kmeans"])
def test_it_learns(make, loss, prototypes):
    trainer = make(loss=loss, prototypes=prototypes, iterations=60, refresh=10)
    before = trainer.quality()
    assert before.loss is None
    losses = list(trainer.steps())
    after = trainer.quality()
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])
    assert after.loss == pytest.approx(np.mean(losses))
    assert after.iteration == 60
    assert after.purity >= before.purity


@pytest.mark.parametrize("prototypes", ["class", "kmeans"])
def test_classes_come_apart_and_find_their_names(make, prototypes):
    trainer = make(prototypes=prototypes, iterations=80)
    before = trainer.quality()
    list(trainer.steps())
    after = trainer.quality()
    assert after.purity == 1
    assert after.within / after.between < 0.5 * before.within / before.between
    nearest = (trainer.image_features() @ trainer.words()[:3].T).argmax(dim=1)
    classes = trainer.data.classes
    if prototypes == "class":
        assert torch.equal(nearest, classes)
    background = trainer.words()[CLASSES:]
    own = (trainer.image_features() * trainer.words()[classes]).sum(dim=1)
    assert (own > (trainer.image_features() @ background.T).amax(dim=1)).float().mean() > 0.9


@pytest.mark.parametrize("batch", [1, 5, 100])
def test_image_features_are_those_of_all_samples_in_their_order(make, batch):
    trainer = make(residual=False, batch=batch, cam_power=1.5)
    found = trainer.image_features()
    data, expected = trainer.data, []
    for photo, slot in data.samples:
        projected = trainer.heads.isa(torch.from_numpy(data.tokens[photo].astype(np.float32)))
        pooled = sum(float(w) ** 1.5 * row for w, row in zip(data.cams[photo][slot], projected, strict=True))
        expected.append(F.normalize(pooled, dim=0).detach())
    assert not found.requires_grad
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_class_prototypes_are_the_means_of_their_samples(make):
    trainer = make()
    list(trainer.steps())
    image, classes = trainer.image_features(), trainer.data.classes
    for index, row in enumerate(trainer.prototypes.image):
        own = image[classes == index]
        expected = F.normalize(own.mean(dim=0), dim=0) if len(own) else torch.zeros(EMBED)
        torch.testing.assert_close(row, expected, atol=1e-6, rtol=1e-5)
    assert trainer.prototypes.text is None


def test_kmeans_prototypes_of_both_modalities(make, monkeypatch):
    trainer = make(prototypes="kmeans", seed=3)
    list(trainer.steps())
    image, words, found = trainer.image_features(), trainer.words(), trainer.prototypes
    of_image = kmeans_prototypes(image, 3)
    assert torch.equal(found.image, of_image.prototypes)
    assert found.text.shape == (3, EMBED)  # the class without photos makes none
    for index in range(3):
        torch.testing.assert_close(found.text[found.text_clusters[index]], words[index], atol=1e-5, rtol=1e-5)
    handed, batch = [], AlignmentData.batch

    def spy(data: AlignmentData, *args: Any) -> Any:
        handed.append((args[0], batch(data, *args)))
        return handed[-1][1]

    monkeypatch.setattr(AlignmentData, "batch", spy)
    trainer._step([6, 0, 3])
    samples = trainer.data.samples
    for row, photo in enumerate((6, 0, 3)):
        for slot in range(len(LABELS[photo])):
            assert handed[0][1].image_clusters[row, slot] == of_image.index[samples.index((photo, slot))]


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 7, 8])
@pytest.mark.parametrize(("prototypes", "loss"), [("class", "cross"), ("kmeans", "cross"), ("kmeans", "intra")])
def test_a_resumed_run_is_the_undisturbed_one(make, tmp_path, prototypes, loss, stop):
    options = {
        "prototypes": prototypes,
        "loss": loss,
        "refresh": 3,
        "learn_temperature": True,
        "separation": 0.1,
        "text_noise": 0.3,
    }
    whole = make(**options)
    losses = list(whole.steps())
    assert whole.heads.temperature.item() != pytest.approx(0.05)
    stopped = make(**options)
    first = list(islice(stopped.steps(), stop))
    write_checkpoint(tmp_path / "state.safetensors", stopped.state(), {})
    tensors, _ = read_checkpoint(tmp_path / "state.safetensors", "")
    resumed = make(**options)
    resumed.restore(tensors)
    assert resumed.iteration == stop
    torch.manual_seed(99)
    assert first + list(resumed.steps()) == losses
    assert same(resumed.state(), whole.state())


@pytest.mark.parametrize("prototypes", ["class", "kmeans"])
def test_measuring_does_not_disturb(make, prototypes):
    undisturbed, measured = make(prototypes=prototypes), make(prototypes=prototypes)
    list(undisturbed.steps())
    for _ in measured.steps():
        measured.quality()
        measured.words()
    assert same(undisturbed.state(), measured.state())


def test_photos_come_in_their_order(make, monkeypatch):
    seen, step = [], AlignmentTrainer._step
    monkeypatch.setattr(AlignmentTrainer, "_step", lambda trainer, rows: seen.append(rows) or step(trainer, rows))
    list(make(batch=5, seed=7).steps())
    assert seen == list(islice(photo_order(len(LABELS), 5, 7), 8))


@pytest.mark.parametrize("learn", [True, False])
def test_temperature_is_trained_if_asked(make, learn):
    trainer = make(learn_temperature=learn)
    list(trainer.steps())
    moved = trainer.heads.temperature.item() != pytest.approx(0.05, rel=1e-4)
    assert moved == learn
    assert trainer.quality().temperature == pytest.approx(trainer.heads.temperature.item())


@pytest.mark.parametrize("prototypes", ["class", "kmeans"])
@pytest.mark.parametrize(
    ("labels", "options"),
    [
        pytest.param(LABELS, {"batch": 1}, id="a photo a step"),
        pytest.param([(1,)], {}, id="one photo"),
        pytest.param([(1,), (1,), (1,)], {"batch": 2}, id="one class of several"),
        pytest.param([(0, 1, 2, 3)] * 3, {"batch": 2}, id="all classes everywhere"),
        pytest.param([(3,), (0,)], {"batch": 64}, id="fewer photos than a batch"),
    ],
)
def test_small_sets(make, prototypes, labels, options):
    trainer = make(photos(labels), prototypes=prototypes, **options)
    assert np.isfinite(list(trainer.steps())).all()
    assert all(tensor.isfinite().all() for tensor in trainer.state().values())
    quality = trainer.quality()
    assert 0 < quality.purity <= 1
    assert (quality.between is None) == (len({c for own in labels for c in own}) == 1)


@pytest.mark.parametrize("prototypes", ["class", "kmeans"])
def test_photos_that_are_all_the_same(make, prototypes):
    """Fewer distinct features than classes: k-means makes fewer prototypes."""
    data = AlignmentData(np.ones((4, PATCHES, EMBED), np.float16), [np.ones((1, PATCHES), np.float32)] * 4, [(0,), (1,)] * 2)
    trainer = make(data, prototypes=prototypes, background=0)
    assert np.isfinite(list(trainer.steps())).all()
    if prototypes == "kmeans":
        assert len(trainer.prototypes.image) == 1


def test_works_without_background_words(text):
    options = AlignOptions(hidden=16, batch=4, iterations=4)
    trainer = AlignmentTrainer(photos(), text[:CLASSES], CLASSES, options, CPU)
    assert np.isfinite(list(trainer.steps())).all()


def test_average_precision_ranks_photos_by_their_best_patches(make: Callable[..., AlignmentTrainer]) -> None:
    trainer = make(photos(noise=1.0))
    words, best = trainer.words(), 1  # two percent of six patches
    expected = []
    for index in range(CLASSES):
        scores, present = [], []
        for photo, labels in enumerate(LABELS):
            patches = trainer.heads.isa(torch.from_numpy(trainer.data.tokens[photo].astype(np.float32)))
            shares = (F.normalize(patches, dim=1) @ words.T / trainer.heads.temperature).softmax(dim=1)[:, index]
            scores.append(shares.sort(descending=True).values[:best].mean().item())
            present.append(index in labels)
        hits, precision = 0, []
        for rank, photo in enumerate(sorted(range(len(LABELS)), key=lambda photo: -scores[photo]), start=1):
            if present[photo]:
                hits += 1
                precision.append(hits / rank)
        expected.append(sum(precision) / len(precision) if precision else 0.0)
    found = trainer.average_precision()
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert found[3] == 0, "a class without photos is not found"
    assert 0 < min(found[:3]) < 1

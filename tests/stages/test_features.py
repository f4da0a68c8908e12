"""The map of features: its numbers against a slow twin, what it needs, and what it leaves shut."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from pipelines.errors import SsrError
from pipelines.ops.kmeans import kmeans
from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, RefineOptions, ShowOptions
from pipelines.stages import features
from pipelines.stages.align import stage as align
from pipelines.stores.array_store import ArrayReader
from pipelines.stores.files import read_json, write_json
from pipelines.stores.manifest import digest

TRAINED = AlignOptions(
    cam="initial",
    cam_power=3.0,
    tokens=16,
    hidden=8,
    epochs=12.0,
    min_iterations=0,
    batch=4,
    learning_rate=0.01,
    seed=5,
    background=0.5,
)
PCA = ShowOptions(projection="pca")


@pytest.fixture(scope="module")
def root(tiny_voc, tmp_path_factory) -> Path:
    """The photos without any ground truth: what is not there cannot be opened."""
    root = tmp_path_factory.mktemp("blind") / "VOC2012"
    shutil.copytree(tiny_voc.root, root, ignore=shutil.ignore_patterns("SegmentationClass*"))
    return root


@pytest.fixture(scope="module")
def aligned(workspace_in, root, tmp_path_factory) -> Path:
    """A work directory with heads; copy before changing."""
    work = tmp_path_factory.mktemp("aligned") / "work"
    align.run(workspace_in(work, root=root), TRAINED, CamsOptions(), RefineOptions())
    return work


@pytest.fixture
def workspace_at(workspace_in, root, aligned, tmp_path):
    """A copy of the aligned directory with a split of its own: ``workspace_at("a_cat", "b_trio")``."""
    work = Path(shutil.copytree(aligned, tmp_path / "work"))

    def make(*ids: str, root: Path = root):
        if not ids:
            return workspace_in(work, root=root)
        split = tmp_path / "some.txt"
        split.write_text("".join(f"{image_id}\n" for image_id in ids))
        return workspace_in(work, root=root, split=str(split))

    return make


@pytest.fixture
def seen(monkeypatch) -> list[tuple[Any, ...]]:
    """What is handed to the picture."""
    handed: list[tuple[Any, ...]] = []
    drawn = features.feature_map
    monkeypatch.setattr(features, "feature_map", lambda *args: handed.append(args) or drawn(*args))
    return handed


def projected(workspace, which: str, x):
    """A head written out."""
    tensors = load_file(workspace.work / "cmpa.safetensors")
    head = {key[4:]: value for key, value in tensors.items() if key.startswith(f"{which}.")}
    hidden = x @ head["layers.0.weight"].T + head["layers.0.bias"]
    normal = (hidden - head["layers.1.running_mean"]) / np.sqrt(head["layers.1.running_var"] + 1e-5)
    active = np.maximum(normal * head["layers.1.weight"] + head["layers.1.bias"], 0)
    return x + active @ head["layers.3.weight"].T + head["layers.3.bias"]


def by_hand(workspace, power: float) -> dict[str, dict[str, float]]:
    """Loops over patches, heads written out, distances pair by pair."""

    def unit(x):
        return x / np.linalg.norm(x)

    found = {}
    for name, seen in (("before", lambda x: x), ("after", lambda x: projected(workspace, "isa", x))):
        pooled, classes = [], []
        with ArrayReader(workspace.work / "align/tokens.h5") as tokens, ArrayReader(workspace.work / "align/cams.h5") as cams:
            for sample in workspace.dataset.samples:
                if not sample.labels:
                    continue
                patches, maps = tokens.read(sample.image_id)[0], cams.read(sample.image_id)[0]
                for label, cam in zip(sample.labels, maps, strict=True):
                    total = sum(float(w) ** power * seen(x.astype(np.float64)) for w, x in zip(cam, patches, strict=True))
                    pooled.append(unit(total))
                    classes.append(label)
        means = {c: unit(sum(f for f, k in zip(pooled, classes, strict=True) if k == c)) for c in set(classes)}
        labels = kmeans(torch.from_numpy(np.array(pooled, np.float32)), len(means)).tolist()
        groups = {cluster: Counter(c for c, k in zip(classes, labels, strict=True) if k == cluster) for cluster in set(labels)}
        found[name] = {
            "purity": sum(max(group.values()) for group in groups.values()) / len(classes),
            "within": np.mean([1 - f @ means[c] for f, c in zip(pooled, classes, strict=True)]),
            "between": np.mean([1 - means[a] @ means[b] for a, b in permutations(means, 2)]),
        }
    return found


def test_numbers_equal_a_slow_twin_and_those_of_the_training(workspace_at):
    workspace = workspace_at()
    made = features.run(workspace, AlignOptions(), ShowOptions())
    expected = by_hand(workspace, TRAINED.cam_power)
    written = read_json(workspace.work / "show/features.json")
    for side in ("before", "after"):
        assert written[side] == pytest.approx(expected[side], abs=1e-5)
    assert abs(written["after"]["between"] - written["before"]["between"]) > 0.01  # else the two sides could be one
    first, *_, last = read_json(workspace.work / "align/metrics.json")
    for side, quality in (("before", first), ("after", last)):
        assert written[side] == pytest.approx({key: quality[key] for key in written[side]}, abs=1e-5)
    assert (made.photos, made.samples, made.drawn, made.left_out) == (5, 8, 8, 0)
    assert {key: written[key] for key in ("photos", "samples", "drawn", "left_out", "projection")} == {
        "photos": 5, "samples": 8, "drawn": 8, "left_out": 0, "projection": "tsne",
    }  # fmt: skip
    assert written["samples_of_class"] == {"bird": 2, "car": 1, "cat": 2, "dog": 2, "person": 1}


@pytest.mark.parametrize("projection", ["tsne", "pca"])
def test_both_projections_draw_the_same_picture_twice(workspace_at, projection):
    pictures = []
    for _ in range(2):
        made = features.run(workspace_at(), TRAINED, ShowOptions(projection=projection))
        assert made.projection == projection
        pictures.append(made.picture.read_bytes())
    with Image.open(made.picture) as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 800
    assert pictures[0] == pictures[1]
    assert sorted(path.name for path in made.picture.parent.iterdir()) == ["features.json", "features.png"]


@pytest.mark.parametrize(
    ("ids", "samples", "projection"), [(["a_cat"], 1, "pca"), (["b_trio"], 3, "pca"), (["a_cat", "b_trio"], 4, "tsne")]
)
def test_few_samples(workspace_at, ids, samples, projection):
    made = features.run(workspace_at(*ids), TRAINED, ShowOptions())
    assert (made.samples, made.projection, made.photos) == (samples, projection, len(ids))
    Image.open(made.picture).verify()
    written = read_json(made.numbers)
    if samples == 1:
        assert written["before"] == {"purity": 1.0, "within": pytest.approx(0, abs=1e-6), "between": None}


def test_more_samples_than_are_drawn(workspace_at, monkeypatch, seen):
    whole = features.run(workspace_at(), TRAINED, PCA)
    monkeypatch.setattr(features, "MOST_DOTS", 5)
    made = features.run(workspace_at(), TRAINED, PCA)
    assert (made.samples, made.drawn, made.after) == (8, 5, whole.after)
    before, after, *_, caption = seen[1]
    assert len(before.samples.points) == len(after.samples.points) == 5
    assert "8 samples (image, class) of 5 images, 5 of them drawn" in caption


def test_prototypes_lie_where_they_should(workspace_at, seen):
    """In a PCA all is linear: the cross of a class of one sample is that sample, before and after."""
    features.run(workspace_at(), TRAINED, PCA)
    for side in seen[0][:2]:
        assert side.text.classes.tolist() == side.image.classes.tolist() == sorted(set(side.samples.classes.tolist()))
        for label in (6, 14):  # car, person
            dot, cross = (m.points[m.classes == label] for m in (side.samples, side.image))
            np.testing.assert_allclose(dot, cross, atol=1e-4)
        assert np.abs(side.text.points - side.image.points).max() > 0.01


def test_words_go_through_their_own_head(workspace_at, models, monkeypatch):
    laid = []
    lay_out = features._lay_out
    monkeypatch.setattr(features, "_lay_out", lambda parts, *rest: laid.append(parts) or lay_out(parts, *rest))
    workspace = workspace_at()
    features.run(workspace, TRAINED, PCA)
    (_, before, _), (_, after, _) = laid
    words = load_file(models.voc_bank)["embeddings"][[2, 6, 7, 11, 14]]
    np.testing.assert_allclose(before, words, atol=1e-6)
    expected = projected(workspace, "tsa", words)
    np.testing.assert_allclose(after, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    assert (after - before).abs().max() > 0.01


def test_the_training_says_how_features_are_pooled(workspace_at):
    workspace = workspace_at()
    made = features.run(workspace, TRAINED, PCA)
    assert features.run(workspace, AlignOptions(cam_power=0.5, prototypes="kmeans"), PCA) == made
    (workspace.work / "cmpa.json").unlink()
    other = features.run(workspace, TRAINED.model_copy(update={"cam_power": 0.5}), PCA)
    assert abs(other.before.within - made.before.within) > 1e-4


def test_kmeans_prototypes_belong_to_no_class(workspace_in, root, tmp_path, seen):
    workspace = workspace_in(tmp_path / "work", root=root)
    options = TRAINED.model_copy(update={"prototypes": "kmeans", "epochs": 2.0})
    align.run(workspace, options, CamsOptions(), RefineOptions())
    features.run(workspace, AlignOptions(), PCA)
    for side in seen[0][:2]:
        assert side.image.classes.tolist() == [-1] * 5


def test_no_photo_is_opened_and_the_image_tower_rests(workspace_at, monkeypatch):
    from pipelines.datasets import image as image_module
    from pipelines.encoders.clip import ClipEncoder

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a photo was opened or encoded")

    monkeypatch.setattr(image_module.Image, "open", refuse)
    monkeypatch.setattr(ClipEncoder, "__init__", refuse)
    assert features.run(workspace_at(), TRAINED, PCA).samples == 8


def test_photos_with_other_labels_are_left_out(workspace_at, root, tmp_path):
    changed = Path(shutil.copytree(root, tmp_path / "voc"))
    (changed / "Annotations/a_cat.xml").write_text("<annotation><object><name>dog</name></object></annotation>")
    made = features.run(workspace_at(root=changed), TRAINED, PCA)
    assert (made.photos, made.left_out, made.samples) == (4, 1, 7)
    with pytest.raises(SsrError, match=r"patches of no image of split some .*ssr align"):
        features.run(workspace_at("a_cat", root=changed), TRAINED, PCA)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("cmpa.safetensors", r"no cmpa\.safetensors in .*work \(run `ssr align( --work [^`]*)?` first\)"),
        ("align/tokens.h5", r"no tokens in .*align \(run `ssr align( --work [^`]*)?` first\)"),
        ("align/cams.h5", r"no store at .*cams\.h5 \(run `ssr align( --work [^`]*)?` first\)"),
    ],
)
def test_what_is_missing_is_said_in_one_line(workspace_at, lost, said):
    workspace = workspace_at()
    (workspace.work / lost).unlink()
    with pytest.raises(SsrError, match=said) as caught:
        features.run(workspace, TRAINED, PCA)
    assert "\n" not in str(caught.value)
    assert not (workspace.work / "show").exists()


def test_patches_of_another_training_are_refused(workspace_at):
    workspace = workspace_at()
    path = workspace.work / "align/tokens.json"
    manifest = read_json(path)
    manifest["settings"]["tokens"] = 17
    manifest["options_digest"] = digest(manifest["settings"])
    write_json(path, manifest)
    with pytest.raises(SsrError, match="was trained on other patches"):
        features.run(workspace, TRAINED, PCA)

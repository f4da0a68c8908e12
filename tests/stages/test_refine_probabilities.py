"""Masks from CAMs and class probabilities of a trained model: those of a slow twin, and clear words where some are missing."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipelines.config import read_recipe
from pipelines.errors import SsrError, UsageError
from pipelines.ops.label_map import resize_maps
from pipelines.options.stages import RefineOptions
from pipelines.options.train import PredictOptions
from pipelines.stages import predict, refine
from pipelines.stores.array_store import ArrayWriter, iter_records
from pipelines.stores.manifest import Manifest, read_manifest
from tests.fixtures.heard import Heard

SSR = RefineOptions(**read_recipe("ssr")["refine"])
MIXED = RefineOptions(**SSR.model_dump() | {"probabilities": "auto", "probability_weight": 0.6})
PREDICT = PredictOptions(scales=(1.0,), flip=False, probabilities=True)


@pytest.fixture
def predicted(workspace, model):
    """CAMs, refined CAMs, pseudo-masks, and a model's probabilities of the same images."""
    refine.run(workspace, SSR)
    shutil.copy(model, workspace.model)
    predict.run(workspace, PREDICT)
    return replace(workspace, force=True)


def agreement_of(maps, known):
    """Mean IoU of the labels between the CAM and the model, on their common grid."""
    assert maps.shape[1:] == known.shape[1:]
    cam = np.concatenate([(1 - maps.max(0, keepdims=True)) ** SSR.background_power, maps]).argmax(0)
    model = known.argmax(0)
    ious = []
    for row in range(1, len(known)):
        union = np.logical_or(cam == row, model == row).sum()
        ious.append(np.logical_and(cam == row, model == row).sum() / union if union else 0)
    return np.mean(ious)


def test_masks_are_those_of_a_slow_twin(predicted):
    before = predicted.refined.read_bytes()
    plain = {path.name: path.read_bytes() for path in predicted.masks.glob("*.png")}
    counts = refine.run(predicted, MIXED)
    assert (counts.done, counts.failed) == (6, 0)
    assert predicted.refined.read_bytes() == before  # no encoder runs again
    probabilities = dict(iter_records(predicted.predictions / "train.h5"))
    changed = 0
    for image_id, (maps, attributes) in iter_records(predicted.refined):
        with Image.open(predicted.masks / f"{image_id}.png") as file:
            mask = np.asarray(file)
        labels, size = attributes["labels"], tuple(attributes["size"])
        if not labels:
            assert not mask.any()
            continue
        cam = resize_maps(maps, size)
        scores = np.concatenate([(1 - cam.max(0, keepdims=True)) ** SSR.background_power, cam])
        model = probabilities[image_id][0].astype(np.float64)
        foreground = model[[label + 1 for label in labels]] + 1e-6
        known = np.concatenate([model[:1], (1 - model[:1]) * foreground / foreground.sum(0)])
        share = 0.6 * agreement_of(maps.astype(np.float32), known)
        mixed = (1 - share) * scores / scores.sum(0) + share * resize_maps(known, size)
        expected = np.array([0, *(label + 1 for label in labels)])[mixed.argmax(0)]
        top = np.sort(mixed, axis=0)
        sure = top[-1] - top[-2] > 1e-4
        assert (mask == expected)[sure].all()
        assert sure.mean() > 0.9
        changed += plain[f"{image_id}.png"] != (predicted.masks / f"{image_id}.png").read_bytes()
    assert changed


def test_a_weight_of_0_keeps_the_masks(predicted):
    plain = {path.name: path.read_bytes() for path in predicted.masks.glob("*.png")}
    refine.run(predicted, MIXED.model_copy(update={"probability_weight": 0.0}))
    assert {path.name: path.read_bytes() for path in predicted.masks.glob("*.png")} == plain


def test_masks_follow_the_model_and_the_weight(predicted):
    refine.run(predicted, MIXED)
    assert refine.run(replace(predicted, force=False), MIXED).skipped == 6
    with pytest.raises(UsageError, match=r"probability_weight: 0\.6 -> 0\.5"):
        refine.run(replace(predicted, force=False), MIXED.model_copy(update={"probability_weight": 0.5}))
    first = read_manifest(predicted.masks).options_digest
    store = predicted.predictions / "train.h5"
    refine.run(predicted, MIXED.model_copy(update={"probabilities": store}))
    assert read_manifest(predicted.masks).options_digest == first  # auto is this store
    refine.run(predicted, MIXED.model_copy(update={"probability_weight": 0.5}))
    second = read_manifest(predicted.masks)
    assert second.options_digest != first
    assert second.settings["probability_weight"] == 0.5
    refine.run(predicted, SSR)
    assert not {"probabilities", "probability_weight"} & read_manifest(predicted.masks).settings.keys()


def test_without_a_store_the_error_names_the_command(workspace):
    refine.run(workspace, SSR)
    with pytest.raises(SsrError, match=r"no class probabilities at .*train\.h5") as caught:
        refine.run(workspace, MIXED)
    assert "`ssr predict --probabilities --work " in str(caught.value.hint)
    with pytest.raises(UsageError, match="of `ssr cams`"):
        refine.run(workspace, MIXED.model_copy(update={"probabilities": workspace.cams}))


def test_images_without_probabilities_fail_alone(predicted, workspace_in):
    shutil.rmtree(predicted.predictions)
    few = workspace_in(predicted.work, split="val")
    predict.run(few, PREDICT)
    store = few.predictions / "val.h5"
    counts = refine.run(
        workspace_in(predicted.work, max_failures=-1, force=True), MIXED.model_copy(update={"probabilities": store})
    )
    known = sum(1 for _ in iter_records(store))
    assert (counts.done, counts.failed) == (known, 6 - known)
    assert "it has no class probabilities" in (predicted.work / "failures.jsonl").read_text()


def test_probabilities_of_other_images_cost_no_mask(predicted, workspace_in):
    predict.run(workspace_in(predicted.work, split="val"), PREDICT)
    store = predicted.predictions / "val.h5"
    ids = {image_id for image_id, _ in iter_records(store)}
    kept = [sample for sample in predicted.dataset.samples if sample.image_id not in ids]
    others = replace(predicted, photos=replace(predicted.dataset, samples=kept))
    with pytest.raises(UsageError, match=r"val\.h5 holds class probabilities of no image of split train"):
        refine.run(others, MIXED.model_copy(update={"probabilities": store}))
    assert len(list(predicted.masks.glob("*.png"))) == 6


def test_probabilities_of_a_replaced_image_are_refused(predicted, workspace_in):
    store = predicted.predictions / "train.h5"
    made = {image_id: attributes["photo"] for image_id, (_, attributes) in iter_records(predicted.refined)}
    records = dict(iter_records(store))
    assert {image_id: attributes["photo"] for image_id, (_, attributes) in records.items()} == made
    array, attributes = records["a_cat"]
    with ArrayWriter(store) as writer:
        writer.add("a_cat", array, attributes | {"photo": made["c_bird"]})
    counts = refine.run(workspace_in(predicted.work, max_failures=-1, force=True), MIXED)
    assert (counts.done, counts.failed) == (5, 1)
    assert "its class probabilities are of another image" in (predicted.work / "failures.jsonl").read_text()


def test_other_classes_are_refused(predicted):
    path = predicted.predictions / "train.json"
    manifest = Manifest.read(path)
    manifest.settings["classes"] = manifest.settings["classes"][::-1]
    manifest.write(path)
    with pytest.raises(UsageError, match="other classes"):
        refine.run(predicted, MIXED)


def test_a_model_of_ground_truth_is_named(predicted):
    path = predicted.predictions / "train.json"
    manifest = Manifest.read(path)
    manifest.settings["supervision"] = "masks"
    manifest.write(path)
    heard = Heard()
    refine.run(predicted, MIXED, heard)
    assert any("an upper bound" in note for note in heard.notes)

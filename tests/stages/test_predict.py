"""Label maps: those of a slow twin to the pixel, resumed without a trace, and never those of another model or folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipelines.datasets.classes import palette
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.image import encoder_input, token_grid
from pipelines.encoders.weights import build_clip, resolve_clip
from pipelines.errors import TooManyFailures, UsageError
from pipelines.method import label_maps
from pipelines.models.segmenter import read_segmenter
from pipelines.ops.crf import CrfParameters, dense_crf
from pipelines.ops.label_map import resize_maps
from pipelines.ops.par import pixel_adaptive_refinement
from pipelines.options.train import PredictOptions
from pipelines.stages import predict
from pipelines.stores.array_store import ArrayWriter, iter_records
from pipelines.stores.mask_store import photo_of_mask, write_mask
from tests.fixtures.heard import Heard

PLAIN = PredictOptions(scales=(1.0,), flip=False)
FULL = PredictOptions(scales=(1.0, 1.5), flip=True)


def maps(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def twin(models, model) -> Callable[[Path, PredictOptions], NDArray[np.float32]]:
    """Logits ``(C + 1, H, W)`` of one photo, in the obvious way."""
    weights = resolve_clip("tiny-quickgelu", str(models.visual))
    encoder = ClipEncoder(build_clip(weights), torch.device("cpu"))
    decoder = read_segmenter(model, weights).decoder

    def logits(path: Path, options: PredictOptions) -> NDArray[np.float32]:
        with Image.open(path) as file:
            image = file.convert("RGB")
        width, height = image.size
        longer = max(width, height)
        if options.long_side and longer > options.long_side:
            width, height = round(width * options.long_side / longer), round(height * options.long_side / longer)
        grid = token_grid(height, width, 16)
        total, passes = torch.zeros(21, *grid), 0
        for scale in options.scales:
            picture = encoder_input(image, token_grid(height, width, 16, scale), 16, encoder.mean, encoder.std)[None]
            for mirrored in (False, True) if options.flip else (False,):
                with torch.no_grad():
                    tokens = encoder.encode(picture.flip(-1) if mirrored else picture, token_blocks=4)
                    found = decoder(tokens.block_tokens, tokens.grid)[0]  # (1, C + 1, h', w')
                found = found.flip(-1) if mirrored else found
                total += torch.nn.functional.interpolate(found, size=grid, mode="bilinear")[0]
                passes += 1
        mean = total / passes
        coarse = (mean - mean.max(0).values).half().numpy()  # what travels to the workers
        return resize_maps(coarse, file.size[::-1])

    return logits


@pytest.mark.parametrize("options", [PLAIN, FULL, FULL.model_copy(update={"long_side": 25})], ids=["one", "all", "reduced"])
def test_label_maps_are_those_of_a_slow_twin(work_with_model, tiny_voc, twin, options):
    counts = predict.run(work_with_model, options)
    assert (counts.done, counts.skipped, counts.failed) == (6, 0, 0)
    folder = work_with_model.work / "predictions/train"
    assert maps(folder).keys() == set(tiny_voc.ids)
    seen = set()
    for image_id in tiny_voc.ids:
        with Image.open(folder / f"{image_id}.png") as image:
            assert np.array_equal(np.array(image.getpalette()), palette().ravel())
        expected = twin(tiny_voc.root / f"JPEGImages/{image_id}.jpg", options).argmax(0)
        assert np.array_equal(pixels(folder / f"{image_id}.png"), expected)
        seen.update(np.unique(expected).tolist())
    assert len(seen) > 2


def test_options_change_label_maps(workspace_in, model, tmp_path):
    """What the twin is compared with is not the same everywhere."""
    sets = [PLAIN, FULL, FULL.model_copy(update={"long_side": 40}), FULL.model_copy(update={"flip": False})]
    found = set()
    for number, options in enumerate(sets):
        workspace = workspace_in(tmp_path / str(number))
        predict.run(workspace, options.model_copy(update={"model": model}))
        found.add(tuple(maps(workspace.predictions / "train").values()))
    assert len(found) == len(sets)


def test_highest_logit_of_each_token_is_nought(work_with_model, twin, tiny_voc, monkeypatch):
    """Half precision would tell 10.001 from 10.002 no more."""
    jobs = {}

    def look(job, **_):
        jobs[job.image_id] = job.maps
        write_mask(job.target, np.zeros(job.size, np.uint8), palette())

    monkeypatch.setattr(predict, "make_label_map", look)
    predict.run(work_with_model, FULL)
    assert jobs.keys() == set(tiny_voc.ids)
    for logits in jobs.values():
        assert (logits.shape[0], logits.dtype) == (21, np.float16)
        assert (logits.max(0) == 0).all()


@pytest.mark.parametrize("scales", [(1.0,), (0.5,), (1.0, 1.5)])
def test_batches_of_three_equal_single_photos(workspace_in, model, tmp_path, scales):
    """Photos of one grid at half the size may differ at the whole."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, size in enumerate([(64, 64), (64, 48), (48, 64), (64, 64), (60, 52), (64, 48)]):
        noise = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((size[1], size[0])).save(photos / f"{number}.png")
    options = PredictOptions(model=model, images=photos, scales=scales, probabilities=True)
    found = []
    for size in (1, 3):
        workspace = workspace_in(tmp_path / str(size), batch_size=size)
        assert predict.run(workspace, options).done == 6
        found.append(workspace.predictions / "photos")
    records = [dict(iter_records(folder.with_suffix(".h5"))) for folder in found]
    for image_id, (array, _) in records[0].items():
        np.testing.assert_allclose(records[1][image_id][0].astype(float), array.astype(float), atol=1e-3)
    differing = [(pixels(found[0] / f"{i}.png") != pixels(found[1] / f"{i}.png")).mean() for i in records[0]]
    assert max(differing) < 1e-3  # rounding may decide a tie


@pytest.mark.parametrize("photo", ["", "tiny"])
def test_probabilities_sum_to_one_and_name_the_same_class(work_with_model, tmp_path, photo):
    options = FULL.model_copy(update={"probabilities": True})
    if photo:  # a photo of one token is the same class everywhere: nothing is lost in the resizing
        (tmp_path / "photos").mkdir()
        for number in range(4):
            noise = np.random.default_rng(number).integers(0, 256, (9, 13, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / f"photos/{number}.png")
        options = options.model_copy(update={"images": tmp_path / "photos"})
    predict.run(work_with_model, options)
    folder = work_with_model.predictions / ("photos" if photo else "train")
    for image_id, (array, attributes) in iter_records(folder.with_suffix(".h5")):
        found = pixels(folder / f"{image_id}.png")
        photo_made_of = photo_of_mask(folder / f"{image_id}.png")
        assert photo_made_of
        assert (array.dtype, attributes) == (np.float16, {"size": list(found.shape), "photo": photo_made_of})
        assert array.shape == (21, *token_grid(*found.shape, 16))
        np.testing.assert_allclose(array.astype(np.float32).sum(0), 1, atol=2e-3)
        if photo:
            assert array.shape == (21, 1, 1)
            assert (found == array.argmax(0)).all()


def test_split_needs_neither_ground_truth_nor_memory(workspace_in, model, tiny_voc, tmp_path):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "VOC2012", ignore=shutil.ignore_patterns("SegmentationClass")))
    found = []
    for name, where in (("a", tiny_voc.root), ("b", root)):
        workspace = workspace_in(tmp_path / name, root=where, split="val")
        assert predict.run(workspace, PLAIN.model_copy(update={"model": model})).done == 2
        assert not (workspace.work / "work.json").exists()
        found.append(maps(workspace.predictions / "val"))
    assert found[0] == found[1]


def test_folder_of_photos_needs_no_dataset(workspace_in, work_with_model, model, tiny_voc, tmp_path):
    predict.run(work_with_model, PLAIN)
    photos = Path(shutil.copytree(tiny_voc.root / "JPEGImages", tmp_path / "a.b/my.photos"))
    (photos / "notes.txt").write_text("no photo")
    (photos / "._a_cat.jpg").write_bytes(b"what a Mac leaves behind")
    (photos / "deeper").mkdir()
    other = workspace_in(tmp_path / "other", root=tmp_path / "nowhere")
    counts = predict.run(other, PLAIN.model_copy(update={"model": model, "images": photos}))
    assert counts.done == 6
    assert maps(other.predictions / "my_photos") == maps(work_with_model.predictions / "train")
    manifest = json.loads((other.predictions / "my_photos.json").read_text())
    assert (manifest["dataset"]["kind"], manifest["dataset"]["split"]) == ("folder", "my.photos")


def test_only_what_is_missing_is_made_again(work_with_model):
    options = FULL.model_copy(update={"probabilities": True})
    predict.run(work_with_model, options)
    folder = work_with_model.predictions / "train"
    before, store = maps(folder), folder.with_suffix(".h5").read_bytes()
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "b_trio.png").unlink()
    leftover = folder / ".a_cat.png.x.tmp"
    leftover.write_bytes(b"half")
    counts = predict.run(work_with_model, options)
    assert (counts.done, counts.skipped) == (1, 5)
    assert (maps(folder), folder.with_suffix(".h5").read_bytes()) == (before, store)
    assert not leftover.exists()
    changed = {path.name for path in folder.iterdir() if path.stat().st_mtime_ns != stamps[path.name]}
    assert changed == {"b_trio.png"}
    manifest = json.loads(folder.with_suffix(".json").read_text())
    assert (manifest["complete"], manifest["counts"]) == (True, {"done": 1, "skipped": 5, "failed": 0})


def test_probabilities_may_be_asked_for_later(work_with_model):
    predict.run(work_with_model, FULL)
    folder = work_with_model.predictions / "train"
    before = maps(folder)
    assert not folder.with_suffix(".h5").exists()
    later = FULL.model_copy(update={"probabilities": True})
    assert predict.run(work_with_model, later).done == 6
    assert maps(folder) == before
    assert predict.run(work_with_model, later).skipped == 6
    assert predict.run(work_with_model, FULL).skipped == 6


def test_another_split_may_join_a_folder(work_with_model, workspace_in, tmp_path):
    output = FULL.model_copy(update={"output": tmp_path / "all"})
    assert predict.run(workspace_in(work_with_model.work, split="val"), output).done == 2
    counts = predict.run(work_with_model, output)
    assert (counts.done, counts.skipped) == (4, 2)


CHANGES = {
    "scales": ({"scales": (1.0,)}, "scales: "),
    "flip": ({"flip": False}, "flip: true -> false"),
    "long side": ({"long_side": 32}, "long_side: 512 -> 32"),
    "model": ({}, "model: "),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_options_are_refused_until_forced(work_with_model, write_model, change):
    update, said = CHANGES[change]
    options = FULL.model_copy(update={"probabilities": True})
    predict.run(work_with_model, options)
    folder = work_with_model.predictions / "train"
    before = maps(folder)
    if change == "model":
        write_model(work_with_model.model, seed=1)
    other = options.model_copy(update=update)
    with pytest.raises(UsageError, match=said) as error:
        predict.run(work_with_model, other)
    assert "--force" in str(error.value)
    assert maps(folder) == before
    counts = predict.run(replace(work_with_model, force=True), other)
    assert (counts.done, counts.skipped) == (6, 0)
    assert maps(folder).keys() == before.keys()
    assert maps(folder) != before
    assert predict.run(work_with_model, other).skipped == 6


@pytest.mark.parametrize("update", [{"crf_iterations": 3}, {"boundary": "par", "crf_iterations": 3}])
def test_numbers_of_a_refinement_do_not_count_without_it(work_with_model, update):
    options = FULL.model_copy(update={"boundary": update.get("boundary", "none")})
    predict.run(work_with_model, options)
    assert predict.run(work_with_model, options.model_copy(update=update)).skipped == 6


def crf_twin(photo: NDArray[np.uint8], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    return dense_crf(photo, scores, CrfParameters(3, gaussian_sxy=3.0, bilateral_sxy=64.0, bilateral_srgb=5.0))


def par_twin(photo: NDArray[np.uint8], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    pixels = torch.from_numpy(photo).permute(2, 0, 1)
    return pixel_adaptive_refinement(pixels[None], torch.from_numpy(scores)[None], (1, 2, 4, 8, 12), 3)[0].numpy()


@pytest.mark.parametrize(("boundary", "refine"), [("crf", crf_twin), ("par", par_twin)])
def test_boundary_refinement_is_that_of_the_classes_found(work_with_model, twin, tiny_voc, boundary, refine):
    if boundary == "crf":
        pytest.importorskip("pydensecrf")
    update = {"boundary": boundary, f"{boundary}_iterations": 3, f"{boundary}_scale": 1.0}
    assert predict.run(work_with_model, PLAIN.model_copy(update=update)).done == 6
    changed = 0
    for image_id in tiny_voc.ids:
        path = tiny_voc.root / f"JPEGImages/{image_id}.jpg"
        logits = twin(path, PLAIN)
        plain = logits.argmax(0)
        scores = torch.from_numpy(logits).softmax(0).numpy()
        kept = np.array(sorted({0, *plain.ravel().tolist()}))
        scores = scores[kept] / scores[kept].sum(0)
        with Image.open(path) as photo:
            expected = kept[refine(np.array(photo), scores).argmax(0)]
        found = pixels(work_with_model.predictions / f"train/{image_id}.png")
        assert (found != expected).mean() < 1e-3
        changed += (found != plain).any()
    assert changed


def test_winners_are_the_argmax_of_all(work_with_model, tmp_path):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(21, 5, 7)).astype(np.float16)
    logits[3] = logits[1] = logits.max(0)  # a tie: the first wins
    found = label_maps.winners(logits, (61, 83))
    assert found.dtype == np.uint8
    assert np.array_equal(found, resize_maps(logits, (61, 83)).argmax(0))


def test_bad_photo_among_good_ones(workspace_in, model, tiny_voc, tmp_path):
    photos = Path(shutil.copytree(tiny_voc.root / "JPEGImages", tmp_path / "photos"))
    (photos / "b_trio.jpg").write_bytes(b"no photo")
    options = PLAIN.model_copy(update={"model": model, "images": photos})
    with pytest.raises(TooManyFailures, match="--max-failures"):
        predict.run(workspace_in(tmp_path / "w"), options)
    workspace = workspace_in(tmp_path / "w", max_failures=1)
    counts = predict.run(workspace, options)
    assert (counts.done + counts.skipped, counts.failed) == (5, 1)
    assert maps(workspace.predictions / "photos").keys() == set(tiny_voc.ids) - {"b_trio"}
    line = json.loads((workspace.work / "failures.jsonl").read_text())
    assert (line["stage"], line["image"]) == ("predict", "b_trio")


@pytest.mark.parametrize("supervision", ["pseudo", "masks"])
def test_model_trained_with_masks_says_so(work_with_model, write_model, supervision):
    write_model(work_with_model.model, supervision=supervision)
    progress = Heard()
    predict.run(work_with_model, PLAIN, progress)
    said = ["the model was trained on ground-truth masks: an upper bound, not a weakly supervised result"]
    assert progress.notes == (said if supervision == "masks" else [])
    manifest = json.loads((work_with_model.predictions / "train.json").read_text())
    assert manifest["settings"]["supervision"] == supervision
    assert "clip" in manifest["settings"]
    assert str(work_with_model.work) not in json.dumps(manifest)  # no path


def test_a_kill_between_mask_and_probabilities_is_made_good(work_with_model):
    """A part of the store is lost, its label maps are there."""
    options = PLAIN.model_copy(update={"probabilities": True})
    predict.run(work_with_model, options)
    store = work_with_model.predictions / "train.h5"
    before, records = store.read_bytes(), dict(iter_records(store))
    store.unlink()
    del records["b_trio"], records["f_car"]
    with ArrayWriter(store) as writer:
        for image_id, record in records.items():
            writer.add(image_id, *record)
    assert predict.run(work_with_model, options).done == 2
    assert store.read_bytes() == before
    store.unlink()
    assert predict.run(work_with_model, options).done == 6
    assert store.read_bytes() == before

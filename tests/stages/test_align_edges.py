"""`ssr align` where there is little or nothing to learn from: one photo, no labels, one class, bad images, no masks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import SsrError, TooManyFailures, UsageError
from pipelines.options.align import AlignOptions
from pipelines.options.sources import ClipOptions, DatasetOptions
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.stages.align import stage as align
from pipelines.stages.align.inputs import drawn_patches
from pipelines.stores.array_store import ArrayReader
from pipelines.workdir.workspace import Workspace

OPTIONS = AlignOptions(cam="initial", hidden=8, tokens=16, batch=2, iterations=7, refresh=3, learning_rate=1e-3)
OUTPUTS = ("cmpa.safetensors", "align/metrics.json", "align/tokens.h5", "align/cams.h5")


def read(store: Path, image_id: str) -> np.ndarray:
    with ArrayReader(store) as reader:
        return reader.read(image_id)[0]


def manifest(work: Path) -> dict[str, object]:
    return json.loads((work / "cmpa.json").read_text())


def bare(workspace: Workspace, **changed: object) -> align.Counts:
    """A run that needs no superpixels."""
    return align.run(workspace, OPTIONS.model_copy(update=changed), CamsOptions(), RefineOptions())


def some(workspace_in, make_voc, tmp_path: Path, photos: dict[str, tuple[str, ...]], **options: object) -> Workspace:
    make_voc(tmp_path / "voc", {name: ((48, 32), labels) for name, labels in photos.items()}, masks=False)
    return workspace_in(tmp_path / "work", root=tmp_path / "voc", **options)


def test_other_photos_with_the_same_labels_are_not_the_same_training(make_voc, workspace_in, tmp_path):
    """Two splits of one class: what was learned on the first is not passed off as learned on the second."""
    make_voc(tmp_path / "voc", dict.fromkeys(("one", "two"), ((48, 32), ("cat",))), masks=False)
    found = []
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(name)
        workspace = workspace_in(tmp_path / "work", root=tmp_path / "voc", split=str(tmp_path / f"{name}.txt"))
        try:
            bare(workspace)
        except UsageError as error:
            assert "--force" in str(error)  # noqa: PT017 - refusing and training are both right
            return
        found.append((workspace.work / "cmpa.safetensors").read_bytes())
    assert found[0] != found[1]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"prototypes": "kmeans"},
        {"loss": "intra"},
        {"tokens": 2},
    ],
)
def test_one_photo_ends_well(workspace_in, make_voc, tmp_path, changed):
    workspace = some(workspace_in, make_voc, tmp_path, {"one": ("cat", "dog")})
    assert bare(workspace, **changed).done == 1
    assert (workspace.work / "cmpa.safetensors").is_file()
    assert manifest(workspace.work)["counts"] == {"iterations": 7, "photos": 1}


def test_no_labels_at_all_is_one_clear_line(workspace_in, make_voc, tmp_path):
    workspace = some(workspace_in, make_voc, tmp_path, {"one": (), "two": ()})
    with pytest.raises(SsrError, match="no image has a class") as caught:
        bare(workspace)
    assert "\n" not in str(caught.value)
    assert not (workspace.work / "cmpa.safetensors").exists()


def test_one_class_without_background_words_is_refused(models, tiny_folder, workspace_in, tmp_path):
    (tmp_path / "classes.toml").write_text('background = []\n[[classes]]\nname = "cat"\n')
    (tmp_path / "images").mkdir()
    shutil.copy(tiny_folder.root / "images/one.png", tmp_path / "images/one.png")
    (tmp_path / "labels.csv").write_text("image,labels\none.png,cat\n")
    dataset = DatasetOptions(kind="folder", root=tmp_path, classes=tmp_path / "classes.toml")
    clip = ClipOptions(model=workspace_in(tmp_path / "w").clip.model, pretrained=str(models.full))
    workspace = dataclasses.replace(workspace_in(tmp_path / "w"), dataset_options=dataset, clip=clip)
    with pytest.raises(UsageError, match="--background-bank") as caught:
        bare(workspace)
    assert "one class and no background words" in str(caught.value)
    assert not (tmp_path / "w/align").exists()


def test_without_superpixels_the_error_names_the_command(workspace_in, tmp_path):
    with pytest.raises(SsrError, match="`ssr superpixels --work "):
        align.run(workspace_in(tmp_path / "work"), OPTIONS, CamsOptions(readout="mix"), RefineOptions())


@pytest.mark.parametrize(("allowed", "goes_on"), [(0, False), (1, True), (-1, True)])
def test_a_bad_image_is_counted(workspace_in, make_voc, tmp_path, allowed, goes_on):
    workspace = some(
        workspace_in, make_voc, tmp_path, {"bad": ("cat",), "one": ("cat",), "two": ("dog",)}, max_failures=allowed
    )
    (tmp_path / "voc/JPEGImages/bad.jpg").write_text("no photo")
    if not goes_on:
        with pytest.raises(TooManyFailures, match=r"bad.*--max-failures"):
            bare(workspace)
        assert not (workspace.work / "cmpa.safetensors").exists()
        return
    counts = bare(workspace)
    assert (counts.done, counts.failed) == (2, 1)
    failures = [json.loads(line) for line in (workspace.work / "failures.jsonl").read_text().splitlines()]
    assert [(entry["stage"], entry["image"]) for entry in failures] == [("align", "bad")]
    assert manifest(workspace.work)["counts"]["photos"] == 2


def test_all_images_bad_is_one_line(workspace_in, make_voc, tmp_path):
    """On patches of another split that are there already, too."""
    some(workspace_in, make_voc, tmp_path, {"one": ("cat",), "bad": ("dog",)})
    (tmp_path / "voc/JPEGImages/bad.jpg").write_text("no photo")
    for ids in ("bad", "one", "bad"):
        (tmp_path / "ids.txt").write_text(ids)
        listed = workspace_in(
            tmp_path / "work", root=tmp_path / "voc", split=str(tmp_path / "ids.txt"), max_failures=-1, force=True
        )
        if ids == "one":
            bare(listed)
        else:
            with pytest.raises(SsrError):
                bare(listed)


def test_a_photo_whose_redo_failed_is_not_used_with_the_cam_of_its_old_labels(workspace_in, make_voc, tmp_path):
    workspace = some(workspace_in, make_voc, tmp_path, {"one": ("cat",), "two": ("dog",)})
    bare(workspace)
    (tmp_path / "voc/Annotations/one.xml").write_text("<annotation><object><name>bird</name></object></annotation>")
    (tmp_path / "voc/JPEGImages/one.jpg").write_text("no photo")
    counts = bare(workspace_in(tmp_path / "work", root=tmp_path / "voc", max_failures=-1, force=True))
    assert counts.failed == 1
    assert manifest(tmp_path / "work")["counts"]["photos"] == 1


def test_no_mask_is_needed_or_opened(workspace_in, make_voc, tmp_path):
    """A ground truth that cannot be read does no harm."""
    make_voc(tmp_path / "voc", {"one": ((48, 32), ("cat",)), "two": ((48, 32), ("dog",))})
    masks = sorted((tmp_path / "voc/SegmentationClass").glob("*.png"))
    assert len(masks) == 2
    found = []
    for spoil in (lambda path: None, lambda path: path.write_bytes(b"no mask"), Path.unlink):
        for mask in masks:
            spoil(mask)
        workspace = workspace_in(tmp_path / f"work{len(found)}", root=tmp_path / "voc")
        bare(workspace)
        found.append([(workspace.work / name).read_bytes() for name in OUTPUTS])
    assert found[0] == found[1] == found[2]


def test_drawn_patches_are_spread_and_depend_on_the_id():
    twice = [drawn_patches("a", 1000, 64) for _ in range(2)]
    assert np.array_equal(*twice)
    assert len(set(twice[0].tolist())) == 64
    assert not np.array_equal(twice[0], drawn_patches("b", 1000, 64))
    assert (twice[0] < 500).any() and (twice[0] >= 500).any()  # noqa: PT018
    assert len(drawn_patches("a", 1, 5)) == 5


def test_a_photo_of_another_file_is_still_a_photo(workspace_in, make_voc, tmp_path):
    """Sizes that share no grid with others, and one patch alone."""
    workspace = some(workspace_in, make_voc, tmp_path, {"one": ("cat",), "dot": ("dog",)}, batch_size=4)
    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "voc/JPEGImages/dot.jpg")
    assert bare(workspace).done == 2
    assert read(workspace.work / "align/cams.h5", "dot").shape == (1, 16)
    assert np.isfinite(read(workspace.work / "align/tokens.h5", "dot")).all()

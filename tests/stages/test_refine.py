"""Refinement: one pass for many sets of options, clear words where an input is missing, no mask that labels outlived."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.config import read_recipe
from pipelines.errors import SsrError, UsageError
from pipelines.execution.label_map_workers import LabelMapWorkers
from pipelines.options.stages import CamsOptions, RefineOptions, SuperpixelsOptions
from pipelines.stages import cams, superpixels
from pipelines.stages.refine import stage as refine
from pipelines.stages.refine.stage import Target, run_targets
from pipelines.stores.array_store import iter_records
from pipelines.stores.manifest import read_manifest
from tests.fixtures.heard import Heard

SSR = RefineOptions(**read_recipe("ssr")["refine"])
CLIP_ES = RefineOptions(**read_recipe("clip-es")["refine"])


def arrays(store: Path) -> dict[str, np.ndarray]:
    return {image_id: array.astype(np.float32) for image_id, (array, _) in iter_records(store)}


def masks(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_targets_in_one_pass_equal_runs_of_their_own(workspace, tmp_path):
    sets = {
        "gate": SSR,
        "clip-es": CLIP_ES,
        "colour": SSR.model_copy(update={"superpixel_mask": "colour", "mask_threshold": 0.05}),
        "token": SSR.model_copy(update={"superpixel_mask": "token", "power": 2, "min_confidence": 0.6}),
        "dino alone": RefineOptions(dino_weight=1.0),
    }
    together = run_targets(workspace, [Target(options, tmp_path / name) for name, options in sets.items()])
    assert [counts.done for counts in together] == [6] * len(sets)
    seen = set()
    for name, options in sets.items():
        alone = tmp_path / f"{name} alone"
        run_targets(workspace, [Target(options, alone)])
        assert (alone / "refined.h5").read_bytes() == (tmp_path / name / "refined.h5").read_bytes()
        assert masks(alone / "masks") == masks(tmp_path / name / "masks")
        seen.add((alone / "refined.h5").read_bytes())
    assert len(seen) == len(sets)  # they do differ


def test_batches_of_four_equal_single_images(workspace_in, workspace, tmp_path):
    refine.run(workspace, SSR)
    other = workspace_in(tmp_path / "other", batch_size=4)
    other.work.mkdir()
    for name in ("superpixels.h5", "superpixels.json", "cams.h5", "cams.json"):
        shutil.copy(workspace.work / name, other.work / name)
    refine.run(other, SSR)
    single, batched = arrays(workspace.refined), arrays(other.refined)
    for image_id, array in single.items():
        np.testing.assert_allclose(batched[image_id], array, atol=2e-3)


@pytest.mark.parametrize("options", [SSR, CLIP_ES], ids=["ssr", "clip-es"])
def test_images_without_labels_become_background(workspace, options):
    refine.run(workspace, options)
    with Image.open(workspace.masks / "d_empty.png") as mask:
        assert mask.size == (64, 48)
        assert not np.asarray(mask).any()
    assert arrays(workspace.refined)["d_empty"].shape == (0, 3, 4)


def test_without_cams_the_error_names_the_command(workspace_in, tmp_path):
    with pytest.raises(SsrError, match="`ssr cams --work "):
        refine.run(workspace_in(tmp_path / "new"), SSR)


def test_cams_begun_but_not_there_names_the_command_too(workspace):
    workspace.cams.unlink()  # killed between the manifest and the first image
    with pytest.raises(SsrError, match="`ssr cams --work "):
        refine.run(workspace, SSR)


@pytest.mark.parametrize("kind", ["gate", "colour"])
def test_without_superpixels_the_error_names_the_command(workspace, kind):
    workspace.superpixels.unlink()
    (workspace.work / "superpixels.json").unlink()
    with pytest.raises(SsrError, match="`ssr superpixels --work "):
        refine.run(workspace, SSR.model_copy(update={"superpixel_mask": kind}))
    assert refine.run(workspace, SSR.model_copy(update={"superpixel_mask": "token"})).done == 6


@pytest.mark.parametrize("stage", ["cams", "superpixels"])
def test_one_missing_input_fails_that_image_only(workspace_in, tiny_voc, tmp_path, stage):
    work, root = tmp_path / "work", tiny_voc.root
    part = {stage: "val"}
    superpixels.run(workspace_in(work, split=part.get("superpixels", "train")), SuperpixelsOptions(segments=12))
    cams.run(workspace_in(work, root=root, split=part.get("cams", "train")), CamsOptions())
    counts = refine.run(workspace_in(work, max_failures=-1), SSR)
    assert (counts.done, counts.failed) == (2, 4)
    log = (work / "failures.jsonl").read_text()
    assert log.count(f"run `ssr {stage}`") == 4


def test_no_attention_left_is_a_usage_error(workspace):
    for options in (RefineOptions(clip_blocks=0, dino_blocks=0), RefineOptions(clip_blocks=0, dino_weight=0)):
        with pytest.raises(UsageError, match="no attention left"):
            refine.run(workspace, options)


def test_targets_of_different_passes_are_refused(workspace, tmp_path):
    targets = [Target(RefineOptions(clip_blocks=n), tmp_path / str(n)) for n in (2, 3)]
    with pytest.raises(UsageError, match=r"found \[2, 3\]"):
        run_targets(workspace, targets)


def test_confidence_below_the_threshold_becomes_255(workspace):
    refine.run(workspace, SSR.model_copy(update={"min_confidence": 0.6}))
    with Image.open(workspace.masks / "b_trio.png") as mask:
        assert (np.asarray(mask) == 255).any()


def relabelled(workspace_in, tiny_voc, tmp_path, **run):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    workspace = workspace_in(tmp_path / "work", root=root, **run)
    cams.run(workspace, CamsOptions())
    refine.run(workspace, CLIP_ES)
    (root / "Annotations/a_cat.xml").write_text("<annotation><object><name>dog</name></object></annotation>")
    return workspace_in(tmp_path / "work", root=root, **run)


def test_auto_without_pydensecrf2_is_par_and_missing_masks_need_no_encoder(workspace, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    options, heard = SSR.model_copy(update={"boundary": "auto"}), Heard()
    refine.run(workspace, options, heard)
    assert heard.notes == ["boundary refinement auto is par: pydensecrf2 is not installed"]
    assert read_manifest(workspace.masks).settings["boundary"] == "par"
    whole = masks(workspace.masks)
    (workspace.masks / "b_trio.png").unlink()
    monkeypatch.setattr(refine, "FrozenModels", pytest.fail)
    assert refine.run(workspace, options).done == 1
    assert masks(workspace.masks) == whole
    assert refine.run(workspace, SSR.model_copy(update={"boundary": "par"})).skipped == 6
    monkeypatch.setattr("importlib.util.find_spec", lambda module: object())
    with pytest.raises(UsageError, match='boundary: "par" -> "crf"'):
        refine.run(workspace, options)


def test_changed_labels_redo_that_image_only(workspace_in, tiny_voc, tmp_path):
    workspace = relabelled(workspace_in, tiny_voc, tmp_path)
    stamps = {path.name: path.stat().st_mtime_ns for path in workspace.masks.glob("*.png")}
    with pytest.raises(SsrError, match="labels changed"):
        refine.run(workspace, CLIP_ES)
    cams.run(workspace, CamsOptions())
    counts = refine.run(workspace, CLIP_ES)
    assert (counts.done, counts.skipped) == (1, 5)
    with Image.open(workspace.masks / "a_cat.png") as mask:
        assert set(np.unique(np.asarray(mask)).tolist()) == {0, 12}
    changed = [name for name, stamp in stamps.items() if (workspace.masks / name).stat().st_mtime_ns != stamp]
    assert changed == ["a_cat.png"]


def test_mask_of_old_labels_does_not_outlive_a_kill(workspace_in, tiny_voc, tmp_path, monkeypatch):
    """The refined CAM is committed, then the process dies before the mask is written."""
    workspace = relabelled(workspace_in, tiny_voc, tmp_path)
    cams.run(workspace, CamsOptions())

    def die(*_: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(LabelMapWorkers, "submit", die)
    with pytest.raises(RuntimeError, match="killed"):
        refine.run(workspace, CLIP_ES)
    monkeypatch.undo()
    refine.run(workspace, CLIP_ES)
    with Image.open(workspace.masks / "a_cat.png") as mask:
        assert 8 not in np.asarray(mask)
        assert (np.asarray(mask) == 12).any()

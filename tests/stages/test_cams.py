"""CAMs: the same whatever the batch, redone where labels change."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.config import read_recipe
from pipelines.errors import SsrError
from pipelines.options.stages import CamsOptions, SuperpixelsOptions
from pipelines.stages import cams, superpixels
from pipelines.stores.array_store import ArrayReader, ArrayWriter, iter_records
from pipelines.workdir.workspace import Workspace

GRADCAM = CamsOptions()
SSR = CamsOptions(**read_recipe("ssr")["cams"])


def arrays(store: Path) -> dict[str, np.ndarray]:
    return {image_id: array.astype(np.float32) for image_id, (array, _) in iter_records(store)}


@pytest.fixture
def workspace(workspace_in, tmp_path) -> Workspace:
    return workspace_in(tmp_path / "work")


def test_shapes_and_ranges(workspace):
    assert cams.run(workspace, GRADCAM).done == 6
    with ArrayReader(workspace.cams) as reader:
        for image_id, shape in (("a_cat", (1, 4, 6)), ("b_trio", (3, 6, 4)), ("d_empty", (0, 3, 4)), ("f_car", (1, 3, 4))):
            cam, attributes = reader.read(image_id)
            assert (cam.shape, cam.dtype) == (shape, np.float16)
            assert attributes["size"] == {"f_car": [37, 51], "d_empty": [48, 64]}.get(image_id, attributes["size"])
            for each in cam:
                assert (each.min(), each.max()) == (0, 1)
        assert reader.attributes("b_trio")["labels"] == [2, 11, 14]


@pytest.mark.parametrize("options", [GRADCAM, SSR, CamsOptions(scales=(0.5, 1.0), flip=True)], ids=["gradcam", "ssr", "scales"])
def test_batches_of_four_equal_single_images(workspace_in, finished, tmp_path, options):
    found = []
    for size in (1, 4):
        workspace = workspace_in(tmp_path / str(size), batch_size=size)
        workspace.work.mkdir()
        for name in ("superpixels.h5", "superpixels.json"):
            shutil.copy(finished["ssr"] / name, workspace.work / name)
        cams.run(workspace, options)
        found.append(arrays(workspace.cams))
    assert found[0].keys() == found[1].keys()
    for image_id, single in found[0].items():
        np.testing.assert_allclose(found[1][image_id], single, atol=1e-3)


def test_changed_labels_redo_that_image_only(workspace_in, tiny_voc, tmp_path):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    workspace = workspace_in(tmp_path / "work", root=root)
    cams.run(workspace, GRADCAM)
    before = arrays(workspace.cams)
    with ArrayWriter(workspace.cams) as writer:  # marks that only a recomputation would remove
        for image_id, (array, attributes) in list(iter_records(workspace.cams)):
            writer.add(image_id, np.full_like(array, 0.25), attributes)
    (root / "Annotations/a_cat.xml").write_text("<annotation><object><name>dog</name></object></annotation>")
    counts = cams.run(workspace_in(tmp_path / "work", root=root), GRADCAM)
    assert (counts.done, counts.skipped) == (1, 5)
    after = arrays(workspace.cams)
    assert all((after[i] == 0.25).all() for i in after if i != "a_cat")
    assert after["a_cat"].max() == 1
    assert not np.array_equal(after["a_cat"], before["a_cat"])


def test_dense_readout_needs_superpixels_only_for_its_share(workspace):
    with pytest.raises(SsrError, match="ssr superpixels"):
        cams.run(workspace, SSR)
    assert cams.run(workspace, SSR.model_copy(update={"superpixel_share": 0.0})).done == 6


def test_superpixels_of_another_photo_are_noticed(workspace_in, tiny_voc, tmp_path):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    workspace = workspace_in(tmp_path / "work", root=root, max_failures=-1)
    superpixels.run(workspace, SuperpixelsOptions(segments=12))
    shutil.copy(root / "JPEGImages/c_bird.jpg", root / "JPEGImages/a_cat.jpg")
    counts = cams.run(workspace, SSR)
    assert (counts.done, counts.failed) == (5, 1)
    assert "its image was replaced after its superpixels were made" in (workspace.work / "failures.jsonl").read_text()

"""CAMs: the same whatever the batch, redone where labels change, and a seam for other logits."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.config import build_options, read_config, read_recipe
from pipelines.encoders.class_embeddings import text_embeddings
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.weights import build_clip, resolve_clip
from pipelines.errors import SsrError
from pipelines.method.cam_extractor import CamExtractor
from pipelines.ops.gradcam import cosine_logits
from pipelines.ops.scaling import min_max
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


def test_scales_and_flip_are_the_mean_of_their_passes(maker_of, samples):
    """One photo at two scales and mirrored, against four separate passes."""
    sample = samples["b_trio"]
    both = maker_of(CamsOptions(scales=(1.0, 2.0), flip=True))
    photo = both.load(sample)
    found = both.cams([photo])[0]
    total = torch.zeros_like(found)
    for index, scale in enumerate((1.0, 2.0)):
        single = maker_of(CamsOptions(scales=(scale,)))
        for mirrored in (False, True):
            one = replace(single.load(sample), grid=tuple(s // 16 for s in photo.inputs[index].shape[1:]))
            if mirrored:
                one = replace(one, inputs=tuple(x.flip(-1) for x in one.inputs))
            maps = single.cams([one])[0]
            maps = maps.flip(-1) if mirrored else maps
            total += torch.nn.functional.interpolate(maps[None], size=found.shape[1:], mode="bilinear")[0]
    torch.testing.assert_close(found, min_max(total.flatten(1)).view_as(total), atol=1e-4, rtol=0)
    assert (found - maker_of(GRADCAM).cams([maker_of(GRADCAM).load(sample)])[0]).abs().max() > 0.05


def test_mix_is_the_weighted_sum_of_its_parts(maker_of, samples):
    parts = {}
    for readout in ("gradcam", "dense"):
        maker = maker_of(CamsOptions(readout=readout))
        parts[readout] = maker.cams([maker.load(samples["e_pair"])])[0]
    maker = maker_of(CamsOptions(readout="mix", dense_weight=0.25))
    mixed = maker.cams([maker.load(samples["e_pair"])])[0]
    expected = min_max((0.25 * parts["dense"] + 0.75 * parts["gradcam"]).flatten(1)).view_as(mixed)
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=0)


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


def test_logits_of_ones_own_take_the_place_of_clips(maker_of, samples):
    """The seam for alignment heads: features in, logits over [classes ; background words] out."""
    plain = maker_of(GRADCAM)
    photo = plain.load(samples["e_pair"])
    seen: list[tuple[int, ...]] = []
    own = cosine_logits(plain.text, plain.encoder.logit_scale)

    def same(features: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(features.shape))
        return own(features)

    torch.testing.assert_close(maker_of(GRADCAM, same).cams([photo])[0], plain.cams([photo])[0])
    assert seen == [(1, 32)]
    turned = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))[0]
    other = maker_of(GRADCAM, lambda features: own(features @ turned)).cams([photo])[0]
    assert (other - plain.cams([photo])[0]).abs().max() > 0.05


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
    assert "its superpixels are (64, 96), the photo (80, 80)" in (workspace.work / "failures.jsonl").read_text()


@pytest.fixture(scope="module")
def samples(tiny_voc):
    from pipelines.datasets import load_dataset

    values, _ = read_config(tiny_voc.config)
    return {sample.image_id: sample for sample in load_dataset(build_options("dataset", values["dataset"])).samples}


@pytest.fixture(scope="module")
def maker_of(tiny_voc):
    """CamExtractor with the tiny CLIP, by options and logits."""
    from pipelines.datasets.classes import VOC12

    values, _ = read_config(tiny_voc.config)
    options = build_options("clip", values["clip"])
    clip = build_clip(resolve_clip(options.model, options.pretrained))
    text = text_embeddings(clip, VOC12, options)
    encoder = ClipEncoder(clip, torch.device("cpu"))
    return lambda options, logits=None: CamExtractor(encoder, text, options, logits)

"""Labels made on line: on whole photos those that `ssr refine` writes; padding and the batch leave no trace."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.method.aligned import head_features
from pipelines.ops.label_map import resize_maps, with_background
from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, RefineOptions, SuperpixelsOptions
from pipelines.options.train import TrainOptions
from pipelines.stages import cams, superpixels
from pipelines.stages.align import stage as align
from pipelines.stages.refine import stage as refine
from pipelines.stages.train.inputs import train_inputs
from pipelines.stages.train.settings import TrainSections
from pipelines.stores.array_store import iter_records
from pipelines.training.processes import Processes
from tests.fixtures.crops import crops_of, options_of

CPU = torch.device("cpu")
WHOLE = {  # as large as a crop
    "none": ((80, 80), ()),
    "one": ((80, 80), ("bird",)),
    "three": ((80, 80), ("dog", "person", "bird")),
    "two": ((80, 80), ("cat", "dog")),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory, make_voc) -> Path:
    root = tmp_path_factory.mktemp("whole") / "VOC2012"
    make_voc(root, WHOLE, masks=False)
    return root


@pytest.fixture(scope="module")
def prepared(root, workspace_in, tmp_path_factory) -> Path:
    """A work directory with superpixels and alignment heads."""
    workspace = workspace_in(tmp_path_factory.mktemp("prepared") / "work", root=root)
    superpixels.run(workspace, SuperpixelsOptions(segments=12))
    options = AlignOptions(cam="initial", hidden=8, tokens=16, batch=2, iterations=12, refresh=3, learning_rate=1e-2)
    align.run(workspace, options, CamsOptions(), RefineOptions())
    return workspace.work


# whole photos


HEADS = {"few_photos": 0.0}
CASES: dict[str, tuple[tuple[CamsOptions, RefineOptions], bool]] = {
    # options, through heads
    "clip-es, box mask": (options_of("clip-es"), False),
    "weclip": (options_of("weclip"), False),
    "cd-clip": (options_of("cd-clip"), False),
    "excel": (options_of("excel"), False),
    "resclip": (options_of("resclip"), False),
    "ssr, clusters": (options_of("ssr"), False),
    "ssr-plus": (options_of("ssr-plus"), False),
    "ssr, few clusters": (options_of("ssr", clusters=5, mask_threshold=0.4), False),
    "gate": (options_of("ssr", superpixel_mask="gate", mask_threshold=0.35, mask_every_step=False), False),
    "colour": (options_of("ssr", superpixel_mask="colour", clusters=4), False),
    "token and box, confidence": (
        options_of("clip-es", superpixel_mask="token", min_confidence=0.45, power=3, background_power=2.0),
        False,
    ),
    "DINO alone": (options_of("ssr", clip_blocks=0, dino_weight=1.0), False),
    "heads": (options_of("ssr"), True),
    "heads, GradCAM": (
        (options_of("ssr")[0].model_copy(update={"aligned_readout": "mix", "few_photos": 0.0}), options_of("ssr")[1]),
        True,
    ),
    "heads, ln_1": (
        (options_of("clip-es")[0].model_copy(update={"aligned_readout": "gradcam", "aligned_layer": "ln_1", **HEADS}),
         options_of("clip-es")[1]),
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_labels_of_whole_photos_are_those_of_refine(prepared, root, workspace_in, tmp_path, case, online):
    (cam_options, refine_options), through_heads = CASES[case]
    ckpt = prepared / "cmpa.safetensors" if through_heads else None
    work = tmp_path / "work"
    work.mkdir()
    for name in ("superpixels.h5", "superpixels.json"):
        (work / name).write_bytes((prepared / name).read_bytes())
    workspace = workspace_in(work, root=root)
    cams.run(workspace, cam_options.model_copy(update={"ckpt": ckpt}))
    refine.run(workspace, refine_options)
    stored = {name: (array.astype(np.float32), a) for name, (array, a) in iter_records(workspace.refined)}

    inputs, labels = online(workspace, (cam_options, refine_options), ckpt=ckpt)
    crops, encoded = crops_of(inputs)
    maps, found = labels.refined(crops, encoded), labels(crops, encoded).labels
    assert found.dtype == torch.int64
    seen = set()
    for crop, own, labelled in zip(crops, maps, found, strict=True):
        array, attributes = stored[crop.photo.sample.image_id]
        count = len(attributes["labels"])
        np.testing.assert_allclose(own[:count].numpy(), array.reshape(count, 25), atol=1.5e-2)  # CAMs are stored in fp16
        slack = 1e-3 + 2 * np.abs(own[:count].numpy() - array.reshape(count, 25)).max(initial=0)
        with Image.open(workspace.masks / f"{crop.photo.sample.image_id}.png") as mask:
            expected = np.asarray(mask)
        scores = with_background(resize_maps(array, (80, 80)), refine_options.background_power)
        first, second = np.sort(np.concatenate([scores, np.zeros((1, 80, 80))]), axis=0)[[-1, -2]]
        confidence = first / scores.sum(axis=0)
        unsure = (first - second < slack) | (np.abs(confidence - refine_options.min_confidence) < slack)
        assert np.array_equal(labelled.numpy()[~unsure], expected[~unsure])
        assert unsure.mean() < 0.25
        seen |= set(np.unique(expected).tolist())
    assert len(seen) > 2
    if refine_options.min_confidence:
        assert 255 in seen


def test_cases_differ(prepared, root, workspace_in, online):
    """Else the table above would not bite."""
    workspace, found = workspace_in(prepared, root=root), []
    for options, through_heads in CASES.values():
        inputs, labels = online(workspace, options, ckpt=Path("auto") if through_heads else None)
        found.append(labels.refined(*crops_of(inputs, "three", "two")))
    # WeCLIP's labels are CLIP-ES's
    others = [maps for name, maps in zip(CASES, found, strict=True) if name != "weclip"]
    for index, maps in enumerate(others):
        for other in others[index + 1 :]:
            assert (maps - other).abs().max() > 0.02
    torch.testing.assert_close(found[0], found[1])


# heads


def test_samples_for_the_heads(prepared, root, workspace_in, online):
    workspace = workspace_in(prepared, root=root)
    ckpt = {"ckpt": Path("auto"), "train_heads": True}
    inputs, labels = online(workspace, options_of("ssr"), **ckpt)
    crops, encoded = crops_of(inputs, "one", "none", "three")
    samples = labels(crops, encoded).samples
    assert samples is not None
    assert samples.classes.tolist() == [[2, -1, -1], [-1, -1, -1], [2, 11, 14]]
    expected = head_features(encoded.tokens_cls, encoded.tail, "output")
    assert torch.equal(samples.tokens, expected)
    assert torch.equal(samples.cams, labels.refined(crops, encoded))
    assert not samples.cams.requires_grad
    assert not samples.tokens.requires_grad
    assert online(workspace, options_of("ssr"), ckpt=Path("auto"))[1](crops, encoded).samples is None


@pytest.mark.parametrize("train_heads", [True, False])
def test_labels_follow_the_heads_while_they_change(prepared, root, workspace_in, train_heads, online):
    cam_options, refine_options = options_of("ssr")
    options = cam_options.model_copy(update={"few_photos": 0.0}), refine_options
    inputs, labels = online(workspace_in(prepared, root=root), options, ckpt=Path("auto"), train_heads=train_heads)
    crops, encoded = crops_of(inputs, "three")
    before = labels.refined(crops, encoded)
    with torch.no_grad():
        weight = inputs.encoders.alignment.heads.tsa.layers[3].weight
        weight += 0.5 * torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    moved = (labels.refined(crops, encoded) - before).abs().max() > 0.02
    assert bool(moved) == train_heads


def test_nothing_but_ground_truth_where_masks_supervise(tiny_voc, workspace_in, tmp_path):
    """No text, no CAMs, no DINO."""
    workspace = workspace_in(tmp_path / "w")
    options = TrainOptions(supervision="masks", crop=96, batch=6, min_scale=1, max_scale=1, flip=False, hidden=8)
    sections = TrainSections(options, AlignOptions(), *options_of("ssr")).checked(workspace)
    inputs = train_inputs(workspace, sections, CPU, Processes(), ExitStack())
    assert (inputs.labels, inputs.text, inputs.encoders.dino) == (None, None, None)
    crops, _ = crops_of(inputs)
    for crop in crops:
        own = crop.target
        image_id = crop.photo.sample.image_id
        with Image.open(tiny_voc.root / f"SegmentationClass/{image_id}.png") as mask:
            target = np.asarray(mask)[:96, :96]
        assert np.array_equal(own.numpy()[: target.shape[0], : target.shape[1]], target)
        assert torch.equal(own[~crop.valid], torch.full_like(own[~crop.valid], 255))

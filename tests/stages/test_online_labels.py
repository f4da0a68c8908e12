"""Labels made on line: on whole photos those that `ssr refine` writes; padding and the batch leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipelines.config import read_recipe
from pipelines.ops.label_map import label_map, resize_maps, with_background
from pipelines.ops.par import pixel_adaptive_refinement
from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, RefineOptions, SuperpixelsOptions
from pipelines.options.train import TrainOptions
from pipelines.stages import align, cams, refine, superpixels
from pipelines.stages.aligned_readout import head_features
from pipelines.stages.encoder_pair import Encoded
from pipelines.stages.online_labels import OnlineLabels
from pipelines.stages.refinement import refined_maps
from pipelines.stages.train_inputs import TrainInputs, TrainSections
from pipelines.stages.training_crops import Crop
from pipelines.stages.workspace import Workspace
from pipelines.stores.array_store import iter_records
from pipelines.training.processes import Processes

CPU = torch.device("cpu")
WHOLE = {  # as large as a crop
    "none": ((80, 80), ()),
    "one": ((80, 80), ("bird",)),
    "three": ((80, 80), ("dog", "person", "bird")),
    "two": ((80, 80), ("cat", "dog")),
}
RECIPES = {name: read_recipe(name) for name in ("ssr", "clip-es", "weclip")}


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


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def options_of(recipe: str, **refine_options: object) -> tuple[CamsOptions, RefineOptions]:
    sections = RECIPES[recipe]
    return CamsOptions(**sections["cams"]), RefineOptions(**{**sections["refine"], **refine_options})


def inputs_of(
    workspace: Workspace, stack: ExitStack, options: tuple[CamsOptions, RefineOptions], **train: Any
) -> tuple[TrainInputs, OnlineLabels]:
    plain = {"crop": 80, "batch": 9, "min_scale": 1, "max_scale": 1, "flip": False, "par_iterations": 0, "hidden": 8}
    sections = TrainSections(TrainOptions(**{**plain, "decoder_heads": 2, **train}), AlignOptions(), *options)
    inputs = TrainInputs(workspace, sections.checked(workspace), CPU, Processes(), stack)
    assert inputs.labels is not None
    return inputs, inputs.labels


def crops_of(inputs: TrainInputs, *ids: str) -> tuple[list[Crop], Encoded]:
    """Crops of the first step, in the order of the ids, and the same behind the encoders."""
    _, crops, bad = next(inputs.source.steps(0, Processes()))
    assert bad == []
    found = {crop.photo.sample.image_id: crop for crop in crops}
    chosen = [found[name] for name in ids or sorted(found)]
    return chosen, inputs.pair.encode([crop.photo for crop in chosen], clip_tokens=True)


# whole photos


HEADS = {"few_photos": 0.0}
CASES: dict[str, tuple[tuple[CamsOptions, RefineOptions], bool]] = {
    # options, through heads
    "clip-es, box mask": (options_of("clip-es"), False),
    "weclip": (options_of("weclip"), False),
    "ssr, clusters": (options_of("ssr"), False),
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
def test_labels_of_whole_photos_are_those_of_refine(prepared, root, workspace_in, tmp_path, stack, case):
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

    inputs, labels = inputs_of(workspace, stack, (cam_options, refine_options), ckpt=ckpt)
    crops, encoded = crops_of(inputs)
    maps, found = labels.refined(crops, encoded), labels(crops, encoded).labels
    assert found.dtype == torch.int64
    seen = set()
    for crop, own, labelled in zip(crops, maps, found, strict=True):
        array, attributes = stored[crop.photo.sample.image_id]
        count = len(attributes["labels"])
        np.testing.assert_allclose(own[:count].numpy(), array.reshape(count, 25), atol=1e-2)  # CAMs are stored in fp16
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
    assert len(seen) > 3
    if refine_options.min_confidence:
        assert 255 in seen


def test_cases_differ(prepared, root, workspace_in, stack):
    """Else the table above would not bite."""
    workspace, found = workspace_in(prepared, root=root), []
    for options, through_heads in CASES.values():
        inputs, labels = inputs_of(workspace, stack, options, ckpt=Path("auto") if through_heads else None)
        found.append(labels.refined(*crops_of(inputs, "three", "two")))
    # WeCLIP's labels are CLIP-ES's
    others = [maps for name, maps in zip(CASES, found, strict=True) if name != "weclip"]
    for index, maps in enumerate(others):
        for other in others[index + 1 :]:
            assert (maps - other).abs().max() > 0.02
    torch.testing.assert_close(found[0], found[1])


# padding and batches


PADDED = {"crop": 96, "min_scale": 0.6, "max_scale": 1.1, "flip": True, "seed": 2}


@pytest.fixture
def padded(workspace, stack) -> Callable[..., tuple[TrainInputs, OnlineLabels]]:
    """Photos of many sizes, smaller than their crops."""
    return lambda recipe="ssr", **train: inputs_of(workspace, stack, options_of(recipe), **{**PADDED, **train})


@pytest.mark.parametrize("recipe", ["ssr", "clip-es"])
def test_a_crop_does_not_see_its_batch(padded, recipe):
    inputs, labels = padded(recipe)
    crops, encoded = crops_of(inputs, "b_trio", "d_empty", "e_pair")
    maps, found = labels.refined(crops, encoded), labels(crops, encoded).labels
    for index, crop in enumerate(crops):
        alone = inputs.pair.encode([crop.photo], clip_tokens=True)
        own = labels.refined([crop], alone)
        count = len(crop.photo.sample.labels)
        assert own.shape == (1, count, 36)
        torch.testing.assert_close(maps[index, :count], own[0], rtol=1e-3, atol=1e-4)
        assert not maps[index, count:].any()
        scores = with_background(resize_maps(own[0].view(count, 6, 6).numpy(), (96, 96)), 1.0)
        first, second = np.sort(np.concatenate([scores, np.zeros((1, 96, 96))]), axis=0)[[-1, -2]]
        differs = (labels([crop], alone).labels[0] != found[index]).numpy()
        assert not differs[first - second > 1e-3].any()
        assert differs.mean() < 0.1


def test_padding_is_ignored_and_nothing_else(padded):
    inputs, labels = padded()
    crops, encoded = crops_of(inputs)
    found = labels(crops, encoded).labels
    valid = torch.stack([crop.valid for crop in crops])
    assert torch.equal(found == 255, ~valid)
    assert 0.1 < valid.float().mean() < 0.9
    for crop, own in zip(crops, found, strict=True):
        assert set(own[crop.valid].unique().tolist()) <= {0, *(label + 1 for label in crop.photo.sample.labels)}
    maps = labels.refined(crops, encoded)
    tokens = labels.valid_tokens(crops)
    assert not maps[~tokens.unsqueeze(1).expand_as(maps)].any()
    assert ((maps >= 0) & (maps <= 1)).all()


@pytest.mark.parametrize("scale", [0.6, 0.75, 1.0, 1.3])
def test_a_token_is_valid_if_most_of_it_is_photo(padded, scale):
    inputs, labels = padded(min_scale=scale, max_scale=scale)
    crops, _ = crops_of(inputs)
    found = labels.valid_tokens(crops).view(-1, 6, 6)
    for crop, own in zip(crops, found, strict=True):
        for y in range(6):
            for x in range(6):
                patch = crop.valid[16 * y : 16 * y + 16, 16 * x : 16 * x + 16]
                assert bool(own[y, x]) == (2 * int(patch.sum()) > 256)
    assert found.any()
    assert not found.all()


def test_photos_without_classes_are_background(padded):
    inputs, labels = padded()
    for ids in (["d_empty"], ["d_empty", "d_empty"], ["a_cat", "d_empty"]):
        crops, encoded = crops_of(inputs, *ids)
        found = labels(crops, encoded).labels[-1]
        assert torch.equal(found, torch.where(crops[-1].valid, 0, 255))


@pytest.mark.parametrize("options", [{"par_iterations": 2}, {"par_iterations": 2, "par_scale": 0.5}, {"par_iterations": 0}])
def test_a_photo_without_a_class_is_background_with_refinement_too(padded, options):
    inputs, labels = padded(par_dilations=(1, 2), **options)
    crops, encoded = crops_of(inputs, "d_empty")
    assert torch.equal(labels(crops, encoded).labels[0], torch.where(crops[0].valid, 0, 255))


def test_a_crop_with_hardly_any_photo_is_finite(padded):
    """A few pixels fill no token."""
    inputs, labels = padded(min_scale=0.1, max_scale=0.1)
    crops, encoded = crops_of(inputs)
    assert not labels.valid_tokens(crops).any()
    found = labels(crops, encoded).labels
    assert torch.equal(found, torch.where(torch.stack([crop.valid for crop in crops]), 0, 255))


# pixel-adaptive refinement


def test_refinement_at_a_scale_that_leaves_a_pixel(padded):
    inputs, labels = padded(par_iterations=1, par_scale=0.001)
    crops, encoded = crops_of(inputs, "c_bird")
    assert len(labels(crops, encoded).labels[0][crops[0].valid].unique()) == 1


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.3])
def test_pixel_adaptive_refinement_of_the_scores(padded, scale):
    inputs, plain = padded(par_iterations=0)
    crops, encoded = crops_of(inputs, "b_trio", "c_bird", "d_empty")
    before = plain(crops, encoded).labels
    inputs, labels = padded(par_iterations=4, par_dilations=(1, 3), par_scale=scale)
    crops, encoded = crops_of(inputs, "b_trio", "c_bird", "d_empty")
    found, maps = labels(crops, encoded).labels, plain.refined(crops, encoded)
    side = round(96 * scale)
    for index, crop in enumerate(crops):
        own = crop.photo.sample.labels
        cam = F.interpolate(maps[index, : len(own)].view(1, -1, 6, 6), (side, side), mode="bilinear") if own else maps[:1, :0]
        scores = with_background(cam.reshape(len(own), side, side).numpy(), 1.0)
        image = F.interpolate(crop.image[None], (side, side), mode="bilinear")
        spread = pixel_adaptive_refinement(image, torch.from_numpy(scores)[None], (1, 3), 4)
        spread = F.interpolate(spread, (96, 96), mode="bilinear")[0].numpy()
        expected = np.where(crop.valid.numpy(), label_map(spread, own), 255)
        assert (found[index].numpy() == expected).mean() > 0.999
        assert set(found[index][crop.valid].unique().tolist()) <= {0, *(label + 1 for label in own)}
    assert 0.005 < (found != before).float().mean() < 0.5
    assert torch.equal(found == 255, before == 255)


# filter


def filtered_by_hand(blocks: Tensor, affinity: Tensor, valid: Tensor, difference: str) -> Tensor:
    """Attention of one crop: mean of the blocks that are near enough, times the decoder's affinity."""
    pairs = valid[:, None] & valid[None]
    gaps = [(affinity - block)[pairs] for block in blocks]
    scores = [float((gap.abs() if difference == "absolute" else gap).double().sum()) for gap in gaps]
    kept = [block for block, score in zip(blocks, scores, strict=True) if score <= sum(scores) / len(scores) + 1e-9]
    assert 0 < len(kept) < len(blocks)
    return sum(kept[1:], kept[0]) / len(kept) * affinity


@pytest.mark.parametrize("difference", ["signed", "absolute"])
@pytest.mark.parametrize("recipe", ["weclip", "ssr"])
def test_filter_by_the_decoders_affinity(workspace, stack, recipe, difference):
    options = options_of(recipe)
    train = {**PADDED, "filter_from": 0, "filter_blocks": 3, "filter_difference": difference}
    inputs, labels = inputs_of(workspace, stack, options, **train)
    crops, encoded = crops_of(inputs, "b_trio", "c_bird", "e_pair")
    assert encoded.clip.block_attention.shape == (3, 3, 36, 36)
    draw = torch.Generator().manual_seed(1)
    features = torch.randn(3, 4, 36, generator=draw)
    affinity = (features.transpose(1, 2) @ features).sigmoid()
    found, unfiltered = labels.refined(crops, encoded, affinity), labels.refined(crops, encoded)
    assert (found - unfiltered).abs().max() > 0.05
    valid = labels.valid_tokens(crops)
    for index, crop in enumerate(crops):
        blocks = torch.cat([inputs.encoder.encode(crop.photo.clip_input[None], (block,)).attention for block in (1, 2, 3)])
        attention = filtered_by_hand(blocks, affinity[index], valid[index], difference)
        own = crop.photo.sample.labels
        membership = crop.photo.superpixels.membership if crop.photo.superpixels else None
        tokens = inputs.encoder.encode(crop.photo.clip_input[None])
        cam = labels.maker.read_out(tokens, [own], [membership]) * valid[index]
        superpixels, dino = crop.photo.superpixels, None
        if encoded.dino is not None:
            dino = encoded.dino.attention[index]
            superpixels = superpixels.with_features(encoded.dino.tokens[index])
        # zero outside the photo before and after the last scaling to [0, 1]
        unscaled = refined_maps(cam, (6, 6), (attention, dino), superpixels, options[1])
        whole = bool(valid[index].all())
        expected = unscaled if whole else None
        if expected is not None:
            torch.testing.assert_close(found[index, : len(own)], expected, rtol=1e-3, atol=1e-3)
        else:
            order = unscaled[:, valid[index]].argsort(dim=1)
            ours = found[index, : len(own)][:, valid[index]].gather(1, order)
            assert (ours.diff(dim=1) > -1e-4).all()  # the same up to scaling


def test_filter_needs_each_blocks_attention(padded):
    inputs, labels = padded()
    crops, encoded = crops_of(inputs, "c_bird")
    with pytest.raises(ValueError, match="each block's attention"):
        labels(crops, encoded, torch.rand(1, 36, 36))


def test_filter_has_no_say_where_clip_has_none(workspace, stack):
    inputs, labels = inputs_of(workspace, stack, options_of("ssr", clip_blocks=0, dino_weight=1.0), filter_from=0)
    crops, encoded = crops_of(inputs, "c_bird")
    filtered = labels(crops, encoded, torch.rand(1, 25, 25)).labels
    assert torch.equal(filtered, labels(crops, encoded).labels)


# heads


def test_samples_for_the_heads(prepared, root, workspace_in, stack):
    workspace = workspace_in(prepared, root=root)
    ckpt = {"ckpt": Path("auto"), "train_heads": True}
    inputs, labels = inputs_of(workspace, stack, options_of("ssr"), **ckpt)
    crops, encoded = crops_of(inputs, "one", "none", "three")
    samples = labels(crops, encoded).samples
    assert samples is not None
    assert samples.classes.tolist() == [[2, -1, -1], [-1, -1, -1], [2, 11, 14]]
    expected = head_features(encoded.clip.tokens_cls, inputs.encoder.last_block, "output")
    assert torch.equal(samples.tokens, expected)
    assert torch.equal(samples.cams, labels.refined(crops, encoded))
    assert not samples.cams.requires_grad
    assert not samples.tokens.requires_grad
    assert inputs_of(workspace, stack, options_of("ssr"), ckpt=Path("auto"))[1](crops, encoded).samples is None


@pytest.mark.parametrize("train_heads", [True, False])
def test_labels_follow_the_heads_while_they_change(prepared, root, workspace_in, stack, train_heads):
    cam_options, refine_options = options_of("ssr")
    options = cam_options.model_copy(update={"few_photos": 0.0}), refine_options
    inputs, labels = inputs_of(workspace_in(prepared, root=root), stack, options, ckpt=Path("auto"), train_heads=train_heads)
    crops, encoded = crops_of(inputs, "three")
    before = labels.refined(crops, encoded)
    with torch.no_grad():
        inputs.heads.heads.tsa.layers[3].weight += 0.5 * torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    moved = (labels.refined(crops, encoded) - before).abs().max() > 0.02
    assert bool(moved) == train_heads


def test_nothing_but_ground_truth_where_masks_supervise(tiny_voc, workspace_in, tmp_path, stack):
    """No text, no CAMs, no DINO."""
    workspace = workspace_in(tmp_path / "w")
    options = TrainOptions(supervision="masks", crop=96, batch=6, min_scale=1, max_scale=1, flip=False, hidden=8)
    sections = TrainSections(options, AlignOptions(), *options_of("ssr")).checked(workspace)
    inputs = TrainInputs(workspace, sections, CPU, Processes(), stack)
    assert (inputs.labels, inputs.text, inputs.pair.dino) == (None, None, None)
    crops, _ = crops_of(inputs)
    (part,) = inputs.parts(crops)
    found = part.targets(None)
    assert found.samples is None
    for crop, own in zip(crops, found.labels, strict=True):
        image_id = crop.photo.sample.image_id
        with Image.open(tiny_voc.root / f"SegmentationClass/{image_id}.png") as mask:
            target = np.asarray(mask)[:96, :96]
        assert np.array_equal(own.numpy()[: target.shape[0], : target.shape[1]], target)
        assert torch.equal(own[~crop.valid], torch.full_like(own[~crop.valid], 255))

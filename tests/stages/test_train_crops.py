"""The stream of crops: the same at every step however it is begun or shared, and all parts of a crop of one window."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.config import read_recipe
from pipelines.encoders.image import encoder_input
from pipelines.method.photo import Crop
from pipelines.ops.superpixels import mean_lab, token_membership
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.stages.train.inputs import TrainInputs
from pipelines.stores.array_store import ArrayReader
from pipelines.training.alignment_data import photo_order
from pipelines.training.crops import Window, crop_map, crop_photo, random_window
from pipelines.training.processes import Processes

OPTIONS = {"crop": 64, "batch": 4, "min_scale": 0.5, "max_scale": 1.5, "flip": True, "seed": 3}


@pytest.fixture
def inputs_of(workspace, online) -> Callable[..., TrainInputs]:
    def make(**changed: object) -> TrainInputs:
        found = read_recipe("ssr")
        refine = RefineOptions(**{**found["refine"], "superpixel_mask": "colour"})
        inputs: TrainInputs = online(workspace, (CamsOptions(**found["cams"]), refine), **{**OPTIONS, **changed})[0]
        return inputs

    return make


def taken(inputs: TrainInputs, count: int, begin: int = 0, processes: Processes = Processes()) -> list[list[Crop]]:  # noqa: B008
    found = list(islice(inputs.source.steps(begin, processes), count))
    assert [step for step, _, _ in found] == list(range(begin, begin + count))
    assert all(bad == [] for *_, bad in found)
    return [crops for _, crops, _ in found]


def same(ours: Crop, theirs: Crop) -> bool:
    return (ours.slot, ours.photo.sample) == (theirs.slot, theirs.photo.sample) and torch.equal(ours.image, theirs.image)


def test_photos_come_in_their_order(inputs_of):
    inputs = inputs_of()
    ids = [sample.image_id for sample in inputs.source.dataset.samples]
    for crops, rows in zip(taken(inputs, 4), photo_order(6, 4, 3), strict=False):
        assert [crop.slot for crop in crops] == [0, 1, 2, 3]
        assert [crop.photo.sample.image_id for crop in crops] == [ids[row] for row in rows]


def test_a_stream_begun_later_goes_on_with_the_same_crops(inputs_of):
    inputs = inputs_of()
    whole = taken(inputs, 5)
    for begin in (1, 3):
        for ours, theirs in zip(taken(inputs, 5 - begin, begin), whole[begin:], strict=True):
            assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_crops_of_one(inputs_of, count):
    inputs = inputs_of(batch=5)
    alone = taken(inputs, 2)
    shares = [taken(inputs, 2, processes=Processes(rank, count)) for rank in range(count)]
    for step, crops in enumerate(alone):
        for rank in range(count):
            own = crops[rank::count]
            assert all(same(a, b) for a, b in zip(shares[rank][step], own, strict=True))


def test_seed_step_and_place_decide_where_a_crop_lies(inputs_of):
    inputs = inputs_of()
    index = [sample.image_id for sample in inputs.source.dataset.samples].index("b_trio")
    crops = [inputs.source._crop((step, place, index)) for step in range(3) for place in range(3)]
    crops.append(inputs_of(seed=4).source._crop((0, 0, index)))
    assert len({crop.image.numpy().tobytes() for crop in crops}) == 10
    assert same(inputs.source._crop((1, 2, index)), crops[5])


def test_a_small_set_is_one_batch(inputs_of):
    crops = taken(inputs_of(batch=50), 2)
    assert [len({crop.photo.sample.image_id for crop in own}) for own in crops] == [6, 6]


def window_of(inputs: TrainInputs, crop: Crop, step: int) -> tuple[Image.Image, Window]:
    with Image.open(crop.photo.sample.image_path) as file:
        image = file.convert("RGB")
    draw = np.random.default_rng((inputs.source.options.seed, step, crop.slot))
    return image, random_window(image.height, image.width, 64, (0.5, 1.5), True, draw)


def test_all_of_a_crop_is_of_one_window(inputs_of, workspace):
    """Pixels, superpixels, their colours, what is photo; padding is a superpixel of its own."""
    inputs = inputs_of()
    mean = inputs.encoders.clip.mean
    with ArrayReader(workspace.superpixels) as reader:
        superpixels = {image_id: reader.read(image_id)[0] for image_id in reader.ids()}
    padded = 0
    for step, crops in enumerate(taken(inputs, 4)):
        for crop in crops:
            image, window = window_of(inputs, crop, step)
            red, green, blue = (round(255 * value) for value in mean)
            picture = crop_photo(image, window, 64, (red, green, blue))
            assert np.array_equal(crop.image.permute(1, 2, 0).numpy(), np.asarray(picture))
            assert crop.photo.grid == (4, 4)
            assert torch.equal(crop.photo.inputs[0], encoder_input(picture, (4, 4), 16, mean, inputs.encoders.clip.std))
            own = superpixels[crop.photo.sample.image_id].astype(np.int64)
            valid = crop_map(np.ones_like(own), window, 64, 0) == 1
            assert np.array_equal(crop.valid.numpy(), valid)
            ids = np.unique(np.where(valid, crop_map(own, window, 64, 0), 10_000), return_inverse=True)[1].reshape(64, 64)
            assert torch.equal(crop.photo.superpixels[0], token_membership(ids, (4, 4)))
            np.testing.assert_allclose(crop.photo.superpixel_colours, mean_lab(np.asarray(picture), ids))
            assert crop.target is None
            padded += not valid.all()
    assert padded > 3


def test_padding_is_nought_for_clip(inputs_of):
    """Its mean colour."""
    inputs = inputs_of(min_scale=0.5, max_scale=0.5, flip=False)
    (crops,) = taken(inputs, 1)
    for crop in crops:
        outside = crop.photo.inputs[0][:, ~crop.valid]
        assert outside.numel()
        assert outside.abs().max() < 0.01


def test_bad_photos_come_with_the_step_that_wanted_them(inputs_of, workspace_in, online, tiny_voc, tmp_path):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    (root / "JPEGImages/c_bird.jpg").write_text("no photo")
    recipe = read_recipe("clip-es")
    options = CamsOptions(**recipe["cams"]), RefineOptions(**recipe["refine"])
    inputs, _ = online(workspace_in(tmp_path / "w", root=root), options, **{**OPTIONS, "batch": 2})
    ids = [sample.image_id for sample in inputs.source.dataset.samples]
    for (step, crops, bad), rows in zip(inputs.source.steps(0, Processes()), photo_order(6, 2, 3), strict=False):
        wanted = [ids[row] for row in rows]
        assert [image_id for image_id, _ in bad] == [image_id for image_id in wanted if image_id == "c_bird"]
        assert [crop.photo.sample.image_id for crop in crops] == [image_id for image_id in wanted if image_id != "c_bird"]
        assert [wanted[crop.slot] for crop in crops] == [crop.photo.sample.image_id for crop in crops]
        if step == 5:
            break

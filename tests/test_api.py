"""The Python door: the same bytes as the commands, whatever form a photo comes in; errors are one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pipelines
from pipelines import PseudoLabeler, SegmentationModel, UsageError
from pipelines.datasets import load_dataset
from pipelines.stores.array_store import ArrayReader

OPTIONS = {"precision": "fp32", "superpixels": {"segments": 12}}


@pytest.fixture(scope="module")
def labels(tiny_voc) -> dict[str, list[str]]:
    """Class names of each photo."""
    from pipelines.config import build_options, read_config

    dataset = load_dataset(build_options("dataset", read_config(tiny_voc.config)[0]["dataset"]))
    return {sample.image_id: [dataset.classes.names[index] for index in sample.labels] for sample in dataset.samples}


def models_of(models) -> dict[str, dict[str, object]]:
    clip = {"model": models.clip_config.stem, "pretrained": models.visual}
    return {
        "clip": clip | {"text_bank": models.voc_bank, "background_bank": models.background_bank},
        "dino": {"model": "test_vit", "pretrained": models.dino},
    }


@pytest.mark.parametrize("recipe", ["ssr", "clip-es"])
def test_masks_are_those_of_ssr_refine(finished, tiny_voc, models, labels, recipe, tmp_path):
    labeler = PseudoLabeler.from_recipe(recipe, classes="voc12", device="cpu", **models_of(models), **OPTIONS)
    work = finished[recipe]
    with ArrayReader(work / "cams.h5") as cams, ArrayReader(work / "refined.h5") as refined:
        for image_id, names in labels.items():
            result = labeler(tiny_voc.root / f"JPEGImages/{image_id}.jpg", names)
            result.save(tmp_path / "mask.png")
            assert (tmp_path / "mask.png").read_bytes() == (work / f"masks/{image_id}.png").read_bytes()
            assert result.classes == tuple(names)
            assert np.array_equal(result.cam, cams.read(image_id)[0].astype(np.float32))
            assert np.array_equal(result.refined, refined.read(image_id)[0].astype(np.float32))
            assert result.confidence.shape == result.mask.shape
            assert ((result.confidence >= 0) & (result.confidence <= 1)).all()


def test_refined_boundaries_are_those_of_ssr_masks(ssr, tiny_voc, models, labels, tmp_path):
    ssr("masks", "--config", tiny_voc.config, "--work", tmp_path / "work", "--boundary", "par")
    par = {"refine": {"boundary": "par"}}
    labeler = PseudoLabeler.from_recipe("ssr", classes="voc12", device="cpu", **models_of(models), **OPTIONS, **par)
    for image_id, names in labels.items():
        labeler(tiny_voc.root / f"JPEGImages/{image_id}.jpg", names).save(tmp_path / "mask.png")
        assert (tmp_path / "mask.png").read_bytes() == (tmp_path / f"work/masks/{image_id}.png").read_bytes()


def test_a_work_directory_gives_its_own_options(finished, tiny_voc, labels):
    labeler = PseudoLabeler.from_work(finished["clip-es"], device="cpu")
    result = labeler(tiny_voc.root / "JPEGImages/b_trio.jpg", labels["b_trio"])
    with Image.open(finished["clip-es"] / "masks/b_trio.png") as mask:
        assert np.array_equal(result.mask, np.asarray(mask))


@pytest.fixture(scope="module")
def labeler(models) -> PseudoLabeler:
    return PseudoLabeler.from_recipe("ssr", classes="voc12", device="cpu", **models_of(models), **OPTIONS)


def test_array_pil_path_and_batch_are_one(labeler, tiny_voc, labels):
    paths = [tiny_voc.root / f"JPEGImages/{image_id}.jpg" for image_id in labels]
    single = [labeler(path, names) for path, names in zip(paths, labels.values(), strict=True)]
    pictures = [Image.open(path) for path in paths]
    for forms in ([str(path) for path in paths], pictures, [np.asarray(picture) for picture in pictures]):
        for result, expected in zip(labeler.batch(forms, list(labels.values())), single, strict=True):
            assert np.array_equal(result.mask, expected.mask)
            assert np.array_equal(result.refined, expected.refined)


def test_tensors_are_near_the_arrays(labeler, tiny_voc, labels):
    """Torch resizes otherwise than Pillow; at a multiple of the patch nothing is resized."""
    ids = [image_id for image_id in labels if image_id in ("a_cat", "e_pair")]  # both 96 x 64
    images = [np.asarray(Image.open(tiny_voc.root / f"JPEGImages/{image_id}.jpg")) for image_id in ids]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    found = labeler.torch(pixels, [labels[image_id] for image_id in ids])
    assert found.classes.tolist() == [[7, -1], [7, 11]]
    for row, (image, image_id) in enumerate(zip(images, ids, strict=True)):
        expected = labeler(image, labels[image_id])
        count = len(expected.classes)
        np.testing.assert_allclose(found.refined[row, :count].numpy(), expected.refined, atol=2e-2)
        assert (found.mask[row].numpy() == expected.mask).mean() > 0.97
        assert not found.refined[row, count:].any()


def test_names_of_ones_own_need_no_file(models, tiny_voc):
    clip = {"model": models.clip_config.stem, "pretrained": models.full}
    labeler = PseudoLabeler.from_recipe(
        "clip-es",
        classes=["cat", "dog"],
        background=["grass", "wall"],
        clip=clip,
        precision="fp32",
        refine={"boundary": "none"},
    )
    result = labeler(tiny_voc.root / "JPEGImages/e_pair.jpg", ["dog"])
    assert result.classes == ("dog",)
    assert set(np.unique(result.mask)) <= {0, 2}


@pytest.mark.parametrize("boundary", ["none", "par"])
def test_a_trained_model_makes_the_label_maps_of_ssr_predict(ssr, write_model, tiny_voc, models, tmp_path, boundary):
    path = write_model(tmp_path / "work/model.safetensors")
    photos = tiny_voc.root / "JPEGImages"
    ssr("predict", "--config", tiny_voc.config, "--work", tmp_path / "work", "--boundary", boundary)
    model = SegmentationModel.load(path, clip=models_of(models)["clip"], precision="fp32", boundary=boundary)
    for image_id in ("b_trio", "f_car"):
        with Image.open(tmp_path / f"work/predictions/train/{image_id}.png") as predicted:
            assert np.array_equal(model(photos / f"{image_id}.jpg"), np.asarray(predicted))
    shares = model.probabilities(photos / "f_car.jpg")
    assert shares.shape == (21, 37, 51)
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda labeler: labeler(np.zeros((8, 8, 3), np.uint8), ["cta"]), "did you mean 'cat'"),
        (lambda labeler: labeler(np.zeros((8, 8, 3), np.uint8), "cat"), "expected a list of class names, found the name 'cat'"),
        (lambda labeler: labeler.batch([np.zeros((8, 8, 3), np.uint8)], []), "found 0 for 1 images"),
        (lambda labeler: labeler.torch(torch.zeros(3, 8, 8), [["cat"]]), r"\(B, 3, H, W\).* found torch.float32 \(3, 8, 8\)"),
        (lambda labeler: labeler(np.zeros((8, 8), np.uint8), ["cat"]), r"\(H, W, 3\) uint8, found uint8 \(8, 8\)"),
        (lambda labeler: labeler(np.zeros((8, 8, 3)), ["cat"]), "found float64"),
        (lambda labeler: labeler(np.zeros((0, 8, 3), np.uint8), ["cat"]), r"found uint8 \(0, 8, 3\)"),
        (lambda labeler: labeler(np.zeros((8, 8, 3), np.uint8), [1]), "expected names of classes, found 1"),
        (lambda labeler: labeler.batch("photos/a.jpg", [["cat"]]), "a sequence of images, found the image photos/a.jpg"),
        (lambda labeler: labeler.torch(torch.full((1, 3, 8, 8), 255.0), [["cat"]]), r"in \[0, 1\], found 255 to 255"),
        (lambda labeler: labeler.torch(torch.full((1, 3, 8, 8), torch.nan), [["cat"]]), r"in \[0, 1\], found nan"),
        (lambda _: PseudoLabeler.from_recipe(classes=["cat"], background="sky"), "list of background words, found 'sky'"),
        (lambda _: PseudoLabeler.from_recipe(classes=[1]), r"list of class names, found \[1\]"),
        (lambda _: PseudoLabeler.from_recipe(classes=None), "list of class names, found None"),
        (lambda labeler: labeler.torch(np.zeros((1, 3, 8, 8)), [["cat"]]), "expected a tensor of pixels .* found ndarray"),
        (lambda labeler: labeler.torch(torch.zeros(0, 3, 8, 8), []), r"expected pixels .*found torch.float32 \(0, 3, 8, 8\)"),
        (
            lambda labeler: labeler.torch(torch.zeros(1, 3, 8, 8), [["cat"]], superpixels=-torch.ones(1, 8, 8)),
            r"expected superpixels \(1, 8, 8\) of integers from 0, found torch.float32 \(1, 8, 8\) from -1.0",
        ),
        (lambda _: PseudoLabeler.from_recipe(classes=["cat"], refine=3), "expected a mapping of options, found 3"),
        (lambda _: PseudoLabeler.from_recipe(classes=["cat"], clip="ViT"), "expected a mapping of options, found 'ViT'"),
        (lambda _: PseudoLabeler.from_recipe("sssr", classes=["cat"]), "no recipe 'sssr'"),
        (lambda _: PseudoLabeler.from_recipe(classes=["cat"], refin={}), "unknown section 'refin'"),
        (lambda _: PseudoLabeler.from_recipe(classes=["cat"], refine={"boundarx": ""}), "key 'boundarx' in .*mean 'boundary'"),
        (lambda labeler: labeler(np.zeros((32, 32, 3), np.uint8), ["cat"]).save("a.jpg"), "ends in .png, found a.jpg"),
        (lambda _: PseudoLabeler.from_recipe(classes="coco.toml"), "cannot read the class list"),
        (lambda _: PseudoLabeler.from_work(Path("nowhere")), "no work directory"),
        (lambda _: SegmentationModel.load("model.onnx"), "expected the model.safetensors of `ssr train`, found model.onnx"),
        (lambda _: SegmentationModel.load("m.safetensors", images="x"), "'images' is an option of the command `ssr predict`"),
        (lambda _: SegmentationModel.load("nowhere/model.safetensors", clip={"pretrained": "no.safetensors"}), "no weights"),
    ],
)  # fmt: skip
def test_errors_are_one_line(labeler, call, message):
    with pytest.raises(UsageError, match=message):
        call(labeler)


def test_the_package_lists_its_names_and_imports_no_torch():
    assert set(dir(pipelines)) == {
        "ImageError", "PseudoLabelTensors", "PseudoLabeler", "PseudoLabels", "SegmentationModel", "SsrError", "UsageError",
    }  # fmt: skip
    code = "import pipelines, sys; dir(pipelines); raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

"""What `ssr predict` refuses, in one clear line, before anything is removed: models, and folders that are not its own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipelines.datasets.classes import VOC12
from pipelines.encoders.weights import resolve_clip
from pipelines.errors import UsageError
from pipelines.models.segmenter import read_segmenter, write_segmenter
from pipelines.options.train import PredictOptions
from pipelines.stages import predict
from pipelines.workdir.workspace import Workspace

PLAIN = PredictOptions(scales=(1.0,), flip=False)


def maps(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def other_clip(write_model, path, models):
    write_model(path, clip=models.full)


def crafted(write_model, path, models):
    """Says that it is for this CLIP and reads more than that has."""
    weights = resolve_clip("tiny-quickgelu", str(models.visual))
    good = read_segmenter(write_model(path), weights)
    decoder = type(good.decoder)(blocks=5, width=48, classes=20, hidden=16, layers=1, heads=2)
    write_segmenter(path, replace(good, decoder=decoder, blocks=5), weights)


def of_two_classes(write_model, path, models):
    write_model(path, names=("cat", "dog"))


def of_swapped_classes(write_model, path, models):
    write_model(path, names=(*VOC12.names[:-2], VOC12.names[-1], VOC12.names[-2]))


BAD = {
    other_clip: "trained with another CLIP .*weights: ",
    crafted: "reads 5 blocks of width 48, CLIP has 4 of 48",
    of_two_classes: "trained for 2 classes, not for the dataset's 20: class 1 is cat there, aeroplane here",
    of_swapped_classes: "20: class 19 is tvmonitor there, train here",
}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_unusable_model_is_one_clear_line(work_with_model, write_model, models, make):
    predict.run(work_with_model, PLAIN)
    before = maps(work_with_model.predictions / "train")
    make(write_model, work_with_model.model, models)
    with pytest.raises(UsageError, match=BAD[make]) as error:
        predict.run(replace(work_with_model, force=True), PLAIN)
    assert "--" in str(error.value)
    assert "\n" not in str(error.value)
    assert maps(work_with_model.predictions / "train") == before  # checked before --force clears


def test_no_model_yet_names_the_command(work_with_model):
    work_with_model.model.unlink()
    with pytest.raises(UsageError, match="`ssr train --work "):
        predict.run(work_with_model, PLAIN)
    with pytest.raises(UsageError, match="no checkpoint at nowhere"):
        predict.run(work_with_model, PLAIN.model_copy(update={"model": Path("nowhere.safetensors")}))


def foreign_pngs(workspace: Workspace, folder: Path) -> None:
    folder.mkdir()
    (folder / "holiday.png").write_bytes(b"a photo that no --force may remove")


def other_stage(workspace: Workspace, folder: Path) -> None:
    folder.mkdir()
    workspace.manifest("masks", {}).write(folder.with_suffix(".json"))


def other_store(workspace: Workspace, folder: Path) -> None:
    folder.with_suffix(".h5").write_bytes(b"a store of something else")


def photos(workspace: Workspace, folder: Path) -> None:
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "holiday.jpg")


def a_file(workspace: Workspace, folder: Path) -> None:
    folder.write_text("")


@pytest.mark.parametrize("make", [foreign_pngs, photos, other_stage, other_store, a_file])
def test_output_of_somebody_else_is_left_alone(work_with_model, tmp_path, make):
    make(work_with_model, tmp_path / "out")
    before = {path: path.read_bytes() for path in tmp_path.glob("out*/**/*") if path.is_file()}
    for force in (False, True):
        with pytest.raises(UsageError, match="--output"):
            predict.run(replace(work_with_model, force=force), PLAIN.model_copy(update={"output": tmp_path / "out"}))
    assert {path: path.read_bytes() for path in before} == before
    assert not maps(tmp_path / "out").keys() - {"holiday"}


@pytest.mark.parametrize("name", ["v1.5", ".", ".."])
def test_output_needs_a_name_that_others_can_lie_beside(work_with_model, name):
    with pytest.raises(UsageError, match="--output"):
        predict.run(work_with_model, PLAIN.model_copy(update={"output": Path(name)}))


def test_folders_of_one_name_do_not_mix(work_with_model, tiny_voc, tmp_path):
    options = []
    for parent in ("a", "b"):
        photos = tmp_path / parent / "photos"
        photos.mkdir(parents=True)
        shutil.copy(tiny_voc.root / f"JPEGImages/{parent}_{'cat' if parent == 'a' else 'trio'}.jpg", photos / "1.jpg")
        options.append(PLAIN.model_copy(update={"images": photos}))
    predict.run(work_with_model, options[0])
    with pytest.raises(UsageError, match=r"another folder .*--force"):
        predict.run(work_with_model, options[1])
    assert predict.run(replace(work_with_model, force=True), options[1]).done == 1
    with Image.open(work_with_model.predictions / "photos/1.png") as image:
        assert image.size == (64, 96)

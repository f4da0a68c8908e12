"""Fixtures that every room's tests share: real photos where they are, else small drawn datasets and tiny random models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from pipelines.method.online_labels import OnlineLabels
    from pipelines.stages.train.inputs import TrainInputs, TrainSections
    from pipelines.workdir.counts import Counts
    from pipelines.workdir.workspace import Workspace

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the network is wrong
os.environ["SSR_WEIGHTS"] = os.devnull  # nor does it find weights that lie about
os.environ["OMP_NUM_THREADS"] = "1"  # sums of several threads differ in their last bits; processes of tests inherit this
os.environ.pop("FORCE_COLOR", None)

TINY_CLIP = "tiny-quickgelu"
COLOURS = {"cat": (200, 60, 40), "dog": (40, 160, 60), "person": (60, 60, 200), "bird": (210, 200, 40), "car": (160, 40, 180)}
PHOTOS: dict[str, tuple[tuple[int, int], tuple[str, ...]]] = {
    # id: (width, height), classes
    "a_cat": ((96, 64), ("cat",)),
    "b_trio": ((64, 96), ("dog", "person", "bird")),
    "c_bird": ((80, 80), ("bird",)),
    "d_empty": ((64, 48), ()),
    "e_pair": ((96, 64), ("cat", "dog")),
    "f_car": ((51, 37), ("car",)),
}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder beside the repository with real photos and reference facts; tests that need it are skipped where it is absent."""
    folder = Path(__file__).parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the real photos in {folder}")
    return folder


@dataclass(frozen=True)
class TinyModels:
    """Random weights of a CLIP and a DINO small enough for milliseconds."""

    folder: Path
    clip_config: Path
    visual: Path  # image tower alone
    full: Path  # with text tower
    dino: Path
    voc_bank: Path
    coco_bank: Path
    background_bank: Path

    def toml(self) -> str:
        """Sections [clip] and [dino] with image tower and text banks."""
        return (
            f'[clip]\nmodel = "{TINY_CLIP}"\npretrained = "{self.visual}"\ntext_bank = "{self.voc_bank}"\n'
            f'background_bank = "{self.background_bank}"\n[dino]\nmodel = "test_vit"\npretrained = "{self.dino}"\n'
        )


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Tiny models, registered with open_clip in this process."""
    import open_clip
    import timm
    import torch
    from safetensors.torch import save_file

    from pipelines.datasets.classes import COCO14, VOC12
    from pipelines.encoders.text import TextBank, write_bank

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    vision = {"image_size": 64, "layers": 4, "width": 48, "patch_size": 16, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = folder / f"{TINY_CLIP}.json"
    config.write_text(json.dumps({"embed_dim": 32, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(config)
    torch.manual_seed(0)
    state = {
        key: value.contiguous().clone()
        for key, value in open_clip.create_model(TINY_CLIP, pretrained=None, load_weights=False).state_dict().items()
    }
    state["token_embedding.weight"] *= 50  # else all prompts are nearly one, and gradients nothing but rounding
    save_file(state, folder / "full.safetensors")
    save_file({k: v for k, v in state.items() if k.startswith("visual.")}, folder / "visual.safetensors")
    dino = timm.create_model("test_vit", num_classes=0)
    save_file({k: v.contiguous().clone() for k, v in dino.state_dict().items()}, folder / "dino.safetensors")
    words = ("ground", "sky", "water", "grass", "wall")
    centre = torch.nn.functional.normalize(torch.randn(32), dim=0)
    for name, names in (("voc", VOC12.names), ("coco", COCO14.names), ("background", words)):
        # near one another as CLIP's are: at a logit scale of 100, rows far apart saturate the softmax
        rows = torch.nn.functional.normalize(centre + 0.03 * torch.randn(len(names), 32), dim=1)
        write_bank(folder / f"{name}.safetensors", TextBank(rows, tuple(names), TINY_CLIP, "random", "{}"))
    return TinyModels(
        folder, config, *(folder / f"{name}.safetensors" for name in ("visual", "full", "dino", "voc", "coco", "background"))
    )


@pytest.fixture(scope="session")
def write_model(models: TinyModels) -> Callable[..., Path]:
    """Write a segmentation model of random weights for the tiny CLIP, as `ssr train` would; returns its path."""
    import torch

    from pipelines.datasets.classes import VOC12
    from pipelines.encoders.weights import resolve_clip
    from pipelines.models.decoder import SegmentationDecoder
    from pipelines.models.segmenter import Segmenter, write_segmenter

    def write(
        path: Path, names: tuple[str, ...] = VOC12.names, supervision: str = "pseudo", seed: int = 0, clip: Path = models.visual
    ) -> Path:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            decoder = SegmentationDecoder(blocks=4, width=48, classes=len(names), hidden=16, layers=1, heads=2)
            with torch.no_grad():
                decoder.classifier.weight *= 5  # else the biases decide alone: one class everywhere
                decoder.classifier.bias.zero_()
        write_segmenter(path, Segmenter(decoder, 4, names, supervision, 1), resolve_clip(TINY_CLIP, str(clip)))
        return path

    return write


@dataclass(frozen=True)
class TinyDataset:
    """A drawn dataset and the config file that points at it."""

    kind: str
    root: Path
    config: Path
    ids: tuple[str, ...]

    def write_config(self, target: Path, models: TinyModels, extra: str = "") -> Path:
        """A config of this dataset somewhere else."""
        target.write_text(f'[dataset]\nkind = "{self.kind}"\nroot = "{self.root}"\n{models.toml()}{extra}')
        return target


SMALL = '[run]\nworkers = 1\ndevice = "cpu"\n[superpixels]\nsegments = 12\n'


def draw(size: tuple[int, int], names: tuple[str, ...], seed: int) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.bool_]]]:
    """A noisy photo with one ellipse a class, and where each ellipse is."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, (110, 130, 120))
    places: dict[str, NDArray[np.bool_]] = {}
    for index, name in enumerate(names):
        left = size[0] * index // len(names)
        box = (left + 4, 6, left + size[0] // len(names) - 6, size[1] - 8)
        ImageDraw.Draw(image).ellipse(box, COLOURS[name])
        stencil = Image.new("1", size)
        ImageDraw.Draw(stencil).ellipse(box, 1)
        places[name] = np.asarray(stencil)
    noise = rng.integers(-20, 20, (size[1], size[0], 3))
    return np.clip(np.asarray(image).astype(int) + noise, 0, 255).astype(np.uint8), places


def label_png(path: Path, places: dict[str, NDArray[np.bool_]], size: tuple[int, int], names: tuple[str, ...]) -> None:
    """Ground truth as VOC writes it: palette PNG, one pixel of 255 in a corner."""
    from pipelines.datasets.classes import palette

    mask = np.zeros((size[1], size[0]), np.uint8)
    for name, place in places.items():
        mask[place] = names.index(name) + 1
    mask[0, 0] = 255
    picture = Image.fromarray(mask, mode="L")
    picture.putpalette(palette().tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def write_voc(root: Path, photos: dict[str, tuple[tuple[int, int], tuple[str, ...]]], masks: bool = True) -> None:
    """A VOC folder with drawn photos; split train has all, val the last two."""
    from pipelines.datasets.classes import VOC12

    for name in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for seed, (image_id, (size, names)) in enumerate(photos.items()):
        pixels, places = draw(size, names, seed)
        Image.fromarray(pixels).save(root / f"JPEGImages/{image_id}.jpg", quality=95)
        objects = "".join(f"<object><name>{name}</name></object>" for name in names)
        (root / f"Annotations/{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
        if masks:
            label_png(root / f"SegmentationClass/{image_id}.png", places, size, VOC12.names)
    for split, ids in (("train", list(photos)), ("val", list(photos)[-2:])):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{i}\n" for i in ids))


@pytest.fixture(scope="session")
def make_voc() -> Callable[..., None]:
    """`write_voc`, for tests that want other photos."""
    return write_voc


@pytest.fixture(scope="session")
def tiny_voc(tmp_path_factory: pytest.TempPathFactory, models: TinyModels) -> TinyDataset:
    """Six drawn photos in VOC's layout. Shared by all tests: do not change it, copy it."""
    root = tmp_path_factory.mktemp("voc") / "VOC2012"
    write_voc(root, PHOTOS)
    dataset = TinyDataset("voc", root, root.parent / "tiny.toml", tuple(PHOTOS))
    dataset.write_config(dataset.config, models, SMALL)
    return dataset


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, models: TinyModels) -> TinyDataset:
    """A folder of images with ``labels.csv`` and classes of its own, embedded by the text tower."""
    root = tmp_path_factory.mktemp("folder")
    (root / "images").mkdir()
    rows = {"one": ((64, 48), ("cat",)), "two": ((48, 64), ("cat", "dog")), "three": ((64, 48), ())}
    for seed, (image_id, (size, names)) in enumerate(rows.items()):
        pixels, places = draw(size, names, seed)
        Image.fromarray(pixels).save(root / f"images/{image_id}.png")
        label_png(root / f"masks/{image_id}.png", places, size, ("cat", "dog"))
    lines = [f"{image_id}.png,{';'.join(names)}" for image_id, (_, names) in rows.items()]
    (root / "labels.csv").write_text("\n".join(["image,labels", *lines]) + "\n")
    config = root / "tiny.toml"
    config.write_text(
        f'[dataset]\nkind = "folder"\nroot = "."\n[clip]\nmodel = "{TINY_CLIP}"\npretrained = "{models.full}"\n'
        f'[dino]\nmodel = "test_vit"\npretrained = "{models.dino}"\n{SMALL}'
    )
    return TinyDataset("folder", root, config, tuple(rows))


@pytest.fixture(scope="session")
def tiny_coco(tmp_path_factory: pytest.TempPathFactory, models: TinyModels) -> TinyDataset:
    """Three photos in COCO's layout, with an instances JSON of three categories."""
    from pipelines.datasets.classes import COCO14

    root = tmp_path_factory.mktemp("coco")
    categories = {"person": 1, "car": 3, "dog": 18}
    rows: list[tuple[tuple[int, int], tuple[str, ...]]] = [((64, 48), ("person", "dog")), ((48, 64), ("car",)), ((64, 48), ())]
    images, annotations = [], []
    (root / "train2014").mkdir()
    (root / "annotations").mkdir()
    for number, (size, names) in enumerate(rows, start=1):
        image_id = f"COCO_train2014_{number:012d}"
        pixels, places = draw(size, names, number)
        Image.fromarray(pixels).save(root / f"train2014/{image_id}.jpg")
        label_png(root / f"SegmentationClass/train2014/{image_id}.png", places, size, COCO14.names)
        images.append({"id": number, "file_name": f"{image_id}.jpg", "width": size[0], "height": size[1]})
        annotations += [{"id": 10 * number + i, "image_id": number, "category_id": categories[n]} for i, n in enumerate(names)]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    (root / "annotations/instances_train2014.json").write_text(json.dumps(content))
    dataset = TinyDataset("coco", root, root / "tiny.toml", tuple(Path(image["file_name"]).stem for image in images))
    dataset.config.write_text(
        f'[dataset]\nkind = "coco"\nroot = "{root}"\n{models.toml()}{SMALL}'.replace(
            str(models.voc_bank), str(models.coco_bank)
        )
    )
    return dataset


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams."""
        return self.out + self.err


Ssr = Callable[..., Ran]


@pytest.fixture(scope="session")
def ssr(models: TinyModels) -> Ssr:
    """Run ``ssr`` in this process: ``ssr("cams", "--config", path, code=0)``; the exit code must be ``code``."""
    from typer.testing import CliRunner

    from ssr_cli.app import app

    def run(*args: object, code: int | None = 0) -> Ran:
        result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="ssr")
        ran = Ran(result.exit_code, result.stdout, result.stderr)
        assert code is None or ran.code == code, f"ssr {' '.join(map(str, args))}: exit {ran.code}\n{ran.text}{result.exc_info}"
        return ran

    return run


RUNNER = """\
if __name__ == "__main__":
    {before}
    from ssr_cli.app import main
    main()
"""
TINY = """\
import open_clip, torch
open_clip.add_model_config({config!r})
torch.set_num_threads(1)
"""


@pytest.fixture
def ssr_script(models: TinyModels, tmp_path: Path) -> Callable[..., list[str]]:
    """Command line of ``ssr`` in a process of its own.

    ``before`` is Python to run first; with ``tiny`` the process knows the tiny CLIP, which takes seconds to import.
    """

    def make(before: str = "", tiny: bool = False, name: str = "runner.py") -> list[str]:
        script = tmp_path / name
        lines = before + "\n" + (TINY.format(config=str(models.clip_config)) if tiny else "")
        script.write_text(RUNNER.format(before=lines.strip().replace("\n", "\n    ")))
        return [sys.executable, str(script)]

    return make


@pytest.fixture
def ssr_process(ssr_script: Callable[..., list[str]]) -> Ssr:
    """Like `ssr`, in a process of its own."""

    def run(*args: object, before: str = "", tiny: bool = False, code: int | None = 0, **options: Any) -> Ran:
        done = subprocess.run(
            [*ssr_script(before, tiny), *map(str, args)], capture_output=True, text=True, timeout=120, check=False, **options
        )
        ran = Ran(done.returncode, done.stdout, done.stderr)
        assert code is None or ran.code == code, f"ssr {' '.join(map(str, args))}: exit {ran.code}\n{ran.text}"
        return ran

    return run


STAGES = ("superpixels", "cams", "refine")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_voc: TinyDataset, ssr: Ssr) -> dict[str, Path]:
    """Work directories of `tiny_voc` with every stage done, by recipe. Shared by all tests: copy before changing."""
    works: dict[str, Path] = {}
    for recipe in ("ssr", "clip-es"):
        work = works[recipe] = tmp_path_factory.mktemp("finished") / recipe
        for stage in STAGES[recipe == "clip-es" :]:  # CLIP-ES needs no superpixels
            ssr(stage, "--config", tiny_voc.config, "--work", work, "--recipe", recipe)
    return works


@pytest.fixture(scope="session")
def workspace_in(tiny_voc) -> Callable[..., Workspace]:
    """A workspace in a folder; ``root`` for other photos, ``force``, the rest are options of [run]."""
    from pipelines.config import build_options, read_config
    from pipelines.workdir.workspace import Workspace

    values, _ = read_config(tiny_voc.config)

    def make(work: Path, root: Path = tiny_voc.root, force: bool = False, split: str = "train", **run: object) -> Workspace:
        dataset = build_options("dataset", values["dataset"], {"root": root, "split": split})
        others = (build_options(section, values[section]) for section in ("clip", "dino"))
        return Workspace(work, dataset, *others, build_options("run", values["run"], run), "ssr", force)

    return make


@pytest.fixture
def workspace(workspace_in: Callable[..., Workspace], finished: dict[str, Path], tmp_path: Path) -> Workspace:
    """Superpixels and CAMs are there, refinement is not."""
    workspace = workspace_in(tmp_path / "work")
    workspace.work.mkdir()
    for name in ("superpixels.h5", "superpixels.json", "cams.h5", "cams.json"):
        shutil.copy(finished["ssr"] / name, workspace.work / name)
    return workspace


@pytest.fixture(scope="session")
def model(write_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentation model of VOC's classes. Shared by all tests: copy before changing."""
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture
def work_with_model(workspace_in: Callable[..., Workspace], model: Path, tmp_path: Path) -> Workspace:
    """A work directory with a model and nothing else."""
    workspace = workspace_in(tmp_path / "work")
    workspace.work.mkdir()
    shutil.copy(model, workspace.model)
    return workspace


SMALL_TRAINING = {
    "crop": 64, "batch": 2, "iterations": 6, "save_every": 2, "warmup": 2, "hidden": 16, "decoder_layers": 1,
    "decoder_heads": 2, "par_iterations": 1, "par_dilations": (1, 2), "learning_rate": 1e-2,
}  # fmt: skip
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    # recipe, changes to [train]
    "ssr": ("ssr", {"ckpt": Path("auto")}),
    "joint": ("ssr", {"ckpt": Path("auto"), "train_heads": True, "prototype_refresh": 4, "accumulate": 2}),
    "weclip": ("weclip", {"clip_layers": 3, "filter_from": 3, "filter_blocks": 2}),
    "masks": ("ssr", {"supervision": "masks"}),
}


@pytest.fixture(scope="session")
def train_sections() -> Callable[..., TrainSections]:
    """Options of a small training: one of `SETS` by name, with changes to [train]."""
    from pipelines.config import read_recipe
    from pipelines.options.align import AlignOptions
    from pipelines.options.stages import CamsOptions, RefineOptions
    from pipelines.options.train import TrainOptions
    from pipelines.stages.train.inputs import TrainSections

    def make(name: str, **changed: Any) -> TrainSections:
        recipe, own = SETS[name]
        found = read_recipe(recipe)
        return TrainSections(
            TrainOptions(**{**found.get("train", {}), **SMALL_TRAINING, **own, **changed}),
            AlignOptions(),
            CamsOptions(**found["cams"]),
            RefineOptions(**found["refine"]),
        )

    return make


@pytest.fixture(scope="session")
def run_train(train_sections: Callable[..., TrainSections]) -> Callable[..., Counts]:
    """Run a small training in a workspace."""
    from pipelines.stages.train import stage as train

    return lambda workspace, name="weclip", **changed: train.run(workspace, train_sections(name, **changed))


@pytest.fixture(scope="session")
def with_heads(
    workspace_in: Callable[..., Workspace], finished: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A work directory with superpixels and alignment heads. Shared: copy before changing."""
    from pipelines.options.align import AlignOptions
    from pipelines.options.stages import CamsOptions, RefineOptions
    from pipelines.stages.align import stage as align

    work = tmp_path_factory.mktemp("with_heads") / "work"
    work.mkdir()
    for name in ("superpixels.h5", "superpixels.json"):
        shutil.copy(finished["ssr"] / name, work / name)
    options = AlignOptions(cam="initial", hidden=8, tokens=16, batch=2, iterations=6, refresh=3, learning_rate=1e-2)
    align.run(workspace_in(work), options, CamsOptions(), RefineOptions())
    shutil.rmtree(work / "align")
    return work


@pytest.fixture
def new(with_heads: Path, workspace_in: Callable[..., Workspace], tmp_path: Path) -> Callable[..., Workspace]:
    """A copy of `with_heads` by name, as a workspace with options of its own."""

    def make(name: str = "new", **options: Any) -> Workspace:
        if not (tmp_path / name).exists():
            shutil.copytree(with_heads, tmp_path / name)
        return workspace_in(tmp_path / name, **options)

    return make


@pytest.fixture
def online() -> Iterator[Callable[..., tuple[TrainInputs, OnlineLabels]]]:
    """Make what labels crops, from a workspace, (cams, refine) and changes to [train]; by default whole photos of 80 x 80."""
    import torch

    from pipelines.options.align import AlignOptions
    from pipelines.options.train import TrainOptions
    from pipelines.stages.train.inputs import TrainInputs, TrainSections
    from pipelines.training.processes import Processes

    plain = {"crop": 80, "batch": 9, "min_scale": 1, "max_scale": 1, "flip": False, "par_iterations": 0, "hidden": 8}
    with ExitStack() as stack:

        def make(workspace: Workspace, options: tuple[Any, Any], **train: Any) -> tuple[TrainInputs, OnlineLabels]:
            sections = TrainSections(TrainOptions(**{**plain, "decoder_heads": 2, **train}), AlignOptions(), *options)
            inputs = TrainInputs(workspace, sections.checked(workspace), torch.device("cpu"), Processes(), stack)
            assert inputs.labels is not None
            return inputs, inputs.labels

        yield make

"""``ssr init``: the config that it writes is read back, and the command that it names runs; what it cannot do is one line."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.config import build_options, read_config, read_recipe
from pipelines.stages.sample import models_folder

LAYOUTS = {
    # what is done with the drawn folders -> flags of `ssr init`, what it says
    "voc": ("voc/VOC2012", [], "layout voc, split train: 6 photos with labels, 20 classes"),
    "voc, a split of one name": ("voc/VOC2012", ["--split", "val"], "layout voc, split val: 2 photos with labels"),
    "coco": ("coco", [], "layout coco, split train2014: 3 photos with labels, 80 classes"),
    "folder": ("folder", [], "layout folder, split train: 3 photos with labels, 2 classes: cat, dog"),
    "folder, label file elsewhere": ("folder/images", ["--labels", "folder/labels.csv"], "folder, split train: 3 photos with"),
    "folder, names of both": ("folder", ["--names", "dog, cat,bird"], "3 photos with labels, 3 classes: dog, cat, bird"),
    "names alone": (
        "folder/images",
        ["--names", "cat,dog"],
        "folder, split train: 3 photos without labels, 2 classes: cat, dog",
    ),
}
TO_DOCTOR = "next: ssr doctor --config ssr.toml"
TO_PREDICT = "next: ssr predict --model tags --config ssr.toml"


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_voc, tiny_folder, tiny_coco):
    """A folder with the drawn photos in each layout, as a user would stand in it."""
    for tiny, name in ((tiny_voc, "voc/VOC2012"), (tiny_folder, "folder"), (tiny_coco, "coco")):
        shutil.copytree(tiny.root, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_models(*words: object) -> list[str]:
    """Flags of the models in the package, so that a run needs no download."""
    place = models_folder()
    files = {"clip-model": "clip.json", "clip-pretrained": "clip.safetensors"}
    files |= {"dino-model": "dino.json", "dino-pretrained": "dino.safetensors"}
    return [*map(str, words), *(word for flag, name in files.items() for word in (f"--{flag}", str(place / name)))]


def uncommented(path: Path) -> Path:
    """The config with every default in it."""
    text = re.sub(r"^#(?=\w)", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    other = path.with_name("all.toml")
    other.write_text(text, encoding="utf-8")
    return other


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_a_config_that_the_next_command_takes(layout, here, ssr):
    root, flags, said = LAYOUTS[layout]
    ran = ssr("init", *with_models("--root", root, *flags))
    assert said in ran.out
    values, top = read_config(Path("ssr.toml"))
    assert values["dataset"]["root"] == Path(root)
    assert top["work"] == Path("runs") / Path(root).name
    everything = read_config(uncommented(here / "ssr.toml"))[0]
    assert set(everything) == set(values)
    for section, entries in everything.items():
        short = build_options(section, read_recipe("ssr").get(section, {}), values[section])
        full = build_options(section, read_recipe("ssr").get(section, {}), entries)
        assert {k: v for k, v in full if not isinstance(v, Path)} == {k: v for k, v in short if not isinstance(v, Path)}, (
            section
        )
    unlabelled = layout == "names alone"
    command = TO_PREDICT if unlabelled else TO_DOCTOR
    assert ran.out.endswith(command + "\n")
    text = ssr(*shlex.split(command)[2:], "--device", "cpu").text
    assert "error" not in text.lower()
    if unlabelled:
        assert len(list(here.glob("runs/images/predictions/*/*.png"))) == 3
        text = ssr("doctor", "--config", "ssr.toml").text
        assert "warning dataset: no label file: `ssr tag` makes a label file from the class names" in text
        assert "without" not in text
        assert text.endswith("next: ssr tag --config ssr.toml\n")


def test_the_drawn_set(here, ssr):
    ssr("sample", "--work", "drawn", "--train", 2, "--val", 1)
    assert (
        "layout voc, split train: 2 photos with labels, 10 classes" in ssr("init", *with_models("--root", "drawn/dataset")).out
    )
    assert "error" not in ssr("doctor", "--config", "ssr.toml").text.lower()


BAD = {
    # flags -> the line
    "no folder named": ([], "expected a folder of photos, found no --root"),
    "no such folder": (["--root", "nowhere"], "expected a folder of images, found nowhere (--root FOLDER)"),
    "nothing known": (["--root", "folder/images"], "found none (--labels FILE, or the class names: --names 'mug, spoon')"),
    "no photos": (["--root", "empty", "--names", "cat"], "empty: expected images, found none"),
    "unread photos": (
        ["--root", "heic", "--names", "cat"],
        "heic: expected images, found files of formats that are not read: 1 .heic",
    ),
    "a name twice": (["--root", "folder", "--names", "cat,cat"], "class name 'cat' occurs twice"),
    "a label without a name": (["--root", "folder", "--names", "cat"], "unknown class 'dog'"),
    "another class list": (
        ["--root", "listed", "--names", "dog"],
        "expected the classes of --names, found a class list with cat",
    ),
    "unknown layout": (["cocoo", "--root", "folder"], "no dataset kind 'cocoo'"),
    "unknown split": (["--root", "voc/VOC2012", "--split", "x"], "expected ImageSets/Segmentation/x.txt"),
    "a folder too high": (["--root", "voc"], "--root voc/VOC2012"),
    "unknown recipe": (["--root", "folder", "--recipe", "x"], "no recipe 'x'"),
    "no config by its name": (["--root", "folder", "--output", "ssr.yaml"], "expected a .toml, found ssr.yaml"),
    "a config to read": (["--root", "folder", "--config", "x.toml"], "--config: this command reads no config"),
    "a bad value": (["--root", "folder", "--long-side", "-1"], "--long-side"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(case, here, ssr):
    flags, line = BAD[case]
    for name in ("empty", "heic", "listed"):
        (here / name).mkdir()
    (here / "heic/x.heic").touch()
    shutil.copy(here / "folder/images/one.png", here / "listed")
    (here / "listed/classes.toml").write_text('[[classes]]\nname = "cat"\n')
    before = sorted(here.rglob("*"))
    ran = ssr("init", *flags, code=2)
    assert line in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert ran.out == ""
    assert sorted(here.rglob("*")) == before


def test_a_config_is_replaced_with_force_alone(here, ssr):
    Path("ssr.toml").write_text("mine")
    assert "there is a config already (--force replaces it" in ssr("init", "--root", "folder", code=2).err
    assert Path("ssr.toml").read_text() == "mine"
    ssr("init", "--root", "folder", "--names", "cat,dog", "--force")
    first = Path("ssr.toml").read_bytes()
    Path("classes.toml").write_text("background = ['wall']\n" + Path("classes.toml").read_text().split("\n", 2)[2])
    own = Path("classes.toml").read_text()
    ssr("init", "--root", "folder", "--names", "cat,dog", "--force")
    assert Path("ssr.toml").read_bytes() == first
    assert Path("classes.toml").read_text() == own, "words that somebody chose are kept"


@pytest.mark.parametrize("name", ['quo"te', "~home", "line\nbreak", "back\\slash", "Löffel \U0001f944", "del\x7f"])
def test_odd_names_of_folders_are_read_back(name, here, ssr):
    Path("folder").rename(name)
    ssr("init", "--root", f"./{name}")
    assert read_config(Path("ssr.toml"))[0]["dataset"]["root"].samefile(name)


ANSWERS = {
    # answers on the terminal -> what follows; a bad one is asked again
    "labels in the folder": ("nowhere\nfolder\n", "expected a folder, found 'nowhere'", TO_DOCTOR),
    "label file": ("folder/images\nno.csv\nfolder/labels.csv\n", "expected a file, found 'no.csv'", TO_DOCTOR),
    "names": ("folder/images\n\n , \ncat, dog\n", "expected at least one name", TO_PREDICT),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_on_a_terminal_it_asks_for_what_is_not_known(case, here, models, monkeypatch):
    from ssr_cli.app import app
    from ssr_cli.commands import init

    monkeypatch.setattr(init, "asks", lambda: True)
    answers, again, command = ANSWERS[case]
    result = CliRunner().invoke(app, ["init"], input=answers, prog_name="ssr")
    assert result.exit_code == 0, result.output
    assert again in result.output
    assert result.stdout.endswith(command + "\n")
    assert result.output.count("Folder of photos") == 1 + ("nowhere" in answers)
    assert read_config(Path("ssr.toml"))[0]["dataset"]["kind"] == "folder"


def test_what_commands_write_into_the_folder_of_images_is_no_image_of_it(tiny_folder, ssr, tmp_path):
    """A folder of subfolders, with the work directory, an export and predictions inside."""
    root = tmp_path / "own"
    for place, name in (("mug", "one"), ("spoon", "two")):
        (root / place).mkdir(parents=True)
        shutil.copy(tiny_folder.root / f"images/{name}.png", root / place)
    (root / "labels.csv").write_text("image,labels\none,cat\ntwo,cat;dog\n")
    shutil.copy(tiny_folder.config, root)
    made = ("--config", root / "tiny.toml", "--work", root / "runs/own")
    (root / "classes.toml").write_text('[[classes]]\nname = "cat"\n[[classes]]\nname = "dog"\n')
    tags = ("--classes", root / "classes.toml", "--output", root / "maps")
    ssr("predict", "--model", "tags", *made, *tags)
    ssr("masks", *made)
    ssr("show", *made)
    ssr("export", "voc", *made, "--output", root / "for others")
    assert len(list(root.rglob("*.png"))) > 8
    assert "masks: 2 images" in ssr("masks", *made, "--force").err
    assert ", 2 already done" in ssr("predict", "--model", "tags", *made, *tags).err

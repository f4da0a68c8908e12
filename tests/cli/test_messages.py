"""Help, errors and exit codes: one clear line, never a traceback that nobody asked for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ssr_cli.app import COMMANDS
from ssr_cli.console import ConsoleProgress

HEAVY = ("torch", "open_clip", "timm", "pydantic", "numpy", "skimage", "h5py", "matplotlib")


def test_version(ssr):
    from importlib.metadata import version

    assert ssr("--version").out == f"ssr {version('ssr-wsss')}\n"


def test_help_lists_the_commands_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom ssr_cli.app import main\nsys.argv = ['ssr', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "heavy: []"
    assert all(f" {name} " in done.stdout for name in COMMANDS)
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    "module", ["pipelines.stages.superpixels", "pipelines.method.label_maps", "pipelines.execution.label_map_workers"]
)
def test_worker_processes_do_not_load_torch(module):
    code = f"import sys, {module}\nprint([name for name in ('torch', 'open_clip', 'timm') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_table_of_commands_is_the_folder_of_commands():
    files = {path.stem for path in (Path(__file__).parents[2] / "ssr_cli/commands").glob("*.py")} - {"__init__"}
    assert files == set(COMMANDS)


@pytest.mark.parametrize(
    ("ago", "line"), [(39.9, "x: 4/10, 10.0 s/image, 60 s left"), (0.99, "x: 4/10, 4.0 images/s, 1 s left")]
)
def test_a_slow_rate_is_seconds_for_each_image(capsys, monkeypatch, ago, line):
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    progress = ConsoleProgress()
    progress.start("x", 10)
    monkeypatch.setattr("time.monotonic", lambda: 1000.0 + ago)
    progress._last_line = 0.0
    progress.advance(4)
    assert capsys.readouterr().err.splitlines()[-1] == line


def test_without_a_command_there_is_help(ssr):
    ran = ssr(code=None)
    assert ran.code in {0, 2}
    assert "superpixels" in ran.text


@pytest.mark.parametrize("words", [("camz",), ("--verison",), ("cams", "--nope"), ("refine", "--power=x"), ("voc",)])
def test_mistyped_words_are_usage_errors(ssr, words):
    ran = ssr(*words, code=2)
    assert "Traceback" not in ran.text
    assert words[-1].strip("-").split("=")[0] in ran.err


def usage_errors(config: Path, tmp: Path) -> dict[str, tuple[list[object], str]]:
    made = ["--config", config, "--work", tmp / "w"]
    return {
        "no such root": (["superpixels", "voc", "--root", tmp / "none", "--work", tmp / "w"], "--root"),
        "no root": (["superpixels", "voc", "--work", tmp / "w"], "--root"),
        "no such split": (["superpixels", *made, "--split", "trian"], "--split"),
        "no such split file": (["superpixels", *made, "--split", tmp / "none.txt"], "--split"),
        "no such config": (["cams", "--config", tmp / "none.toml"], "--config"),
        "no such recipe": (["cams", *made, "--recipe", "srr"], "--recipe"),
        "no such model": (["cams", *made, "--clip-model", "ViT-Z"], "--clip-model"),
        "no such weights": (["cams", *made, "--clip-pretrained", tmp / "none.safetensors"], "--clip-pretrained"),
        "no such bank": (["cams", *made, "--text-bank", tmp / "none.safetensors", "--recipe", "clip-es"], "--text-bank"),
        "no such device": (["cams", *made, "--device", "tpu"], "--device"),
        "alignment heads": (["cams", *made, "--ckpt", tmp / "cmpa.safetensors"], "--ckpt"),
        "value out of range": (["superpixels", *made, "--segments", 0], "--segments"),
        "no ground truth": (["eval", *made, "--mask-folder", tmp / "none"], "--mask-folder"),
        "unknown id": (["show", *made, "--ids", "nobody"], "--ids"),
        "unknown ids": (["eval", *made, "--images", tmp / "ids.txt"], "--images"),
        "no attention": (["refine", *made, "--clip-blocks", 0, "--dino-blocks", 0], "--clip-blocks"),
    }


@pytest.mark.parametrize("case", usage_errors(Path(), Path()))
def test_usage_errors_are_one_line_that_names_the_flag(ssr, tiny_voc, tmp_path, case):
    (tmp_path / "ids.txt").write_text("a_cat\nnobody\n")
    words, flag = usage_errors(tiny_voc.config, tmp_path)[case]
    ran = ssr(*words, code=2)
    assert ran.err.startswith("error: ")
    assert flag in ran.err
    assert "Traceback" not in ran.err
    assert "unexpected" not in ran.err
    assert len([line for line in ran.err.splitlines() if line.startswith("error")]) == 1


@pytest.mark.parametrize(
    ("words", "command"),
    [(["refine"], "ssr cams"), (["cams"], "ssr superpixels"), (["eval"], "ssr refine"), (["eval", "cams"], "ssr cams")],
)
def test_missing_input_names_the_command_that_makes_it(ssr, tiny_voc, tmp_path, words, command):
    ran = ssr(*words, "--config", tiny_voc.config, "--work", tmp_path / "w", code=1)
    assert f"`{command} --work {tmp_path / 'w'}`" in ran.err


def test_work_that_cannot_be_a_folder(ssr, tiny_voc, tmp_path):
    (tmp_path / "file").write_text("x")
    ran = ssr("superpixels", "--config", tiny_voc.config, "--work", tmp_path / "file", code=None)
    assert ran.code in {1, 2}
    assert "--work" in ran.err
    assert "unexpected" not in ran.err


def test_debug_shows_the_traceback(ssr_process, tmp_path):
    quiet = ssr_process("superpixels", "voc", "--root", tmp_path / "none", "--work", tmp_path / "w", code=2)
    assert "Traceback" not in quiet.err
    loud = ssr_process("superpixels", "voc", "--root", tmp_path / "none", "--work", tmp_path / "w", "--debug", code=None)
    assert loud.code != 0
    assert "Traceback" in loud.err
    assert "UsageError" in loud.err


def test_output_without_a_terminal_has_no_escape_codes(finished, ssr_process, tmp_path):
    work = Path(shutil.copytree(finished["ssr"], tmp_path / "work"))
    ran = ssr_process("eval", "--work", work, "--no-pictures")
    assert "mIoU" in ran.out
    assert "\x1b" not in ran.text
    assert "\r" not in ran.text


def test_status_in_an_empty_place_says_what_to_do(ssr, tiny_voc, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = ssr("status", code=2)
    assert "there is none under runs/" in ran.err
    assert "--work" in ran.err
    for command in ("status", "merge"):
        assert f"found nothing at {tmp_path / 'new'} (--work)" in ssr(command, "--work", tmp_path / "new", code=2).err
    ran = ssr("status", "--config", tiny_voc.config, "--work", tmp_path / "new")
    assert "not begun" in ran.out
    assert f"next: ssr superpixels --work {tmp_path / 'new'}" in ran.out
    assert not (tmp_path / "new").exists()


def test_only_work_directory_is_found(ssr, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished["ssr"], tmp_path / "runs/voc")
    assert "next: ssr eval --work runs/voc" in ssr("status").out
    shutil.copytree(finished["ssr"], tmp_path / "runs/other")
    assert "runs/other, runs/voc" in ssr("status", code=2).err


def test_doctor_finds_what_would_fail(ssr, tiny_voc, tmp_path):
    good = ssr("doctor", "--config", tiny_voc.config, "--work", tmp_path / "w", "--gt")
    for said in ("CLIP tiny-quickgelu", "DINO test_vit", "6 images", "1 images without a class: d_empty", "20 classes"):
        assert said in good.out
    assert not (tmp_path / "w").exists()
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    (root / "JPEGImages/a_cat.jpg").unlink()
    (root / "JPEGImages/c_bird.jpg").write_bytes(b"")
    shutil.copy(root / "SegmentationClass/a_cat.png", root / "SegmentationClass/f_car.png")
    (root / "SegmentationClass/b_trio.png").unlink()
    bad = ssr("doctor", "--config", tiny_voc.config, "--root", root, "--work", tmp_path / "w", "--gt", code=1)
    for said in ("1 image files missing: a_cat", "c_bird: ", "without ground truth: b_trio", "f_car: image 51x37, mask 96x64"):
        assert said in bad.out
    weights = ("--dino-pretrained", tmp_path / "none.safetensors")
    broken = ssr("doctor", "--config", tiny_voc.config, *weights, "--work", tmp_path / "w", code=1)
    assert "no weights at" in broken.out


def test_doctor_of_a_dataset_without_images(ssr, tiny_coco, tmp_path):
    root = Path(shutil.copytree(tiny_coco.root, tmp_path / "coco"))
    file = root / "annotations/instances_train2014.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "images": [], "annotations": []}))
    ran = ssr("doctor", "--config", tiny_coco.config, "--root", root, "--work", tmp_path / "w", code=1)
    assert "unexpected" not in ran.err


def truth_of(root: Path, change: dict[int, int]) -> None:
    """Rewrite the values of all masks."""
    table = [change.get(value, value) for value in range(256)]
    for path in (root / "SegmentationClass").glob("*.png"):
        Image.open(path).point(table, "L").save(path)


@pytest.fixture
def own_voc(tiny_voc, finished, tmp_path):
    """A copy of the photos and of a finished work directory: ``(root, arguments of a command)``."""
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    work = Path(shutil.copytree(finished["ssr"], tmp_path / "work"))
    (work / "work.json").unlink(missing_ok=True)
    return root, ["--config", tiny_voc.config, "--root", root, "--work", work]


BINARY = "found 0 and 255 alone in 5 of 6 masks"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["eval", "--no-pictures"], 1, f"split train: expected class numbers in ground truth, {BINARY}"),
        (["doctor", "--gt"], 1, BINARY),
        (["show", "--gt", "--count", 2], 0, "no ground-truth mask shows a class"),
        (["train", "--supervision", "masks", "--iterations", 1], 1, BINARY),
    ],
)
def test_objects_of_255_are_found_by_all_who_open_ground_truth(ssr, own_voc, words, code, said):
    root, made = own_voc
    truth_of(root, dict.fromkeys(range(1, 255), 255))
    assert said in ssr(*words, *made, code=code).text
    ssr("labels", root / "SegmentationClass", root / "labels.csv", "--from", "masks", code=1)
    assert not (root / "labels.csv").exists()


def test_ground_truth_above_the_class_list_is_one_line_at_every_door(ssr, own_voc):
    root, made = own_voc
    truth_of(root, {8: 40})
    for words in (["eval", "--no-pictures"], ["show", "--gt"], ["report", "--gt"], ["doctor", "--gt"]):
        ran = ssr(*words, *made, code=1)
        assert "a_cat.png: expected values 0..20 and 255, found 40" in ran.text
        assert "unexpected" not in ran.text


def test_a_class_without_ground_truth_is_named_beside_every_score(ssr, own_voc):
    root, made = own_voc
    truth_of(root, {7: 0, 255: 0})  # no car
    line = "in the labels but without one ground-truth pixel, so not scored: car"
    assert f"warning: {line}" in ssr("eval", "--no-pictures", *made).out
    work = made[-1]
    assert json.loads((work / "eval/masks/report.json").read_text())["warnings"] == [line]
    ssr("report", *made)
    assert line in (work / "report.html").read_text()
    assert f"warning: {line}" in ssr("eval", "--compare", work, work).out


def test_a_photo_that_does_not_fit_into_memory_is_its_own_failure(ssr, own_voc, monkeypatch):
    from pipelines.stages import cams

    _, made = own_voc
    real = cams.extract_cams

    def greedy(encoders, batch, options):
        if any(photo.sample.image_id == "b_trio" for photo in batch):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 35389440000 bytes")
        return real(encoders, batch, options)

    monkeypatch.setattr(cams, "extract_cams", greedy)
    line = "b_trio: an image of 64 x 96 with 24 patches needs more memory than there is (a smaller --long-side"
    assert line in ssr("cams", "--force", *made, code=1).err
    ran = ssr("cams", "--force", "--max-failures", 1, *made, code=3)
    assert line in ran.err
    assert "cams: 6/6" in ran.err


def test_large_photos_are_encoded_at_the_long_side_and_masks_keep_their_size(ssr, own_voc):
    from pipelines.stores.array_store import ArrayReader

    root, made = own_voc
    Image.new("RGB", (400, 100), (200, 60, 40)).save(root / "JPEGImages/a_cat.jpg")
    made += ["--long-side", 128, "--force"]
    said = " ".join(ssr("doctor", *made).out.split())
    assert "1 images have a side above 128 pixels and are encoded at that" in said
    assert "the largest is 400 x 100" in said
    for stage in ("superpixels", "cams", "refine"):
        ssr(stage, *made)
    with ArrayReader(made[5] / "cams.h5") as cams:
        assert [cams.read(name)[0].shape[1:] for name in ("a_cat", "f_car")] == [(2, 8), (3, 4)]
    assert Image.open(made[5] / "masks/a_cat.png").size == (400, 100)
    assert "long_side" in ssr("cams", *made[:-3], code=2).err


def test_doctor_names_pixels_that_may_not_be_meant(ssr, own_voc):
    import numpy as np

    root, made = own_voc
    exif = Image.Exif()
    exif[0x0112] = 6
    photos = root / "JPEGImages"
    Image.open(photos / "a_cat.jpg").copy().save(photos / "a_cat.jpg", exif=exif)
    Image.new("RGBA", (64, 96)).save(photos / "b_trio.jpg", "PNG")
    Image.new("CMYK", (80, 80)).save(photos / "c_bird.jpg")
    Image.fromarray(np.full((48, 64), 4095, np.uint16)).save(photos / "d_empty.jpg", "PNG")
    said = ssr("doctor", *made).out
    for line in (
        "1 images that their EXIF turns, used as they are stored; --orient turns them, if the masks are for that: a_cat",
        "1 images with transparency, which is dropped: what is behind it shows: b_trio",
        "1 CMYK images, converted without their colour profile",
        "1 images of 16 bits with values of 12 bits or fewer, which are nearly black",
    ):
        assert f"warning dataset: {line}" in said
    assert "EXIF" not in ssr("doctor", "--orient", *made).out
    assert "a_cat: image 64x96, mask 96x64" in ssr("doctor", "--orient", "--gt", *made, code=1).out
    assert "orient" in ssr("superpixels", "--orient", *made, code=2).err


def test_a_photo_that_was_replaced_is_made_anew_by_every_stage(ssr, tiny_voc, tmp_path):
    """Same name, same size, another picture; a file that was only touched is left as it is."""
    from pipelines.stores.array_store import ArrayReader

    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    made = ["--config", tiny_voc.config, "--root", root, "--work", tmp_path / "work"]
    for stage in ("superpixels", "cams", "refine"):
        ssr(stage, *made)
    photo, mask = root / "JPEGImages/a_cat.jpg", tmp_path / "work/masks/a_cat.png"
    before = mask.read_bytes(), stored(tmp_path / "work")
    os.utime(root / "JPEGImages/c_bird.jpg")
    turned = Image.open(photo).rotate(180)
    turned.save(photo, quality=95)
    os.utime(photo, (1, 1))  # as `cp -p` of an old file
    said = ssr("status", *made[4:]).out
    assert said.count("1 images out of date, with other labels or another photo, or new: a_cat") == 4
    assert f"next: ssr superpixels --work {tmp_path / 'work'}" in said
    assert "its image was replaced after its superpixels were made" in ssr("cams", *made, code=1).err
    for stage, said in (("superpixels", "6/6"), ("cams", "6/6"), ("refine", "6/6")):
        ran = ssr(stage, *made)
        assert f"{stage}: {said}" in ran.err
        assert "5 already done" in ran.err
    assert mask.read_bytes() != before[0]
    after = stored(tmp_path / "work")
    assert {name for name in after if after[name] != before[1][name]} == {"a_cat"}
    with ArrayReader(tmp_path / "work/cams.h5") as cams:
        assert cams.attributes("a_cat")["photo"].startswith(f"{photo.stat().st_size}-")
    said = ssr("status", *made[4:]).out
    assert "out of date" not in said
    (root / "Annotations/c_bird.xml").write_text("<annotation><object><name>dog</name></object></annotation>")
    assert "cams: 1 images out of date, with other labels or another photo, or new: c_bird" in ssr("status", *made[4:]).out


def stored(work):
    from pipelines.stores.array_store import ArrayReader

    found = {}
    for name in ("superpixels", "cams", "refined"):
        with ArrayReader(work / f"{name}.h5") as reader:
            for image_id in ("a_cat", "c_bird", "e_pair"):
                found[image_id] = found.get(image_id, b"") + reader.read(image_id)[0].tobytes()
    return found

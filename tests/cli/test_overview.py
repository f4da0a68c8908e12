"""``ssr`` without a command: the stages in order, where the work directories stand, how to begin."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssr_cli import console

HEAVY = ("torch", "open_clip", "timm", "matplotlib", "skimage", "scipy")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Commands run in an empty folder, on a wide console."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console.out, "_width", 200)
    return tmp_path


def state(out: str, command: str) -> str:
    """The line of a stage."""
    return next(line for line in out.splitlines() if re.match(rf"\d +ssr {command} ", line))


def test_stages_in_order_and_how_to_begin(ssr):
    out = ssr().out
    stages = re.findall(r"^(\d) +ssr (\w+) .*?(\S+)\s*$", out, re.MULTILINE)
    assert stages == [
        ("1", "superpixels", "superpixels.h5"),
        ("2", "align", "cmpa.safetensors"),
        ("3", "cams", "cams.h5"),
        ("4", "refine", "masks/*.png"),
        ("5", "train", "model.safetensors"),
        ("6", "predict", "predictions/*.png"),
        ("7", "eval", "eval/*/report.json"),
    ]
    assert "begin with\n  ssr sample " in out
    assert "\n  ssr init " in out
    assert "ssr doctor voc --root " in out
    assert "next:" not in out
    assert not Path("runs").exists()


def test_one_work_directory(ssr, finished, monkeypatch):
    work = Path(shutil.copytree(finished["ssr"], "runs/voc"))
    out = ssr().out
    assert "next: ssr eval --work runs/voc\n" in out
    assert re.search(r"runs/voc: voc, train, .*VOC2012; recipe ssr", out)
    assert "begin with" not in out
    for command in ("superpixels", "cams", "refine"):
        assert state(out, command).rstrip().endswith("6/6 done")
    assert state(out, "eval").rstrip().endswith("report.json")
    ssr("eval", "--work", work, "--no-pictures")
    out = ssr().out
    assert re.search(r"masks mIoU \d+\.\d\d\s*$", state(out, "eval"))
    assert "next: ssr report --work runs/voc\n" in out
    assert "  runs/voc/masks  pseudo-masks as PNG" in out
    assert "your own photos: ssr init --root FOLDER" in out
    monkeypatch.setattr(console.out, "_width", 80)
    assert len(ssr().out.splitlines()) < 25


@pytest.mark.parametrize(
    ("output", "command", "said"),
    [
        ("cams", "cams", "6/6 broken off, 2 bad"),
        ("refined", "refine", "6/6 broken off, 2 bad"),
        ("masks", "refine", "6/6 brok"),
    ],
)
def test_a_stage_that_was_broken_off(ssr, finished, output, command, said):
    work = Path(shutil.copytree(finished["ssr"], "runs/voc"))
    manifest = json.loads((work / f"{output}.json").read_text())
    manifest |= {"complete": False, "counts": {"done": 6, "skipped": 0, "failed": 2}}
    (work / f"{output}.json").write_text(json.dumps(manifest))
    out = ssr().out
    assert said in state(out, command)
    assert f"next: ssr {command} --work runs/voc" in out


def test_a_smaller_split_in_an_older_work_directory(ssr, finished, tiny_voc):
    work = Path(shutil.copytree(finished["ssr"], "runs/voc"))
    ssr("superpixels", "--config", tiny_voc.config, "--work", work, "--split", "val")
    assert "2/2 done, 4 of another split" in state(ssr().out, "superpixels")
    assert "6/6 done" in state(ssr().out, "cams")
    assert "2/2" in ssr("status").out
    assert "6/2" not in ssr("status").out


def test_the_drawn_set_before_its_first_stage(ssr):
    Path("runs/sample").mkdir(parents=True)
    Path("runs/sample/sample.toml").write_text("")
    out = ssr().out
    assert "runs/sample: not begun\nnext: ssr superpixels --config runs/sample/sample.toml\n" in out


def test_several_work_directories_are_one_line_each(ssr, finished):
    shutil.copytree(finished["ssr"], "runs/a")
    shutil.copytree(finished["clip-es"], "runs/b")
    Path("runs/c").mkdir()
    Path("runs/c/work.json").write_text('{"dataset": {"kind": "coco", "split": "val", "root": "/d"}}')
    ssr("eval", "--work", "runs/b", "--no-pictures")
    out = ssr().out
    lines = [line for line in out.splitlines() if line.startswith("runs/")]
    assert lines[0] == "runs/a: voc train; masks 6/6 done; next: ssr eval --work runs/a"
    assert re.fullmatch(r"runs/b: voc train; masks 6/6 done; masks mIoU [\d.]+; next: ssr report --work runs/b", lines[1])
    assert lines[2:3] == ["runs/c: not begun; next: ssr superpixels --work runs/c"]
    assert "done" not in state(out, "cams")


DAMAGES = {
    "memory": ("work.json", b"{"),
    "memory of another form": ("work.json", b'{"clip": 3}'),
    "manifest": ("cams.json", b"[]"),
    "numbers of a manifest": ("cams.json", b'{"stage": "cams", "settings": {}, "dataset": {"images": "x"}}'),
    "counts of a manifest": ("masks.json", b'{"stage": "masks", "settings": {}, "dataset": {}, "counts": [1]}'),
    "dataset of a manifest": ("masks.json", b'{"stage": "masks", "settings": {}, "dataset": []}'),
    "store": ("cams.h5", b"no HDF5"),
    "report": ("eval/masks/report.json", b"{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("alone", [True, False])
def test_a_damaged_work_directory_is_one_line(ssr, finished, damage, alone):
    name, content = DAMAGES[damage]
    work = Path(shutil.copytree(finished["ssr"], "runs/bad"))
    (work / name).parent.mkdir(parents=True, exist_ok=True)
    (work / name).write_bytes(content)
    if not alone:
        shutil.copytree(finished["ssr"], "runs/good")
    ran = ssr()
    lines = [line for line in ran.out.splitlines() if line.startswith("runs/bad")]
    assert len(lines) == 1
    assert lines[0].startswith("runs/bad: error: ")
    assert Path(name).stem in lines[0]
    assert "unexpected" not in lines[0]
    assert "Traceback" not in ran.text
    assert alone or "runs/good: voc train; masks 6/6 done" in ran.out


def test_what_nobody_thought_of_is_one_line_too(ssr, monkeypatch):
    import pipelines.stages.status

    def explode(_: Path) -> None:
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr(pipelines.stages.status, "status", explode)
    Path("runs/x").mkdir(parents=True)
    Path("runs/x/work.json").write_text("{}")
    assert "runs/x: error: unexpected ZeroDivisionError: oh (ssr status --work runs/x --debug)\n" in ssr().out


def test_nothing_heavy_is_imported(finished, here):
    shutil.copytree(finished["ssr"], "runs/voc")
    code = (
        "import sys\nfrom ssr_cli.app import main\nsys.argv = ['ssr']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=here)
    assert done.stdout.splitlines()[-1] == "heavy: []"
    assert "6/6 done" in done.stdout
    assert "\x1b" not in done.stdout

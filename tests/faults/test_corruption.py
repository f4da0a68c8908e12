"""Damaged files: truncated, zeroed, with a bit flipped, replaced by garbage, removed.

A stage that meets one says so on a line that names the file and the cure, or its output is right; what the line advises leads
back to the bytes of an undisturbed run. Never a traceback, never silently something else. HDF5 keeps no checksum over its own
structure, and libhdf5 may crash on one that is damaged: flips in stores are counted apart, and must only be curable.
"""

from __future__ import annotations

import random
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fixtures.forks import Ended

from .contents import differing, digest
from .harness import FULL, Lab

Damage = Callable[[Path, random.Random], None]


def truncated(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def zeroed(path: Path, draw: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def garbage(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(path.stat().st_size))


def removed(path: Path, draw: random.Random) -> None:
    path.unlink()


KINDS: tuple[Damage, ...] = (truncated, zeroed, flipped, garbage, removed)
MASK, PREDICTION, PART = "masks/photo_05.png", "predictions/train/photo_05.png", "cams.h5.parts/000001.h5"


@dataclass(frozen=True)
class Case:
    """A file that is damaged and what runs then.

    Attributes:
        file: In the work directory.
        stage: Runs afterwards.
        maker: Makes the file.
        rebuilt: Files that a person accepts as begun anew, as the advice says.
    """

    file: str
    stage: str
    maker: str
    rebuilt: tuple[str, ...] = ()

    @property
    def resumes(self) -> bool:
        """The stage meets its own output, not its input."""
        return self.stage == self.maker

    def __str__(self) -> str:
        return f"{self.file} {self.stage}"


CURVES = ("train/curves",)
CASES = (
    Case("superpixels.h5", "superpixels", "superpixels"),
    Case("superpixels.h5", "align", "superpixels"),
    Case("superpixels.h5", "cams", "superpixels"),
    Case("superpixels.h5", "refine", "superpixels"),
    Case("superpixels.h5", "train", "superpixels"),
    Case("superpixels.json", "superpixels", "superpixels"),
    Case("superpixels.json", "cams", "superpixels"),
    Case("align/tokens.h5", "align", "align"),
    Case("align/cams.h5", "align", "align"),
    Case("align/tokens.json", "align", "align"),
    Case("align/state.safetensors", "align", "align"),
    Case("align/metrics.json", "align", "align"),
    Case("cmpa.safetensors", "align", "align"),
    Case("cmpa.json", "align", "align"),
    Case("cmpa.safetensors", "cams", "align"),
    Case("cmpa.safetensors", "train", "align"),
    Case("cams.h5", "cams", "cams"),
    Case(PART, "cams", "cams"),
    Case("cams.json", "cams", "cams"),
    Case("cams.h5", "refine", "cams"),
    Case("cams.json", "refine", "cams"),
    Case("refined.h5", "refine", "refine"),
    Case("refined.json", "refine", "refine"),
    Case("masks.json", "refine", "refine"),
    Case(MASK, "refine", "refine"),
    Case(MASK, "eval", "refine"),
    Case("masks.json", "eval", "refine", ("eval/masks/",)),  # the report says that the options are unknown
    Case("train/state.safetensors", "train", "train"),
    Case("train/curves.jsonl", "train", "train", CURVES),
    Case("model.safetensors", "train", "train"),
    Case("model.json", "train", "train"),
    Case("model.safetensors", "predict", "train"),
    Case("predictions/train.h5", "predict", "predict"),
    Case(PREDICTION, "predict", "predict"),
    Case("predictions/train.json", "predict", "predict"),
    Case("work.json", "cams", "cams"),
)


def trials() -> list[object]:
    found: list[object] = []
    for number, case in enumerate(CASES if FULL else CASES[::2]):
        kinds = KINDS if FULL else (KINDS[number % len(KINDS)],)
        found += [pytest.param(case, kind, id=f"{case} {kind.__name__}".replace(" ", "-")) for kind in kinds]
    return found


def prepared(lab: Lab, case: Case, work: Path) -> Path:
    """A directory in which the stage comes next, or has ended if it meets its own output."""
    shutil.rmtree(work, ignore_errors=True)
    (lab.finished if case.resumes else lab.fresh)(case.stage, work)
    if case.file == PART:  # as if the run had been broken off before its parts were merged
        (work / PART).parent.mkdir()
        (work / "cams.h5").rename(work / PART)
    return work


def outcome(lab: Lab, case: Case, work: Path, ended: Ended) -> str:
    """What a run over a damaged file came to, in words; what is bad begins with a capital."""
    if ended.code is None:
        return "HUNG"
    if ended.code < 0:
        return f"CRASHED, signal {-ended.code}"
    if ended.code == 0:
        wrong = lab.differences(case.stage, work, case.rebuilt)
        if set(wrong) <= ({case.file} if not case.resumes else set()):  # an input may stay as it is
            return "right output"
        return "not looked at" if wrong == [case.file] else f"SILENTLY WRONG {wrong[:3]}"
    if not ended.clear:
        return f"UNCLEAR: {ended}"
    if Path(case.file).name.removesuffix(".json") not in ended.errors[0] and Path(case.file).stem not in ended.errors[0]:
        return f"UNNAMED file: {ended}"
    if not re.search(r"\(.*\)", ended.errors[0]):
        return f"NO CURE: {ended}"
    return f"one line, exit {ended.code}"


def cured(lab: Lab, case: Case, work: Path, ended: Ended) -> str | None:
    """Do what the line advises; None if that leads to the bytes of an undisturbed run."""
    line = ended.errors[0]
    advice = line[line.rindex("(") :] if "(" in line else ""
    maker, flags = case.maker, []
    if "remove" in advice:
        (work / case.file).unlink(missing_ok=True)
    if "--resume never" in advice and "remove" not in advice:
        flags = ["--resume", "never"]
    elif "--force" in advice:
        flags = ["--force"]
    for stage in dict.fromkeys((maker, case.stage)):
        again = lab.run(stage, work, *(flags if stage == maker else []))
        if again.code != 0:
            return f"advice {advice} led {stage} to {again}"
    wrong = lab.differences(case.stage, work, case.rebuilt)
    return f"advice {advice} led to other bytes: {wrong}" if wrong else None


@pytest.mark.parametrize(("case", "kind"), trials())
def test_damaged_file(lab, table, tmp_path, case, kind):
    draw = random.Random(zlib.crc32(f"{case} {kind.__name__}".encode()))
    in_store = case.file.endswith(".h5") and kind is flipped
    faults = []
    for turn in range({flipped: 4, truncated: 2}.get(kind, 1) if FULL else 1):
        work = prepared(lab, case, tmp_path / "work")
        kind(work / case.file, draw)
        ended = lab.run(case.stage, work, seconds=60)
        found = outcome(lab, case, work, ended)
        table.add(f"{case.file} {'(store) ' * in_store}{kind.__name__}", case.stage, found.split(":")[0].split(" [")[0])
        if found.startswith("one line"):
            failed = cured(lab, case, work, ended)
            if failed is None:
                continue
            found = f"NOT CURED: {failed}"
        if found[0:2].isupper() and not in_store:
            faults.append(f"{turn}: {found}")
        if found == "right output":
            continue
        if case.file.startswith("align/") and found == "not looked at":
            (work / case.file).unlink()  # patches that read back are kept, --force or not
        over = [lab.run(stage, work, "--force") for stage in dict.fromkeys((case.maker, case.stage)) if stage != "eval"]
        if case.stage == "eval":
            over.append(lab.run("eval", work))
        wrong = [str(run) for run in over if run.code != 0] or lab.differences(case.stage, work, case.rebuilt)
        if wrong and in_store:  # else it was told, and what to do about it
            faults.append(f"{turn}: {found}, and --force does not start over: {wrong}")
    assert faults == []


def test_damages_are_damages(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)))
    before = digest(tmp_path)
    for kind in KINDS:
        path.write_bytes(bytes(range(256)))
        kind(path, random.Random(1))
        assert differing(before, digest(tmp_path)) == ["file"]

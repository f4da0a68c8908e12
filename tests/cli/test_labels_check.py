"""``ssr labels --check``: doubtful labels worst first, a page without anything from outside, and what its boxes save."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from pipelines.datasets.classes import VOC12
from pipelines.figures.check_page import SCRIPT, Doubt, check_page
from pipelines.ops.thresholds import calibrate, doubts
from pipelines.stores.array_store import iter_records
from tests.fixtures.datasets import PHOTOS

NASTY = '</script><script>alert("1")</script>, "x"'
BROWSER = """
const page = JSON.parse(require("fs").readFileSync(0, "utf8"));
const element = { textContent: page.rows, addEventListener() {} };
globalThis.document = {
  getElementById: () => element,
  querySelectorAll: () => page.ticked.map((value) => ({ checked: true, value })),
  addEventListener() {},
};
require("vm").runInThisContext(page.script + "; globalThis.found = corrected();");
process.stdout.write(found);
"""


def rows_of(page: str) -> str:
    return re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]


def saved(page: str, ticked: list[list[str]]) -> str:
    """What a browser would save with these boxes ticked."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node to run the page's script")
    given = json.dumps({"rows": rows_of(page), "ticked": [json.dumps(box) for box in ticked], "script": SCRIPT})
    return subprocess.run([node, "-e", BROWSER], input=given, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def checked(ssr, tiny_voc, tmp_path_factory):
    work = tmp_path_factory.mktemp("checked") / "work"
    ran = ssr("labels", "--check", "--config", tiny_voc.config, "--work", work, "--top", 3)
    return work, ran


def test_doubts_are_those_of_the_scores_worst_first(checked, ssr, tiny_voc):
    work, ran = checked
    records = dict(iter_records(work / "check/tag_scores.h5"))
    scores = np.array([records[image_id][0] for image_id in PHOTOS])
    labels = np.array([[name in PHOTOS[image_id][1] for name in VOC12.names] for image_id in PHOTOS])
    found = doubts(scores, labels, calibrate(scores, labels, own=True))
    with (work / "check/doubts.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    expected = {
        (image_id, name): (found[i, c], "wrong" if labels[i, c] else "missing")
        for i, image_id in enumerate(PHOTOS)
        for c, name in enumerate(VOC12.names)
        if found[i, c] > 0
    }
    assert {(row["image"], row["class"]): row["label is"] for row in table} == {k: v[1] for k, v in expected.items()}
    assert [float(row["doubt"]) for row in table] == pytest.approx(
        sorted((v[0] for v in expected.values()), reverse=True), abs=1e-4
    )
    wrong = sum(what == "wrong" for _, what in expected.values())
    assert f"{wrong} labels of 6 images may be wrong, {len(expected) - wrong} may be missing" in ran.out
    page = (work / "check/index.html").read_text(encoding="utf-8")
    assert page.count("<article>") == page.count("data:image/jpeg;base64,") == 3
    assert json.loads(rows_of(page)) == [[image_id, sorted(names)] for image_id, (_, names) in PHOTOS.items()]
    assert ", 6 already done" in ssr("labels", "--check", "--config", tiny_voc.config, "--work", work, "--top", 1).err


def test_page_runs_its_own_script_alone():
    doubt = Doubt(NASTY, NASTY, True, (NASTY,), b"jpeg", (3, 2), NASTY)
    page = check_page(NASTY, [doubt], [(NASTY, [NASTY])], {NASTY: NASTY})
    policy = re.search(r"script-src 'sha256-([^']+)'", page)[1]
    assert policy == b64encode(sha256(SCRIPT.encode()).digest()).decode()
    assert page.count("<script") == 2
    assert f"<script>{SCRIPT}</script>" in page
    assert "http" not in page.replace("http-equiv", "")
    assert json.loads(rows_of(page)) == [[NASTY, [NASTY]]]


def test_ticked_boxes_correct_the_label_file():
    labels = [("a", ["cat"]), ("b", ["cat", "dog"]), (NASTY, []), ("d", [])]
    page = check_page("t", [], labels, {})
    ticked = [["a", "cat", "remove"], ["a", "dog", "add"], ["b", "dog", "remove"], [NASTY, "x,y", "add"]]
    rows = list(csv.reader(saved(page, ticked).splitlines()))
    assert rows == [["image", "labels"], ["a", "dog"], ["b", "cat"], [NASTY, "x,y"], ["d", ""]]
    assert list(csv.reader(saved(page, []).splitlines()))[1:3] == [["a", "cat"], ["b", "cat;dog"]]


def test_bad_input_is_one_line(ssr, tiny_voc, tmp_path):
    (tmp_path / "none.csv").write_text("image,labels\n" + "".join(f"{image_id},\n" for image_id in PHOTOS))
    config = Path(tmp_path / "c.toml")
    config.write_text(tiny_voc.config.read_text().replace("[dataset]\n", f'[dataset]\nlabels = "{tmp_path}/none.csv"\n'))
    ran = ssr("labels", "--check", "--config", config, "--work", tmp_path / "w", code=1)
    assert "none of the images has a label: there is nothing to check" in ran.err
    assert "found no SOURCE" in ssr("labels", code=2).err
    assert "found no --from" in ssr("labels", "a", "b", code=2).err

"""``ssr review``: masks by confidence, a page whose script alone runs, and marks that become corrected masks."""

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
from PIL import Image

from pipelines.datasets.classes import VOC12, palette
from pipelines.figures.page_links import PageOf
from pipelines.figures.review_page import SCRIPT, Doubtful, review_page
from pipelines.ops.confidence import mask_confidence
from pipelines.stores.mask_store import write_mask
from tests.fixtures.datasets import PHOTOS

NASTY = '</script><script>alert("1")</script>, "x"'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CLICKS = """
addEventListener("load", () => {
  const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  document.querySelector("#m0 [value=bad]").click();
  press("j"); press("g"); press("f"); press("u");
  document.querySelector("#m0 [value=bad]").click();
  document.querySelector("#m0 [value=fix]").click();
  HTMLAnchorElement.prototype.click = function () { document.body.textContent = this.download + result(); };
  press("s");
});
"""


@pytest.fixture
def work(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished["ssr"], tmp_path / "work"))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_agreement_is_certain_and_disagreement_is_not():
    square = np.zeros((2, 8, 8), np.float16)
    square[0, 2:6, 2:6] = square[1, :2] = 1
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48], mask[:16] = 5, 7
    assert mask_confidence(square, square, mask, (4, 6)) == [1, 1]
    elsewhere = mask_confidence(square[::-1], square, mask, (4, 6))
    assert max(elsewhere) == 0.5  # refined CAM and mask agree with one another, the CAM with neither
    assert mask_confidence(square, square, np.zeros_like(mask), (4, 6)) == [0.25, 0.25]
    assert mask_confidence(np.zeros_like(square), np.zeros_like(square), mask, (4, 6)) == [0, 0]
    assert mask_confidence(square[:0], square[:0], mask, ()) == []


def test_table_is_sorted_and_the_export_has_the_lowest_of_each_photo(work, tiny_voc, ssr):
    ran = ssr("review", "--work", work, "--top", 3)
    with (work / "review/review.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    values = [float(row["confidence"]) for row in table]
    assert values == sorted(values)
    assert 0 < values[0] < values[-1] <= 1
    assert {(row["image"], row["class"]) for row in table} == {(i, name) for i, (_, names) in PHOTOS.items() for name in names}
    assert f"{len(table)} masks" in ran.out
    page = (work / "review/index.html").read_text(encoding="utf-8")
    assert page.count("<article ") == page.count("data:image/jpeg;base64,") == 3
    ssr("export", "label-studio", "--work", work)
    tasks = json.loads((work / "exports/label-studio-train/tasks.json").read_text(encoding="utf-8"))
    scores = {task["data"]["image_id"]: task["predictions"][0].get("score") for task in tasks}
    lowest = {row["image"]: pytest.approx(float(row["image's lowest"]), abs=1e-4) for row in table}
    assert scores == dict.fromkeys(scores) | lowest  # none without an object


def test_many_masks_are_several_pages_in_the_order_of_the_table(work, ssr):
    def shown() -> list[list[list[str]]]:
        files = sorted((work / "review").glob("index*.html"), key=lambda path: (len(path.name), path))
        return [json.loads(re.search(r'id="data">(.*?)</script>', file.read_text(), re.DOTALL)[1]) for file in files]

    said = ssr("review", "--work", work, "--top", 0, "--per-page", 3).out
    with (work / "review/review.csv").open(encoding="utf-8") as file:
        table = [[row["image"], row["class"]] for row in csv.DictReader(file)]
    assert len(table) == sum(len(names) for _, names in PHOTOS.values()) == 8
    assert shown() == [table[:3], table[3:6], table[6:]]
    assert "and 2 more linked" in said
    for number, links in ((1, ["index-2.html"]), (2, ["index.html", "index-3.html"]), (3, ["index-2.html"])):
        page = (work / f"review/{PageOf(number).file}").read_text(encoding="utf-8")
        found = re.findall('<a rel="(prev|next)" href="(.*?)"', page)
        assert [href for _, href in found] == links
        assert f'data-file="{("review", "review-2", "review-3")[number - 1]}.json"' in page
    ssr("review", "--work", work, "--top", 4, "--per-page", 3)
    assert shown() == [table[:3], table[3:4]]  # no page of the run before is left


def test_marks_become_corrected_masks(work, ssr):
    image_id, (_, names) = next((i, photo) for i, photo in PHOTOS.items() if len(photo[1]) > 1)
    single = next(i for i, photo in PHOTOS.items() if len(photo[1]) == 1)
    first, second = sorted(names)[:2]
    marks = [(image_id, first, "bad"), (image_id, second, "fix"), (single, PHOTOS[single][1][0], "bad")]
    file, further = work / "review-1.json", work / "review-2.json"
    rows = [{"image": i, "class": name, "mark": mark} for i, name, mark in marks]
    file.write_text(json.dumps([{**rows[0], "mark": "good"}, rows[1]]))
    further.write_text(json.dumps([rows[0], rows[2]]))  # the last file counts
    for given in ((file, further), (work,)):  # once more changes nothing
        ran = ssr("review", "--work", work, *(word for path in given for word in ("--apply", path)))
        assert "0 good, 2 bad, 1 fix; 2 corrected masks" in ran.out
        value = VOC12.names.index(first) + 1
        before, after = pixels(work / f"masks/{image_id}.png"), pixels(work / f"corrected/{image_id}.png")
        assert (after[before == value] == 255).all()
        assert (after[before != value] == before[before != value]).all()
        assert (pixels(work / f"corrected/{single}.png") == 255).all()
        assert (work / "review/fix.txt").read_text() == f"{image_id}\n"
    for rows, words in (
        ([{"image": "x", "class": first, "mark": "bad"}], "no image 'x'"),
        ([1], "expected a list"),
        ({}, "0 bad"),
    ):
        file.write_text(json.dumps(rows))
        ran = ssr("review", "--work", work, "--apply", file, code=0 if rows == {} else 2)
        assert words in ran.out + ran.err
    assert "found no review*.json" in ssr("review", "--work", work, "--apply", work / "masks", code=2).err


def test_what_is_no_longer_bad_is_used_again(work, ssr):
    image_id, (_, names) = next((i, photo) for i, photo in PHOTOS.items() if len(photo[1]) > 1)
    pseudo, corrected = work / f"masks/{image_id}.png", work / f"corrected/{image_id}.png"
    mask, (first, second) = pixels(pseudo), sorted(names)[:2]

    def marked(**marks: str) -> str:
        rows = [{"image": image_id, "class": name, "mark": mark} for name, mark in marks.items()]
        (work / "marks.json").write_text(json.dumps(rows))
        return ssr("review", "--work", work, "--apply", work / "marks.json").out

    marked(**dict.fromkeys(names, "bad"))
    assert (pixels(corrected) == 255).all()
    marked(**{first: "good"})
    left = [VOC12.names.index(name) + 1 for name in names if name != first]
    assert np.array_equal(pixels(corrected), np.where(np.isin(mask, left), 255, mask))
    assert "1 images are as their pseudo-masks again" in marked(**{name: "good" for name in names if name != first})
    assert not corrected.exists()
    edge = mask.copy()
    edge[:2] = 255
    other = mask.copy()
    other[:2] = VOC12.names.index(second) + 1
    for edited in (edge, other):  # of another tool: stays
        write_mask(corrected, edited, palette())
        marked(**{first: "good"})
        assert np.array_equal(pixels(corrected), edited)
    marked(**{first: "bad"})
    assert np.array_equal(pixels(corrected), np.where(other == VOC12.names.index(first) + 1, 255, other))


def test_page_runs_its_own_script_alone():
    page = review_page(NASTY, [Doubtful(NASTY, NASTY, 0.5, (NASTY,), b"jpeg", (3, 2))], {NASTY: NASTY})
    assert re.search(r"script-src 'sha256-([^']+)'", page)[1] == b64encode(sha256(SCRIPT.encode()).digest()).decode()
    assert page.count("<script") == 2
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_clicks_and_keys_in_a_browser(tmp_path):
    """The script that clicks is part of the page, as the browser is not driven from outside."""
    masks = [Doubtful(f"photo {number}", NASTY, number / 3, (), b"", (3, 2)) for number in range(3)]
    page = review_page("t", masks, {}, PageOf(2, 2))
    assert SCRIPT in page
    both = SCRIPT + CLICKS
    page = page.replace(SCRIPT, both).replace(
        b64encode(sha256(SCRIPT.encode()).digest()).decode(), b64encode(sha256(both.encode()).digest()).decode()
    )
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
    ran = subprocess.run([*words, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120, check=True)
    body = re.search(r"<body>(.*?)</body>", ran.stdout, re.DOTALL)[1]
    assert body.startswith("review-2.json[")
    found = json.loads(body.removeprefix("review-2.json").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    # m0: bad, then j g f u, then bad again (off), fix; g moves on to m2, f marks it and stays, u unmarks it
    assert found == [{"image": "photo 0", "class": NASTY, "mark": "fix"}, {"image": "photo 1", "class": NASTY, "mark": "good"}]

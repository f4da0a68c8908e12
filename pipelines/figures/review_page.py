"""HTML pages of masks, the most doubtful first: a click or a key marks one, and the browser saves the marks of a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

from pipelines.figures.page_links import ONLY, PageOf
from pipelines.figures.page_shell import jpeg_image
from pipelines.figures.scripted_page import scripted_page

MARKS = ("good", "bad", "fix")
"""What a mask can be marked as; the first letter is the key."""


@dataclass(frozen=True)
class Doubtful:
    """One class of one mask.

    Attributes:
        image_id: The photo.
        name: The class.
        confidence: From 0 to 1.
        others: Further classes of the photo.
        picture: Photo, mask and map as JPEG.
        size: ``(width, height)`` of the picture.
    """

    image_id: str
    name: str
    confidence: float
    others: tuple[str, ...]
    picture: bytes
    size: tuple[int, int]


def review_page(title: str, masks: Iterable[Doubtful], summary: Mapping[str, str], page: PageOf = ONLY) -> str:
    """Build a page.

    Args:
        title: Head of the page.
        masks: The most doubtful first.
        summary: Facts for the head, name -> value.
        page: Its place among others; each saves its marks under a name of its own.

    Returns:
        HTML. Every text is escaped; the script is the one that the page's policy allows, by its hash.
    """
    found = list(masks)
    names = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in sorted({mask.name for mask in found}))
    rows = [[mask.image_id, mask.name] for mask in found]
    controls = _CONTROLS.replace("NAMES", names).replace("FILE", page.name("review", ".json")) + page.links
    return scripted_page(title, summary, controls, (_article(*row) for row in enumerate(found)), rows, SCRIPT, _STYLE)


def _article(number: int, mask: Doubtful) -> str:
    buttons = "".join(f'<button type="button" value="{mark}"><u>{mark[0]}</u>{mark[1:]}</button>' for mark in MARKS)
    chips = "".join(f"<li>{escape(name)}</li>" for name in mask.others)
    picture = jpeg_image(mask.picture, mask.size, f"{mask.image_id}: {mask.name}")
    return (
        f'<article id="m{number}" tabindex="-1" data-class="{escape(mask.name)}"><header><b>{escape(mask.name)}</b>'
        f"<h2>{escape(mask.image_id)}</h2><ul>{chips}</ul><p>confidence {mask.confidence:.2f}</p>"
        f"<span>{buttons}</span></header><div>{picture}</div></article>"
    )


SCRIPT = """
const rows = JSON.parse(document.getElementById("data").textContent);
const cards = [...document.querySelectorAll("article")];
const marks = new Map();
let current = 0, saved = true;
function mark(number, value) {
  if (value === null || marks.get(number) === value) marks.delete(number);
  else marks.set(number, value);
  cards[number].dataset.mark = marks.get(number) || "";
  saved = false;
  count();
}
function count() {
  for (const value of ["good", "bad", "fix"]) {
    document.getElementById(value).textContent = String([...marks.values()].filter((found) => found === value).length);
  }
}
function show(number, scroll) {
  if (!cards[number]) return;
  if (cards[current]) cards[current].classList.remove("current");
  current = number;
  cards[number].classList.add("current");
  if (scroll) cards[number].scrollIntoView({ block: "center" });
}
function step(by) {
  for (let number = current + by; number >= 0 && number < cards.length; number += by) {
    if (!cards[number].hidden) return show(number, true);
  }
}
function result() {
  const found = [...marks].sort((one, other) => one[0] - other[0]);
  const named = found.map(([number, value]) => ({ image: rows[number][0], class: rows[number][1], mark: value }));
  return JSON.stringify(named, null, 1);
}
function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([result()], { type: "application/json" }));
  link.download = document.getElementById("save").dataset.file;
  link.click();
  saved = true;
}
cards.forEach((card, number) => card.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  show(number, false);
  if (button) mark(number, button.value);
}));
document.getElementById("class").addEventListener("change", (event) => {
  for (const card of cards) card.hidden = event.target.value !== "" && card.dataset.class !== event.target.value;
  show(cards.findIndex((card) => !card.hidden), true);
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "SELECT") return;
  const value = { g: "good", b: "bad", f: "fix", u: null }[event.key];
  if (event.key === "j" || event.key === "ArrowDown") { step(1); event.preventDefault(); }
  else if (event.key === "k" || event.key === "ArrowUp") { step(-1); event.preventDefault(); }
  else if (event.key === "s") save();
  else if (value !== undefined && cards[current]) { mark(current, value); if (value) step(1); }
});
document.getElementById("save").addEventListener("click", save);
window.addEventListener("beforeunload", (event) => { if (!saved) event.preventDefault(); });
show(0, false);
count();
""".strip()

_CONTROLS = """<dl><div><dt>good</dt><dd id="good"></dd></div><div><dt>bad</dt><dd id="bad"></dd></div>
<div><dt>fix</dt><dd id="fix"></dd></div></dl>
<label>class <select id="class"><option value="">all</option>NAMES</select></label>
<button id="save" type="button" data-file="FILE">Save the marks</button>
<small>keys: g b f mark, u unmarks, j k move, s saves</small>"""

_STYLE = """
[hidden] { display: none; }
article.current { outline: 2px solid #4c8dff; }
article[data-mark=good] { border-left: 6px solid #2e9e5b; } article[data-mark=bad] { border-left: 6px solid #d64545; }
article[data-mark=fix] { border-left: 6px solid #d99a1c; }
article[data-mark=good] [value=good] { background: #2e9e5b; color: #fff; }
article[data-mark=bad] [value=bad] { background: #d64545; color: #fff; }
article[data-mark=fix] [value=fix] { background: #d99a1c; color: #fff; }
button, select { font: inherit; padding: .25rem .8rem; border-radius: 8px; border: 1px solid var(--line); cursor: pointer;
  background: var(--card); color: var(--ink); }
article button { margin-left: .3rem; } small { color: var(--muted); } nav a { color: inherit; margin-right: .8rem; }
"""

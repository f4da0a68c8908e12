"""The documentation site builds, its commands and quoted errors are the program's own, and its links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
ALL = [ROOT / "README.md", *PAGES]
ROOT_FLAGS = {"--help", "-h", "--version", "--install-completion", "--show-completion"}
SHELL_WORDS = {"do", "then", "else", "!", "time"}


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def slug(heading: str) -> str:
    """The anchor of a heading, by the rule of MkDocs."""
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        if not found.is_file() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    return broken


def quoted_errors() -> list[str]:
    """First cells of the tables in troubleshooting.md that have the columns "you see" and "cure"."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| you see \| cure \|\n\|[-|]+\|\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    cells = [row.split(" | ")[0].removeprefix("| ") for table in tables for row in table.splitlines()]
    spans = [re.fullmatch(r"(?:`` (.+) ``|`([^`]+)`)(?: in the shell)?", cell) for cell in cells]
    assert all(spans), f"not one code span: {[c for c, s in zip(cells, spans, strict=True) if s is None]}"
    return [s.group(1) or s.group(2) for s in spans if s is not None and not s.string.endswith("in the shell")]


@cache
def sources() -> list[str]:
    """Python files and the Makefile, with implicitly joined string literals joined."""
    files = [path for package in ("pipelines", "ssr_cli") for path in (ROOT / package).rglob("*.py")] + [ROOT / "Makefile"]
    return [
        re.sub(r"[\"']\s*\n\s*f?[\"']", "", path.read_text(encoding="utf-8")).replace("{{}}", "{}") for path in sorted(files)
    ]


def is_said(error: str) -> bool:
    """Whether one source file holds all fixed parts of an error, ``...`` standing for what changes."""
    parts = [part.strip(" ()") for part in error.split("...")]
    return any(all(part in source for part in parts) for source in sources())


def bash_commands(page: Path) -> list[str]:
    """Every ``ssr`` command in a page's bash blocks, continuation lines joined, loops taken apart."""
    commands = []
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if set(word) <= set(";&|"):
                    if words and words[0] == "ssr":
                        commands.append(shlex.join(words))
                    words = []
                elif words or word not in SHELL_WORDS:
                    words.append(word)
    return commands


def check_command(line: str) -> None:
    """Parse a command as ``ssr`` would, without running it; shell variables stand for the number 1."""
    from ssr_cli.app import COMMANDS, LazyCommand

    words = [re.sub(r"\$\{?\w+\}?", "1", word) for word in shlex.split(line)[1:]]
    if words[0].startswith("-"):
        assert set(words) <= ROOT_FLAGS, line
        return
    assert words[0] in COMMANDS, f"no command {words[0]!r}: {line}"
    try:
        LazyCommand(words[0], callback=None, params=[]).load().make_context(words[0], words[1:])
    except Exception as error:  # click's own class, or that of the copy inside typer
        pytest.fail(f"{line}: {error}")


@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="needs MkDocs: pip install 'ssr-wsss[docs]'")
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        assert (tmp_path / "site" / f"{page.stem}.html").is_file()
    html = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    fetched = re.findall(r"<(?:script|img)[^>]+src=\"?(https?:[^\">\s]+)|<link[^>]+href=\"?(https?:[^\">\s]+)", html)
    assert not fetched, "the site fetches from elsewhere"


def test_makefile_lets_warnings_count() -> None:
    builds = re.findall(r"mkdocs build.*", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert builds
    assert all("--strict" in line and not re.search(r"--quiet|\s-q\b", line) for line in builds), "--quiet turns --strict off"


def test_relative_links_resolve() -> None:
    assert {page.name: links for page in ALL if (links := broken_links(page))} == {}


@pytest.mark.parametrize(
    "text", ["[a](absent.md)", "[a](#no-such)", "[a](other.md#no-such)", "![a](images/absent.png)", "[a](folder)"]
)
def test_broken_link_is_found(text: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.md").write_text("# Other\n\n## The [dataset] part, 2 & 3\n")
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n[b](other.md#the-dataset-part-2-3) [c](#page)\n\n```\n[d](absent.md)\n```\n{text}\n")
    assert len(broken_links(page)) == 1


def test_every_picture_is_shown_and_small() -> None:
    pictures = {path.name: path for path in (ROOT / "docs" / "images").iterdir()}
    shown = {Path(name).name for page in ALL for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", prose(page))}
    assert shown == set(pictures)
    assert all(path.stat().st_size < 300_000 for path in pictures.values())


def test_quoted_errors_are_the_programs() -> None:
    errors = quoted_errors()
    assert [error for error in errors if len(re.sub(r"\W", "", error)) < 8] == [], "too little to find anything by"
    assert [error for error in errors if not is_said(error)] == []


def test_made_up_error_is_found() -> None:
    assert len(quoted_errors()) > 50
    assert is_said("... was made with other options (...)")
    assert not is_said("... was made with other opinions (...)")
    assert not is_said("timm has no model ... was made with other options")  # two files' words are not one error


def test_commands_parse() -> None:
    for page in ALL:
        for line in bash_commands(page):
            check_command(line)


def test_configs_and_class_lists_are_accepted(tmp_path: Path) -> None:
    from pipelines.config import build_options, read_config
    from pipelines.datasets.classes import load_class_list

    for page in ALL:
        for block in re.findall(r"^```toml\n(.*?)^```", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE):
            path = tmp_path / f"{page.stem}.toml"
            path.write_text(block, encoding="utf-8")
            if "[[classes]]" in block:
                assert load_class_list(path).background, block
                continue
            values, top = read_config(path)
            assert values or top, block
            for section, entries in values.items():
                build_options(section, entries)


def test_commands_are_taken_apart(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\nsource x; ssr refine --boundary crf && ssr show # ssr no\nfor p in 1 2; do ssr eval masks; done\n"
        '    ssr cams \\\n        --work "$work"\n```\n```toml\nssr = 1\n```\n'
    )
    assert bash_commands(page) == ["ssr refine --boundary crf", "ssr show", "ssr eval masks", "ssr cams --work '$work'"]


@pytest.mark.parametrize(
    "line",
    [
        "ssr polish",
        "ssr refine --polish",
        "ssr refine --power two",
        "ssr cams voc coco",
        "ssr labels a.csv b.csv c.csv",
        "ssr --verbose",
    ],
)
def test_wrong_command_is_found(line: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_command(line)

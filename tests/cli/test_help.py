"""``--help``: every command has one, and the defaults that it shows are those of a run."""

from __future__ import annotations

import re

import pytest

from pipelines.config import SECTIONS, flag_of, read_recipe
from ssr_cli.app import COMMANDS, LazyCommand
from ssr_cli.invocation import Invocation
from ssr_cli.panels import FOUND_IN_THE_FOLDER, MOST_USED
from ssr_cli.parameters import option_of


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(ssr, command):
    out = ssr(command, "--help").out
    assert ssr(command, "-h").out == out
    assert f"ssr {command} " in out
    assert "--debug" in out
    assert "Traceback" not in out


def shown(out: str) -> dict[str, tuple[str, str] | None]:
    """Flag -> who sets its default and what it is, or None, as the help prints them."""
    entries = re.split(r"\n  (?=\S)", re.sub(r"\n\n.*", "", out, flags=re.MULTILINE))
    pairs = ((entry.split()[0].replace("[no-]", ""), " ".join(entry.split())) for entry in entries)
    found = {flag: re.search(r"\[(?:[^][]*; )?([\w-]+): ([^][]*)\]$", text) for flag, text in pairs}
    return {flag: match and (match[1], match[2]) for flag, match in found.items()}


@pytest.mark.parametrize("recipe", ["ssr", "clip-es"])
@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_in_the_help_are_those_of_a_run(ssr, tmp_path, monkeypatch, command, recipe):
    monkeypatch.setenv("COLUMNS", "80")
    out = ssr(command, *(() if recipe == "ssr" else ("--recipe", recipe)), "--help").out
    assert max(map(len, out.splitlines())) <= 80
    said, values = shown(out), read_recipe(recipe)
    for parameter in LazyCommand(command, callback=None, params=[]).load().params:
        if option := option_of(parameter.name):
            section, key = option
            if option in FOUND_IN_THE_FOLDER.get(command, ()):
                assert said[flag_of(section, key)] == ("default", "found in the folder")
                continue
            run = Invocation((section,), {section: {}}, None, tmp_path, recipe, False).options(section, SECTIONS[section])
            value = getattr(run, key)
            words = value if isinstance(value, tuple) else [["off", "on"][value] if isinstance(value, bool) else value]
            source = recipe if key in values.get(section, {}) else "default"
            assert said[flag_of(section, key)] == (None if value in (None, "", {}) else (source, " ".join(map(str, words)))), (
                key
            )


def test_panels_name_options_that_there_are():
    for section, keys in MOST_USED.items():
        assert set(keys) <= SECTIONS[section].model_fields.keys(), section

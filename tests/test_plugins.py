"""Parts from modules outside the package."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pipelines.plugins
from pipelines.errors import SsrError, UsageError
from pipelines.ops.label_map import resize_maps
from pipelines.plugins import VARIABLE, Table, called, table_entry


def numbers(**parts):
    return Table("affinity", int, parts)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Write a module that ``SSR_PLUGINS`` names."""

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv(VARIABLE, name)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


def test_a_known_part_imports_nothing(plugin):
    plugin("not_wanted", "raise AssertionError")
    assert table_entry(numbers(row=1), "row", "--affinity") == 1


@pytest.mark.parametrize(("name", "near"), [("sinkhron", "; did you mean 'sinkhorn'?"), ("z", "")])
def test_an_unknown_part_names_those_there_are(name, near, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UsageError) as caught:
        table_entry(numbers(row=1, sinkhorn=2), name, "--affinity")
    assert caught.value.message == f"--affinity: no affinity {name!r}: expected one of row, sinkhorn{near}"


def test_a_plugin_adds_its_part(plugin, monkeypatch):
    table = numbers(shipped=0)
    monkeypatch.setattr(pipelines.plugins, "A_TABLE", table, raising=False)
    plugin("adds_a_part", "from pipelines.plugins import A_TABLE\nA_TABLE['mine'] = 3\n")
    assert table_entry(table, "mine", "--part") == 3


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("['row'] = 3", "affinity 'row' is in the package already"),
        ("['mine'] = 'x'", "affinity 'mine': expected a int(...), found a str"),
    ],
)
def test_a_plugin_replaces_no_part_and_adds_nothing_else(plugin, monkeypatch, entry, reason):
    table = numbers(row=1)
    monkeypatch.setattr(pipelines.plugins, "A_TABLE", table, raising=False)
    name = f"adds_{len(entry)}"
    plugin(name, f"from pipelines.plugins import A_TABLE\nA_TABLE{entry}\n")
    with pytest.raises(UsageError) as caught:
        table_entry(table, "mine", "--part")
    assert caught.value.message == f"plugin {name!r} of SSR_PLUGINS: {reason}"
    assert table == {"row": 1}


def test_a_plugin_may_change_its_own_part():
    table = numbers(row=1)
    table["mine"] = 2
    table["mine"] = 3  # a notebook's cell that runs again
    assert table_entry(table, "mine", "--part") == 3


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("three\nlines"), "affinity 'mine' raised ValueError: three"),
        (UsageError("no such file", "--it"), "no such file (--it)"),
        (RuntimeError("CUDA out of memory"), "CUDA out of memory"),  # such a batch is made again image by image
    ],
)
def test_an_error_of_a_plugin_names_its_part(error, expected):
    def mine(number):
        raise error

    with pytest.raises(type(error) if isinstance(error, UsageError | RuntimeError) else SsrError) as caught:
        called("affinity 'mine'", mine, 3)
    assert str(caught.value).startswith(expected)


def test_an_error_of_the_package_stays_as_it_is():
    with pytest.raises(TypeError):
        called("affinity 'row'", resize_maps, None, (1, 1))


@pytest.mark.parametrize(
    ("text", "reason"),
    [("import no_such_thing", "ModuleNotFoundError"), ("1 / 0", "ZeroDivisionError"), ("raise SystemExit(3)", "SystemExit")],
)
def test_a_plugin_that_fails(plugin, text, reason):
    plugin(f"fails_{reason.lower()}", text)
    with pytest.raises(UsageError, match=f"cannot import plugin 'fails_{reason.lower()}' of SSR_PLUGINS: {reason}"):
        table_entry(numbers(), "part", "--part")


def test_an_installed_plugin_is_found_by_its_entry_point(tmp_path):
    """In a process of its own: the package data of this one has been read."""
    (tmp_path / "installed.py").write_text("PART = 1\n")
    info = tmp_path / "installed-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ssr.plugins]\nmine = installed\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pipelines.plugins import load_plugins; load_plugins(); assert 'installed' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

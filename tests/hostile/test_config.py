"""Config files that no one should have written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.config import SECTIONS, build_options, read_config
from pipelines.errors import UsageError
from pipelines.method.readouts import READOUTS
from pipelines.plugins import table_entry

NOT_TOML = {
    "deep list": "a = " + "[" * 100_000,
    "deep table": "a = " + "{a = " * 20_000,
    "deep keys": "[" + "a." * 10_000 + "a]\n",
    "number of 5,000 digits": "[refine]\npower = " + "9" * 5_000 + "\n",
    "doubled key": "[cams]\nflip = true\nflip = false\n",
    "doubled section": "[cams]\nflip = true\n[cams]\n",
    "section twice, dotted": "[cams]\nflip = true\n[cams.flip]\n",
    "a day that is none": "[refine]\npower = 2020-99-99\n",
    "null byte": "[cams]\0\n",
    "null character in a path": '[dataset]\nroot = "a\\u0000b"\n',
    "null character in a list": '[cams]\nscales = ["a\\u0000b"]\n',
    "json": '{"cams": {}}',
    "yaml": "cams:\n  flip: true\n",
    "a day": "[refine]\npower = 2020-01-01\n",
    "a time in a list": "[cams]\nscales = [1.0, 12:00:00]\n",
}
WRONG_KEYS = {
    "unknown section": ("[cam]\n", "did you mean 'cams'"),
    "section like no other": ("[zzz]\n", "unknown section [zzz]; expected one of dataset, clip"),
    "unknown key": ("[cams]\nscale = [1]\n", "did you mean 'scales'"),
    "section of two lines": ('["a\\nb"]\n', "unknown section"),
    "section with an escape sequence": ('["\\u001b[2J"]\n', "unknown section"),
    "section of 1 MB": (f"[{'a' * 1_000_000}]\n", "unknown section"),
    "key of 1 MB": (f"[cams]\n{'a' * 1_000_000} = 1\n", "unknown key"),
    "key of two lines": ('[cams]\n"a\\nb" = 1\n', "unknown key"),
    "section as a list": ("[[cams]]\nflip = true\n", "must be a table"),
    "section as 1 MB of text": (f"cams = '{'a' * 1_000_000}'\n", "must be a table"),
    "option outside its section": ("flip = true\n", "unknown section [flip]"),
    "nobody's home": ('[dataset]\nroot = "~no-such-user-here/voc"\n', "home"),
    "truth as a work directory": ("work = true\n", "expected text as `work`, found True"),
    "list as a recipe": ('recipe = ["ssr"]\n', "expected text as `recipe`, found ['ssr']"),
    "work in nobody's home": ('work = "~no-such-user-here"\n', "home"),
    "weights in nobody's home": ('[clip]\npretrained = "~no-such-user-here/a.pt"\n', "home"),
}
VALUES = {
    # name: (section, key, TOML value, flag)
    "text for a number": ("refine", "power", '"two"', "--power"),
    "list for a number": ("refine", "power", "[2]", "--power"),
    "table for a number": ("superpixels", "segments", "{a = 1}", "--segments"),
    "negative": ("superpixels", "segments", "-1", "--segments"),
    "infinite rate": ("align", "learning_rate", "inf", "--learning-rate"),
    "infinite": ("superpixels", "compactness", "-inf", "--compactness"),
    "not a number": ("refine", "dino_weight", "nan", "--dino-weight"),
    "truth for a number": ("superpixels", "segments", "true", "--segments"),
    "fraction for a whole": ("superpixels", "segments", "1.5", "--segments"),
    "1 MB of text": ("align", "resume", f"'{'a' * 1_000_000}'", "--resume"),
    "10,000 scales of nonsense": ("cams", "scales", str(["x"] * 10_000), "--scale"),
    "number for a path": ("dataset", "root", "3", "--root"),
    "number for a name": ("clip", "model", "3", "--clip-model"),
    "number for a kind": ("dataset", "kind", "3", "DATASET"),
    "no scales": ("cams", "scales", "[]", "--scales"),
    "scale of nothing": ("cams", "scales", "[0.0]", "--scales"),
}


@pytest.mark.parametrize("name", NOT_TOML)
def test_what_is_no_toml_is_one_line(tmp_path, one_line, name):
    path = tmp_path / "c.toml"
    path.write_text(NOT_TOML[name])
    assert f"{path} is not valid TOML" in one_line(read_config, path)


@pytest.mark.parametrize("name", WRONG_KEYS)
def test_wrong_keys_are_one_short_line(tmp_path, one_line, name):
    text, message = WRONG_KEYS[name]
    (tmp_path / "c.toml").write_text(text)
    said = one_line(read_config, tmp_path / "c.toml")
    assert message in said
    assert said.isprintable()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_other_encodings(tmp_path, one_line, encoding):
    (tmp_path / "c.toml").write_bytes('[dataset]\nroot = "é"\n'.encode(encoding))
    assert "not valid TOML" in one_line(read_config, tmp_path / "c.toml")


@pytest.mark.parametrize(
    "text", ["\ufeff[cams]\r\nflip = true\r\n", "[cams]\nflip = true" + "\n# x" * 100_000], ids=["bom", "long"]
)
def test_odd_files_that_are_read(tmp_path, text):
    (tmp_path / "c.toml").write_bytes(text.encode())
    assert read_config(tmp_path / "c.toml") == ({"cams": {"flip": True}}, {})


OUT_OF_RANGE = {
    "refine": {
        "power": 0, "dino_weight": 1.5, "min_confidence": -0.1, "boundary": ["crf"], "boundary_background_power": 0,
        "crf_iterations": 0, "crf_scale": 0.05, "par_iterations": 0, "par_scale": 1.5, "par_dilations": [],
    },
    "predict": {"long_side": -1, "par_scale": 0, "crf_bilateral_sxy": 0, "crf_scale": 2},
    "cams": {"dense_scale": 0, "scales": [-1.0]},
    "superpixels": {"segments": 0},
    "run": {"max_failures": -2},
    "show": {"height": 5},
    "align": {"loss": "none", "tokens": 0, "temperature": 0, "batch": 0, "seed": -1, "epochs": "x"},
    "train": {
        "iterations": 0, "batch": 0, "crop": 16, "max_scale": 5, "min_scale": 0, "dropout": 1, "hidden": 4, "learning_rate": 0,
        "seed": -1, "filter_from": -2, "par_dilations": [0], "supervision": "boxes", "filter_difference": "none",
        "par_scale": 2, "gamma": "x",
    },
}  # fmt: skip


@pytest.mark.parametrize(("section", "key"), [(section, key) for section, values in OUT_OF_RANGE.items() for key in values])
def test_values_out_of_range_name_the_flag(one_line, section, key):
    said = one_line(build_options, section, {key: OUT_OF_RANGE[section][key]})
    assert said.startswith(f"--{key.replace('_', '-')}: ")


@pytest.mark.parametrize("name", VALUES)
def test_wrong_values_name_the_flag(tmp_path, one_line, name):
    section, key, value, flag = VALUES[name]
    (tmp_path / "c.toml").write_text(f"[{section}]\n{key} = {value}\n")
    values, _ = read_config(tmp_path / "c.toml")
    assert flag in one_line(build_options, section, values[section])


@pytest.mark.parametrize("name", ["cityscapes", "a" * 1_000_000, "a\nb", "\x1b[2J", ""])
def test_unknown_parts_name_the_flag(one_line, name):
    assert "--readout: no read-out" in one_line(table_entry, READOUTS, name, "--readout")


@pytest.mark.parametrize("value", ["true", "-1", '"x"', "[]", "{}", "1e400"])
@pytest.mark.parametrize("section", SECTIONS)
def test_no_value_is_more_than_one_line(tmp_path, section, value):
    """Every option with a value of every type: it is taken, or refused by name."""
    for key in SECTIONS[section].model_fields:
        (tmp_path / "c.toml").write_text(f"[{section}]\n{key} = {value}\n")
        values, _ = read_config(tmp_path / "c.toml")
        try:
            build_options(section, values[section])
        except UsageError as error:
            assert str(error).isprintable()  # noqa: PT017 - to be taken is as good


@pytest.mark.parametrize(("text", "message"), [
    ("recipe = 4\n", "expected text as `recipe`, found 4"),
    ("recipe = '../../etc/passwd'\n", "no recipe"),
    ("recipe = '" + "a" * 100_000 + "'\n", "no recipe"),
    ("[align]\nlearning_rate = 2020-01-01\n", "date"),
    ("[train]\ncrop = [[[1]]]\n", ""),
    (NOT_TOML["deep list"], "not valid TOML"),
    (WRONG_KEYS["section of two lines"][0], "unknown section"),
], ids=["numbers", "path as a recipe", "long recipe", "date", "later stage's value", "deep", "two lines"])  # fmt: skip
def test_through_the_command_line(refused, ssr, tmp_path, tiny_voc, text, message):
    config = tmp_path / "c.toml"
    config.write_text(f"{text}\n" + ("" if "[" in text[:1] else f"[dataset]\nkind = 'voc'\nroot = '{tiny_voc.root}'\n"))
    words = ("superpixels", "voc", "--root", tiny_voc.root, "--work", tmp_path / "w", "--config", config)
    if not message:  # not this stage's: remembered, and refused by the stage it belongs to
        ssr(*words, "--segments", 12, "--workers", 1)
        assert "--crop" in refused("train", "--work", tmp_path / "w")
        return
    assert message in refused(*words)
    assert not (tmp_path / "w").exists()


def test_a_config_by_a_pipe_is_fine(tmp_path):
    """``--config <(make-config)`` of a shell."""
    read, write = os.pipe()
    os.write(write, b"[cams]\nflip = true\n")
    os.close(write)
    assert read_config(Path(f"/dev/fd/{read}"))[0] == {"cams": {"flip": True}}
    os.close(read)

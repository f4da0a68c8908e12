"""Options: who wins, what is refused, and that flag, config key and help are one."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path

import pytest

from pipelines.config import SECTIONS, build_options, flag_of, read_config, read_recipe, recipes
from pipelines.errors import UsageError
from pipelines.options.sources import DinoOptions
from pipelines.options.stages import RefineOptions
from pipelines.stores.files import write_json
from ssr_cli.app import COMMANDS
from ssr_cli.invocation import Invocation

CLASSES = {"refine": RefineOptions, "dino": DinoOptions}


def toml(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def invocation(
    tmp_path: Path, *, flag=None, config=None, memory=None, recipe=None, section="refine", key="power"
) -> Invocation:
    work = tmp_path / "work"
    if memory is not None:
        work.mkdir()
        write_json(work / "work.json", {section: {key: memory}})
    file = None if config is None else toml(tmp_path / "c.toml", f"[{section}]\n{key} = {config!r}\n".replace("'", '"'))
    flags = {section: {} if flag is None else {key: flag}}
    return Invocation((section,), flags, file, work, recipe, force=False)


@pytest.mark.parametrize(
    ("section", "key", "given", "expected"),
    [
        # flag, config, work.json, recipe -> the first that speaks
        ("refine", "power", {"flag": 7, "config": 8, "recipe": "ssr"}, 7),
        ("refine", "power", {"config": 8, "recipe": "ssr"}, 8),
        ("refine", "power", {"recipe": "ssr"}, read_recipe("ssr")["refine"]["power"]),
        ("refine", "crf_iterations", {"recipe": "ssr"}, RefineOptions().crf_iterations),
        ("dino", "model", {"flag": "a", "config": "b", "memory": "c"}, "a"),
        ("dino", "model", {"config": "b", "memory": "c"}, "b"),
        ("dino", "model", {"memory": "c"}, "c"),
        ("dino", "model", {}, DinoOptions().model),
    ],
)
def test_first_that_speaks_wins(tmp_path, section, key, given, expected):
    options = invocation(tmp_path, section=section, key=key, **given).options(section, CLASSES[section])
    assert getattr(options, key) == expected


@pytest.mark.parametrize("memory", [3, None])
def test_remembered_config_wins_over_recipe(tmp_path, memory):
    (tmp_path / "work").mkdir()
    write_json(tmp_path / "work/work.json", {"config": {"refine": {"power": memory}} if memory else {}})
    options = invocation(tmp_path, recipe="ssr").options("refine", RefineOptions)
    assert options.power == (memory or read_recipe("ssr")["refine"]["power"])


def test_config_that_is_given_replaces_the_remembered_one(tmp_path):
    (tmp_path / "work").mkdir()
    write_json(tmp_path / "work/work.json", {"config": {"refine": {"crf_iterations": 3}}})
    options = invocation(tmp_path, config=9, recipe="ssr").options("refine", RefineOptions)
    assert (options.power, options.crf_iterations) == (9, RefineOptions().crf_iterations)


@pytest.mark.parametrize(
    ("flag", "config", "memory", "expected"),
    [
        ("clip-es", "ssr", "ssr", "clip-es"),
        (None, "clip-es", "ssr", "clip-es"),
        (None, None, "clip-es", "clip-es"),
        (None, None, None, "ssr"),
    ],
)
def test_recipe_is_chosen_like_an_option(tmp_path, flag, config, memory, expected):
    if memory:
        (tmp_path / "work").mkdir()
        write_json(tmp_path / "work/work.json", {"recipe": memory})
    file = toml(tmp_path / "c.toml", f'recipe = "{config}"\n') if config else None
    assert Invocation((), {}, file, tmp_path / "work", flag, force=False).recipe == expected


def test_paths_in_a_config_are_relative_to_its_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    text = """
        work = "runs/a"
        [dataset]
        root = "photos"
        split = "lists/a.txt"
        labels = "/abs/labels.csv"
        [clip]
        pretrained = "w.safetensors"
        text_bank = "../bank.safetensors"
        [dino]
        model = "plain"
        pretrained = "hub"
    """
    values, top = read_config(toml(tmp_path / "sub/c.toml", text))
    folder = tmp_path / "sub"
    assert top == {"work": folder / "runs/a"}
    assert values["dataset"] == {"root": folder / "photos", "split": folder / "lists/a.txt", "labels": Path("/abs/labels.csv")}
    assert values["clip"] == {"pretrained": folder / "w.safetensors", "text_bank": folder / "../bank.safetensors"}
    assert values["dino"] == {"model": "plain", "pretrained": "hub"}
    assert build_options("dataset", values["dataset"]).split == str(folder / "lists/a.txt")


def test_split_name_and_tag_are_no_paths(tmp_path):
    values, _ = read_config(toml(tmp_path / "c.toml", '[dataset]\nsplit = "train_aug"\n[clip]\npretrained = "openai"\n'))
    assert values == {"dataset": {"split": "train_aug"}, "clip": {"pretrained": "openai"}}


def test_a_config_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UsageError, match="cannot read config"):
            read_config(path)


@pytest.mark.parametrize("name", recipes())
def test_recipes_set_known_keys_to_good_values(name):
    recipe = read_recipe(name)
    for section, entries in recipe.items():
        options = build_options(section, entries)
        assert options.model_dump(mode="json", include=set(entries)) == entries


def test_clip_es_recipe_is_that_of_the_paper():
    options = RefineOptions(**read_recipe("clip-es")["refine"])
    assert (options.clip_blocks, options.dino_weight, options.affinity, options.sinkhorn_rounds) == (8, 0, "sinkhorn", 3)
    assert (options.symmetrise, options.power, options.box_mask, options.box_threshold) == (True, 2, True, 0.4)
    assert options.superpixel_mask == "none"


def test_unknown_recipe_says_which_there_are():
    with pytest.raises(UsageError, match=r"no recipe 'srr'.*clip-es,.* ssr"):
        read_recipe("srr")
    with pytest.raises(UsageError):
        read_recipe("../recipes/ssr")


def test_every_option_is_described_in_one_line():
    fields = {f"[{section}] {key}": field for section, model in SECTIONS.items() for key, field in model.model_fields.items()}
    assert [name for name, field in fields.items() if not field.description or "\n" in field.description] == []


def _flags_of(command: str) -> list[str]:
    import typer

    module = importlib.import_module(f"ssr_cli.commands.{command}")
    app = typer.Typer(add_completion=False)
    app.command()(module.command)
    return [flag for parameter in typer.main.get_command(app).params for flag in (*parameter.opts, *parameter.secondary_opts)]


def test_flags_are_unique():
    doubled = {name: [flag for flag, count in Counter(_flags_of(name)).items() if count > 1] for name in COMMANDS}
    assert not any(doubled.values()), doubled


STAGE_FLAGS = {
    "superpixels": ("dataset", "run", "superpixels"),
    "cams": ("dataset", "clip", "run", "cams"),
    "refine": ("dataset", "clip", "dino", "run", "refine"),
    "align": ("dataset", "clip", "dino", "run", "align"),
    "train": ("dataset", "clip", "dino", "run", "train"),
    "eval": ("dataset", "run", "eval"),
    "show": ("dataset", "run", "show"),
}


def test_every_config_key_has_its_flag():
    for command, sections in STAGE_FLAGS.items():
        expected = {flag_of(section, key) for section in sections for key in SECTIONS[section].model_fields}
        expected = {flag for flag in expected if flag.startswith("--")}
        switches = {flag_of(s, k) for s in sections for k, f in SECTIONS[s].model_fields.items() if isinstance(f.default, bool)}
        expected |= {f"--no-{flag[2:]}" for flag in switches if flag not in {"--force", "--debug"}}
        expected |= {"--config", "--work", "--recipe", "--force", "--debug"}
        assert expected - set(_flags_of(command)) == set(), command


def test_brackets_of_an_option_text_reach_the_reader(ssr):
    assert "as [refine] says" in " ".join(ssr("align", "--help").out.split())

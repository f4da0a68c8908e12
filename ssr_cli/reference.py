"""Option reference of the docs, generated from the option classes: ``python -m ssr_cli.reference > docs/options.md``."""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin

from pipelines.config import SECTIONS, choices_of, flag_of, read_recipe, recipes

HEAD = """# Options

This page lists every option with its config key, flag, type and default; `ssr COMMAND --help` has the same texts.
`python -m ssr_cli.reference` writes it.

The first of these that sets a value wins: flag, config file (`--config FILE.toml`), work directory (its `[dataset]`, `[clip]`,
`[dino]` and its last config), recipe, default. Each option is a key of its section in the config file. Paths in a config file
are relative to the folder of the file. The keys `work` and `recipe` may stand above the sections.
"""


def reference() -> str:
    """The whole page as Markdown."""
    names = recipes()
    set_by = {name: read_recipe(name) for name in names}
    parts = [HEAD]
    for section, options in SECTIONS.items():
        shown = [name for name in names if section in set_by[name]]
        columns = ["key", "flag", "type", "default", *shown]
        summary = (options.__doc__ or "").split(": ", 1)[-1].splitlines()[0]
        parts.append(f"\n## [{section}]\n\n{summary[0].upper()}{summary[1:]}\n")
        parts.append(f"| {' | '.join(columns)} | |\n|{'---|' * (len(columns) + 1)}")
        for key, field in options.model_fields.items():
            recipe_values = [_value(set_by[name][section].get(key, "")) for name in shown]
            cells = [
                f"`{key}`",
                f"`{flag_of(section, key)}`",
                ", ".join(choices_of(section, key)) or _type(field.annotation),
                _value(field.get_default(call_default_factory=True)),
                *recipe_values,
            ]
            parts.append(f"| {' | '.join(cells)} | {field.description} |")
    return "\n".join(parts)


def _type(annotation: Any) -> str:
    arguments = [a for a in get_args(annotation) if a is not type(None)]
    if get_origin(annotation) is dict:
        return "table"
    if get_origin(annotation) is tuple:
        item = get_args(arguments[0])[0] if get_origin(arguments[0]) is Annotated else arguments[0]
        return f"list of {item.__name__}"
    if arguments and isinstance(arguments[0], str):
        return ", ".join(arguments)
    kind = arguments[0] if arguments else annotation
    return str(kind.__name__).lower()


def _value(value: Any) -> str:
    if value in (None, "", {}):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, tuple) else f"{value}"


if __name__ == "__main__":
    print(reference())

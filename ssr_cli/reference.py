"""The option reference of the docs, written from the options themselves: ``python -m ssr_cli.reference > docs/options.md``."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pipelines.config import SECTIONS, choices_of, flag_of, read_recipe, recipes

HEAD = """# Options

Written by `python -m ssr_cli.reference`; `ssr COMMAND --help` says the same.

A flag wins over the config file (`--config FILE.toml`), which wins over what the work directory remembers
(`[dataset]`, `[clip]`, `[dino]`), the recipe and the default. Each option is a key of its section in the config file.
Paths in a config file are relative to the file's folder. Above the sections, `work` and `recipe` may stand.
"""


def reference() -> str:
    """The whole page, Markdown."""
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
                _value(field.default),
                *recipe_values,
            ]
            parts.append(f"| {' | '.join(cells)} | {field.description} |")
    return "\n".join(parts)


def _type(annotation: Any) -> str:
    arguments = [a for a in get_args(annotation) if a is not type(None)]
    if get_origin(annotation) is tuple:
        return f"list of {arguments[0].__name__}"
    if arguments and isinstance(arguments[0], str):
        return ", ".join(arguments)
    found = arguments[0] if arguments else annotation
    return str(found.__name__).lower()


def _value(value: Any) -> str:
    if value in (None, ""):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, tuple) else f"{value}"


if __name__ == "__main__":
    print(reference())

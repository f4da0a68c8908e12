"""What all HTML pages share: head, look and policy. Nothing is loaded from outside, so that a page can be mailed or kept."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping
from html import escape
from string import Template


def page_shell(  # noqa: PLR0913 - one for each slot of the template
    title: str,
    summary: Mapping[str, str],
    articles: Iterable[str],
    *,
    count: str = "",
    controls: str = "",
    style: str = "",
    policy: str = "",
    scripts: str = "",
) -> str:
    """Build a page.

    Args:
        title: Head of the page.
        summary: Facts for the head, name -> value.
        articles: HTML of the page's body.
        count: Text beside the title.
        controls: HTML behind the facts.
        style: CSS after that of all pages.
        policy: What the page may do beside showing its own pictures and style, as its policy has it.
        scripts: HTML behind the body.

    Returns:
        HTML; title, summary and count are escaped.
    """
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in summary.items())
    return _PAGE.substitute(
        title=escape(title),
        count=f"<small>{escape(count)}</small>" if count else "",
        facts=facts,
        controls=controls,
        articles="\n".join(articles),
        style=_STYLE + style,
        policy=policy,
        scripts=scripts,
    )


def jpeg_image(data: bytes, size: tuple[int, int], alt: str) -> str:
    """An ``<img>`` with the picture inside.

    Args:
        data: JPEG.
        size: ``(width, height)``.
        alt: What is seen.
    """
    source = f"data:image/jpeg;base64,{b64encode(data).decode()}"
    return f'<img src="{source}" width="{size[0]}" height="{size[1]}" alt="{escape(alt)}">'


_STYLE = """
:root { color-scheme: light dark; --ground: #f4f5f7; --card: #fff; --ink: #1c1f24; --muted: #69707d; --line: #dfe2e7; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #121418; --card: #1b1e24; --ink: #e8eaee; --muted: #969eac; --line: #2c313a; }
}
* { box-sizing: border-box; margin: 0; }
html { scroll-padding-top: 6rem; }
body { background: var(--ground); color: var(--ink); font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
body > header { position: sticky; top: 0; z-index: 1; background: var(--card); border-bottom: 1px solid var(--line);
  padding: .7rem 1.5rem; display: flex; flex-wrap: wrap; gap: .3rem 2.2rem; align-items: center; }
h1 { font-size: 1.2rem; letter-spacing: -.01em; }
h1 small { color: var(--muted); font-weight: 400; font-size: .85rem; margin-left: .6rem; }
dl { display: flex; flex-wrap: wrap; gap: .2rem 1.8rem; }
dt { color: var(--muted); font-size: .68rem; text-transform: uppercase; letter-spacing: .06em; }
dd { font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
main { display: grid; gap: 1rem; padding: 1.2rem 1.5rem 3rem; justify-items: start; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; max-width: 100%; }
article:target { outline: 2px solid #4c8dff; }
article header { display: flex; flex-wrap: wrap; gap: .2rem .9rem; align-items: center; padding: .55rem .9rem; }
h2 { font: 600 .9rem ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
ul { display: flex; flex-wrap: wrap; gap: .3rem; list-style: none; padding: 0; }
li { border: 1px solid var(--line); border-radius: 99px; padding: .05rem .6rem; font-size: .8rem; }
li i { display: inline-block; width: .65rem; height: .65rem; border-radius: 3px; margin-right: .4rem;
  box-shadow: 0 0 0 1px var(--line); }
article p { color: var(--muted); font-size: .85rem; margin-left: auto; font-variant-numeric: tabular-nums; }
article div { overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1.1rem 1.1rem;
  max-width: 100%; }
section h2 { font: 600 1rem system-ui, sans-serif; margin-bottom: .5rem; }
section div { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; align-items: flex-start; margin-bottom: .8rem; }
section img { max-width: min(44rem, 100%); }
section p { color: var(--muted); font-size: .85rem; margin-bottom: .6rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; font-size: .68rem; text-transform: uppercase; letter-spacing: .06em; color: var(--muted); }
th, td { padding: .18rem .9rem .18rem 0; } td.n, th.n { text-align: right; }
td.bar { width: 22rem; padding-right: 0; } td.bar i { display: block; height: .8rem; border-radius: 3px; background: #4c8dff; }
details summary { cursor: pointer; color: var(--muted); font-size: .85rem; } details[open] summary { margin-bottom: .6rem; }
@media (min-width: 120rem) { main { grid-template-columns: 1fr 1fr; align-items: start; } }
@media (max-width: 50rem) { body > header { position: static; } img { max-width: none; width: auto; height: 11rem; } }
@media print { body > header { position: static; } article { break-inside: avoid; } }
""".strip()

_PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'$policy">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<header><h1>$title$count</h1><dl>$facts</dl>$controls</header>
<main>
$articles
</main>
$scripts</body>
</html>
"""
)

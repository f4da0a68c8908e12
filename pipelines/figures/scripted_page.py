"""The shell of an HTML page with one script of its own: it reaches nothing outside, can be mailed, and opened from disk."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from html import escape
from string import Template
from typing import Any

from pipelines.figures.page import STYLE


def scripted_page(
    title: str, summary: Mapping[str, str], controls: str, articles: Iterable[str], data: Any, script: str, style: str
) -> str:
    """Build the page.

    Args:
        title: Head of the page.
        summary: Facts for the head, name -> value.
        controls: HTML behind the facts.
        articles: HTML of the page's body.
        data: What the script reads, as JSON, in the element ``data``.
        script: Runs when the page is there; nothing else can, as the page's policy names its hash.
        style: CSS after that of all pages.

    Returns:
        HTML; title, summary and data are escaped.
    """
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in summary.items())
    return _PAGE.substitute(
        title=escape(title),
        facts=facts,
        controls=controls,
        articles="\n".join(articles),
        style=STYLE + style,
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        script=script,
        hash=b64encode(sha256(script.encode()).digest()).decode(),
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


_PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-$hash'">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<header><h1>$title</h1><dl>$facts</dl>
$controls</header>
<main>
$articles
</main>
<script type="application/json" id="data">$data</script>
<script>$script</script>
</body>
</html>
"""
)

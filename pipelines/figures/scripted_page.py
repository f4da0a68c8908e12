"""An HTML page with one script of its own: it reaches nothing outside, can be mailed, and opened from disk."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from pipelines.figures.page_shell import page_shell


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
    policy = b64encode(sha256(script.encode()).digest()).decode()
    rows = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    scripts = f'<script type="application/json" id="data">{rows}</script>\n<script>{script}</script>\n'
    return page_shell(
        title, summary, articles, controls=controls, style=style, policy=f"; script-src 'sha256-{policy}'", scripts=scripts
    )

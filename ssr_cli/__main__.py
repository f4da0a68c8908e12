"""``python -m ssr_cli``: the command ``ssr`` where it is not on the path."""

from __future__ import annotations

from ssr_cli.app import main

if __name__ == "__main__":
    main()

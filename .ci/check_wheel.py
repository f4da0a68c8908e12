"""What a wheel must hold and what it must not: ``python .ci/check_wheel.py build/dist/ssr_wsss-*.whl``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipelines", "ssr_cli")


def difference(wheel: Path) -> list[str]:
    """One line for each file of the two packages that the wheel lacks, and for each file that is no part of them."""
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    tracked = set(listed.splitlines())
    return [f"missing: {name}" for name in sorted(tracked - packed)] + [
        f"not ours: {name}" for name in sorted(packed - tracked)
    ]


if __name__ == "__main__":
    found = difference(Path(sys.argv[1]))
    sys.exit("\n".join(found) or None)

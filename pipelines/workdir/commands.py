"""Commands in messages: they run as they are printed."""

from __future__ import annotations

import shlex
from pathlib import Path


def command_for(work: Path, command: str) -> str:
    """A command on a work directory, quoted for a shell: ``ssr cams --work 'runs/my photos'``.

    Args:
        work: The directory, which remembers dataset, encoders and config.
        command: ``ssr`` and what follows.
    """
    return f"{command} --work {shlex.quote(str(work))}"

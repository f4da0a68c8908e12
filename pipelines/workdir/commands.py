"""Commands in messages, which can be run as they are printed."""

from __future__ import annotations

import shlex
from pathlib import Path


def command_for(work: Path, command: str) -> str:
    """Return a command on a work directory, quoted for a shell: ``ssr cams --work 'runs/my photos'``.

    Args:
        work: The directory, which stores dataset, encoders and config.
        command: ``ssr`` with its command and arguments.
    """
    return f"{command} --work {shlex.quote(str(work))}"

"""What an output was made from, and whether that was made again since."""

from __future__ import annotations

from pathlib import Path

from pipelines.stores.files import file_sha256
from pipelines.stores.manifest import read_manifest
from pipelines.workdir.workspace import HEADS_FILE

INPUTS = {"cams": ("superpixels",), "refined": ("superpixels", "cams"), "masks": ("refined",)}
"""The stores that an output may be made from; its manifest has the digests of those that it was."""

_MAKES = {"ssr cams": "cams", "ssr refine": "refined"}


def older_inputs(work: Path, name: str) -> tuple[str, ...]:
    """Return the inputs of an output that were made again with other options after it.

    Args:
        work: The work directory.
        name: ``cams``, ``refined`` or ``masks``; others have no such inputs.

    Raises:
        UsageError: A file is not a manifest.
    """
    made = read_manifest(work / name)
    if made is None:
        return ()
    present = {one: read_manifest(work / one) for one in INPUTS.get(name, ()) if made.settings.get(one)}
    return tuple(one for one, now in present.items() if now is not None and now.options_digest != made.settings[one])


def runnable(work: Path, command: str) -> str:
    """Return a command with ``--force`` if it is refused without, because its inputs were made again after its output.

    Args:
        work: The work directory.
        command: ``ssr`` with its command and arguments.
    """
    name = _MAKES.get(" ".join(command.split()[:2]))
    if name is None or "--force" in command.split():
        return command
    old = bool(older_inputs(work, name))
    heads = work / HEADS_FILE
    if "--ckpt auto" in command and heads.is_file() and (made := read_manifest(work / name)) is not None:
        old |= (made.settings.get("ckpt") or {}).get("sha256") != file_sha256(heads)
    return f"{command} --force" if old else command

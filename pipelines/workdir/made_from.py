"""What an output was made from, whether that was made again since, and the command that follows from it."""

from __future__ import annotations

import shlex
from pathlib import Path

from pipelines.options.stages import RefineOptions
from pipelines.stores.files import file_sha256
from pipelines.stores.manifest import read_manifest
from pipelines.workdir.workspace import HEADS_FILE, Workspace

INPUTS = {"cams": ("superpixels",), "refined": ("superpixels", "cams"), "masks": ("refined",)}
"""The stores that an output may be made from; its manifest has the digests of those that it was."""

_MAKES = {"ssr cams": ("cams",), "ssr refine": ("refined", "masks")}


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
    names = _MAKES.get(" ".join(command.split()[:2]), ())
    if "--force" in command.split():
        return command
    old = any(older_inputs(work, name) for name in names)
    heads = work / HEADS_FILE
    if "cams" in names and "--ckpt auto" in command and heads.is_file() and (made := read_manifest(work / "cams")) is not None:
        old |= (made.settings.get("ckpt") or {}).get("sha256") != file_sha256(heads)
    return f"{command} --force" if old else command


def masks_again(folder: Path, workspace: Workspace, options: RefineOptions) -> str | None:
    """Return the command that makes the pseudo-masks of the images again with a model's probabilities.

    Args:
        folder: Folder of the model's label maps, beside which the store of probabilities is.
        workspace: Where the masks are.
        options: What `ssr refine` takes without flags.

    Returns:
        The command, or None: there are no masks of these images, they are made with these probabilities, or they are made with
        flags that the command would have to repeat.
    """
    of_model, of_refined, of_masks = (read_manifest(path) for path in (folder, workspace.refined, workspace.masks))
    if of_model is None or of_refined is None or of_masks is None:
        return None
    made = of_refined.settings | of_masks.settings
    same_images = (of_model.dataset or {}).get("digest") == (of_masks.dataset or {}).get("digest")
    if not same_images or made.get("probabilities") == of_model.options_digest:
        return None
    others = options.model_dump(mode="json", exclude={"boundary", "probabilities", "probability_weight"})
    if any(made.get(key, value) != value for key, value in others.items()):
        return None
    store = "auto" if folder.parent == workspace.predictions else shlex.quote(str(folder.with_suffix(".h5")))
    return f"ssr refine --probabilities {store} --boundary {shlex.quote(str(made['boundary']))} --force"

"""Released weights: the folder that may hold their files, their place on the hub, and the message if both lack them."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants, get_session, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError

from pipelines.errors import SsrError

if TYPE_CHECKING:
    from timm.models import PretrainedCfg
    from torch import nn

FOLDER = "SSR_WEIGHTS"
"""Environment variable that names the weights folder."""

ANSWER_WITHIN = 5.0
"""Seconds to wait for the hub's first answer; its library would try six times and take half a minute for each file."""


def weights_folder() -> Path:
    """Return ``$SSR_WEIGHTS``, or ``~/.cache/ssr/weights``; it need not exist."""
    return Path(os.environ.get(FOLDER) or "~/.cache/ssr/weights").expanduser().absolute()


def first_line(error: Exception) -> str:
    """Return an error's first line, short enough for a message of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


@dataclass(frozen=True)
class Release:
    """Weights that a library has under a name.

    Attributes:
        what: Description, such as ``CLIP ViT-B-16-quickgelu / openai``.
        place: File in the weights folder, which need not exist.
        flag: Flag that takes a file instead.
        repo: Hub id, such as ``timm/vit_small_patch16_224.dino``; empty if they are not on the hub.
        revision: Revision of the hub id, None for its main branch.
        files: Names that the file may have there, the preferred one first.
        skeleton: Builds the model on the meta device, without memory for its weights.
    """

    what: str
    place: Path
    flag: str
    repo: str
    revision: str | None
    files: tuple[str, ...]
    skeleton: Callable[[], nn.Module]

    def fetch(self) -> Path | None:
        """Return the file in the hub's cache, downloaded if necessary; if the hub does not answer, this fails in seconds.

        Returns:
            Path of the file, so that libraries load it without a request to the hub; None if it is not on the hub.

        Raises:
            SsrError: The cache lacks the file and it cannot be downloaded; the message gives its name, size and place.
        """
        if not self.repo:
            return None
        if cached := self.cached():
            return cached
        error = self._silence()
        for file in () if error else sorted(self.files, key=lambda name: not name.endswith(".safetensors")):
            try:
                return Path(hf_hub_download(self.repo, file, revision=self.revision))
            except EntryNotFoundError as absent:
                error = absent
            except Exception as failure:  # huggingface_hub raises many network types
                error = failure
                break
        raise self.unavailable(error or FileNotFoundError("the hub names no file")) from error

    def unavailable(self, error: Exception) -> SsrError:
        """Return the error that names the file to bring and its place."""
        size = self._megabytes()
        file = (self.files[0] if self.files else "the file") + (f" ({size} MB)" if size else "")
        bring = f"bring {file} of {self.repo}" if self.repo else "bring its weights"
        put = f" and put it at {self.place}, or" if self.files and self.files[0].endswith(".safetensors") else " and"
        return SsrError(f"cannot fetch {self.what}: {first_line(error)}; {bring}{put} give {self.flag} FILE")

    def cached(self) -> Path | None:
        """Return the path of the file in the hub's cache, None if it is not there."""
        found = (try_to_load_from_cache(self.repo, file, revision=self.revision) for file in self.files if self.repo)
        return next((Path(path) for path in found if isinstance(path, str)), None)

    def _silence(self) -> Exception | None:
        """Return the error if the hub does not answer, None if it gives any answer."""
        if constants.HF_HUB_OFFLINE:
            return OSError("HF_HUB_OFFLINE is set")
        try:
            get_session().head(hf_hub_url(self.repo, self.files[0], revision=self.revision), timeout=ANSWER_WITHIN)
        except Exception as error:  # no network, no such name, no proxy
            return error
        return None

    def _megabytes(self) -> int | None:
        import torch

        logger = logging.getLogger()
        before = logger.level
        logger.setLevel(logging.ERROR)  # hides open_clip's warning of random weights
        try:
            with torch.device("meta"):
                return math.ceil(4e-6 * sum(parameter.numel() for parameter in self.skeleton().parameters()))
        except Exception:  # a part of the model itself is on the hub
            return None
        finally:
            logger.setLevel(before)


def clip_release(model: str, tag: str) -> Release:
    """Return open_clip's release of ``model`` / ``tag``."""
    import open_clip

    released = str(open_clip.get_pretrained_cfg(model, tag).get("hf_hub") or "")
    repo, _, file = released.rpartition("/")
    return Release(
        what=f"CLIP {model} / {tag}",
        place=place_of(f"{model}.{tag}"),
        flag="--clip-pretrained",
        repo=repo,
        revision=None,
        files=_files(file, ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")),
        skeleton=lambda: open_clip.create_model(model, pretrained=None, load_weights=False, device="meta"),
    )


def dino_known(model: str) -> PretrainedCfg:
    """Return timm's entry for a model's weights; it is empty if there is none."""
    import timm
    from timm.models import PretrainedCfg

    try:
        return timm.get_pretrained_cfg(model) or PretrainedCfg()
    except RuntimeError:  # no such tag
        return PretrainedCfg()


def dino_release(model: str) -> Release:
    """Return timm's release of ``model``."""
    import timm

    known = dino_known(model)
    repo, _, revision = (known.hf_hub_id or "").partition("@")
    return Release(
        what=f"DINO {model}",
        place=place_of(model),
        flag="--dino-pretrained",
        repo=repo,
        revision=revision or None,
        files=_files(known.hf_hub_filename or "", ("model.safetensors", "pytorch_model.bin")),
        skeleton=lambda: timm.create_model(model, num_classes=known.num_classes),
    )


def place_of(name: str) -> Path:
    """Return the path in the weights folder for released weights of a name."""
    return weights_folder() / f"{name.replace('/', '-')}.safetensors"  # open_clip accepts ViT-B/16 too


def _files(named: str, usual: tuple[str, ...]) -> tuple[str, ...]:
    if not named:
        return usual
    return (named, str(Path(named).with_suffix(".safetensors"))) if named.endswith(".bin") else (named,)

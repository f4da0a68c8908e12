"""Released weights: the folder in which a file of them may lie ready, their place on the hub, and what to bring without it."""

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
"""Seconds that the hub has for its first answer; its library would try six times and take half a minute a file."""


def weights_folder() -> Path:
    """``$SSR_WEIGHTS``, or ``~/.cache/ssr/weights``; it need not exist."""
    return Path(os.environ.get(FOLDER) or "~/.cache/ssr/weights").expanduser().absolute()


def first_line(error: Exception) -> str:
    """What an error says, short enough for a message of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


@dataclass(frozen=True)
class Release:
    """Weights that a library knows by name.

    Attributes:
        what: What they are, such as ``CLIP ViT-B-16-quickgelu / openai``.
        place: Where the weights folder may hold them.
        flag: Flag that takes a file instead.
        repo: Hub id, such as ``timm/vit_small_patch16_224.dino``; empty if they are not on the hub.
        revision: Of the hub id, None for its main branch.
        files: Names that they may have there, the one to bring first.
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
        """Have the file in the hub's cache, downloaded if need be; without an answer of the hub this fails in seconds.

        Returns:
            Where it is, so that libraries load it without asking the hub; None if it is not on the hub.

        Raises:
            SsrError: Neither in the cache nor to be had; the message names the file, its size and its place.
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
            except Exception as failure:  # huggingface_hub raises a dozen network types
                error = failure
                break
        raise self.unavailable(error or FileNotFoundError("the hub names no file")) from error

    def unavailable(self, error: Exception) -> SsrError:
        """The error that says what to bring, and where to."""
        size = self._megabytes()
        file = (self.files[0] if self.files else "the file") + (f" ({size} MB)" if size else "")
        bring = f"bring {file} of {self.repo}" if self.repo else "bring its weights"
        put = f" and put it at {self.place}, or" if self.files and self.files[0].endswith(".safetensors") else " and"
        return SsrError(f"cannot fetch {self.what}: {first_line(error)}; {bring}{put} give {self.flag} FILE")

    def cached(self) -> Path | None:
        """Where the file is in the hub's cache, None if it is not there."""
        found = (try_to_load_from_cache(self.repo, file, revision=self.revision) for file in self.files if self.repo)
        return next((Path(path) for path in found if isinstance(path, str)), None)

    def _silence(self) -> Exception | None:
        """Why the hub does not answer, None if it does, whatever it says."""
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
        logger.setLevel(logging.ERROR)  # open_clip warns of random weights
        try:
            with torch.device("meta"):
                return math.ceil(4e-6 * sum(parameter.numel() for parameter in self.skeleton().parameters()))
        except Exception:  # a part of the model is itself on the hub
            return None
        finally:
            logger.setLevel(before)


def clip_release(model: str, tag: str) -> Release:
    """What open_clip knows as ``model`` / ``tag``."""
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
    """What timm knows of a model's weights; an empty entry if nothing."""
    import timm
    from timm.models import PretrainedCfg

    try:
        return timm.get_pretrained_cfg(model) or PretrainedCfg()
    except RuntimeError:  # no such tag
        return PretrainedCfg()


def dino_release(model: str) -> Release:
    """What timm knows as ``model``."""
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
    """Where the weights folder may hold released weights of a name."""
    return weights_folder() / f"{name.replace('/', '-')}.safetensors"  # open_clip takes ViT-B/16 too


def _files(named: str, usual: tuple[str, ...]) -> tuple[str, ...]:
    if not named:
        return usual
    return (named, str(Path(named).with_suffix(".safetensors"))) if named.endswith(".bin") else (named,)

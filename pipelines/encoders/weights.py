"""Sources of frozen weights: a given file, the weights folder, the library's cache and the hub, in this order.

A file is identified by its SHA-256, which every manifest records.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from pipelines.encoders.model_config import (
    TimmModel,
    cannot_build,
    clip_name,
    dino_architecture,
    is_config_file,
    read_clip_config,
    read_dino_config,
)
from pipelines.encoders.state import WithoutRandomWeights, load_state, read_state
from pipelines.encoders.weights_folder import Release, clip_release, dino_known, dino_release, first_line, place_of
from pipelines.encoders.wrapping import unwrapped
from pipelines.errors import UsageError
from pipelines.stores.files import file_sha256

if TYPE_CHECKING:
    from open_clip import CLIP
    from torch import nn

OPENAI_LOGIT_SCALE = 100.0
"""exp(logit_scale) of every released CLIP, the limit in their training. It is used for files of the image tower alone."""

# SHA-256 of `visual.class_embedding` (fp16 bytes) of released towers that were trained with QuickGELU.
_QUICK_GELU_TOWERS = {
    "48f61989319f64dd9ad133d0b904de2736297aa691e7729c4f70747cce24f67d": "OpenAI's CLIP ViT-B/16",
}


@dataclass(frozen=True)
class Weights:
    """A model name and the place of its weights.

    Attributes:
        model: open_clip or timm model name.
        pretrained: Tag, or the path as the user gave it.
        path: Local file, given or found in the weights folder; None if the library loads it from its cache or the hub.
        sha256: Checksum of the local file, or None.
        config_sha256: Checksum of the file that describes the model, or None.
    """

    model: str
    pretrained: str
    path: Path | None = None
    sha256: str | None = None
    config_sha256: str | None = None

    @property
    def name(self) -> str:
        """The model's name: as given, or the name of the file that describes it."""
        return Path(self.model).stem if is_config_file(self.model) else self.model

    def provenance(self) -> dict[str, str]:
        """Return the record for a manifest: the name, and the checksum or the tag (never a path)."""
        found = {"model": self.name, "weights": f"sha256:{self.sha256}" if self.sha256 else self.pretrained}
        return found | ({"config": f"sha256:{self.config_sha256}"} if self.config_sha256 else {})


def _is_file_name(pretrained: str) -> bool:
    return Path(pretrained).suffix in {".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".jit"} or "/" in pretrained


def _local(model: str, pretrained: str, flag: str) -> Weights:
    path = Path(pretrained).expanduser()
    if not path.is_file():
        raise UsageError(f"no weights at {path}", f"give an existing .safetensors with {flag}")
    config = file_sha256(Path(model).expanduser()) if is_config_file(model) else None
    return Weights(model, pretrained, path, file_sha256(path), config)


def _released(model: str, pretrained: str, place: Path) -> Weights:
    if place.is_file():
        return Weights(model, pretrained, place, file_sha256(place))
    return Weights(model, pretrained)


def resolve_clip(model: str, pretrained: str) -> Weights:
    """Find by name or by file which weights a CLIP has; `fetch_clip` and `build_clip` check that the library has them.

    A manifest needs no more, and the import of open_clip and timm takes longer than the answer of a finished stage.

    Args:
        model: Name known to open_clip, such as ``ViT-B-16-quickgelu``, or a ``.json`` of open_clip's form.
        pretrained: Tag known to open_clip, or a local ``.safetensors`` / ``.pt`` file (with text banks, the image tower alone
            is enough).

    Raises:
        UsageError: The file is missing, or the ``.json`` is no such config.
    """
    if is_config_file(model):
        read_clip_config(model)
    if _is_file_name(pretrained):
        return _local(model, pretrained, "--clip-pretrained")
    return _released(model, pretrained, place_of(f"{model}.{pretrained}"))


def check_clip(weights: Weights) -> str:
    """Return the name from which open_clip builds a CLIP.

    Raises:
        UsageError: The model or tag is unknown, or the tag was trained with another activation than the model's.
    """
    import open_clip

    name, model, pretrained = clip_name(weights.model), weights.model, weights.pretrained
    if _is_file_name(pretrained):
        return name
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if not tag:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise UsageError(f"open_clip has no weights {pretrained!r} for {model} (it has: {known})", "--clip-pretrained")
    quick = bool((open_clip.get_model_config(name) or {}).get("quick_gelu"))
    _check_activation(model, quick, bool(tag.get("quick_gelu")), f"tag {pretrained!r}")
    return name


def fetch_clip(weights: Weights) -> None:
    """Download released weights to the hub's cache before any work is done; a local file needs no download.

    Raises:
        UsageError: As for `check_clip`.
        SsrError: The hub cannot be reached and the weights are not in the cache.
    """
    check_clip(weights)
    if weights.path is None:
        _openable_clip(weights).fetch()


def _check_activation(model: str, model_quick: bool, weights_quick: bool, what: str) -> None:
    if model_quick != weights_quick:
        names = ("GELU", "QuickGELU")
        mended = model.removesuffix("-quickgelu") + ("-quickgelu" if weights_quick else "")
        raise UsageError(
            f"{what} was trained with {names[weights_quick]}, model {model} computes {names[model_quick]}",
            f"--clip-model {mended}",
        )


@dataclass(frozen=True)
class LoadedClip:
    """A CLIP in fp32 on the CPU.

    Attributes:
        model: open_clip's model.
        weights: Weights that it was built from.
        has_text: Whether the weights held the text tower; without it, its parameters are random and must not be used.
    """

    model: CLIP
    weights: Weights
    has_text: bool


def build_clip(weights: Weights) -> LoadedClip:
    """Build a CLIP in fp32 on the CPU and load its weights.

    Raises:
        UsageError: The file does not fit the model, or its activation does not.
        SsrError: The hub cannot be reached and the tag is not in the cache.
    """
    import open_clip

    from pipelines.encoders.towers import adapter_of

    name = check_clip(weights)
    if weights.path is None:
        return LoadedClip(_clip_from_hub(weights), weights, has_text=True)
    try:
        with _quiet_root_logger(), WithoutRandomWeights():
            model = cast("CLIP", open_clip.create_model(name, pretrained=None, load_weights=False))
    except Exception as error:  # a config file of odd numbers can fail in any way
        raise cannot_build(weights.model, error) from error
    adapter_of(model.visual, weights.name, "--clip-model", text=True)
    for key, value in _normalisation(name, weights.pretrained).items():
        setattr(model.visual, f"image_{key}", value)
    model.logit_scale.data.fill_(torch.tensor(OPENAI_LOGIT_SCALE).log())
    state = _clip_state(model, weights.path)
    marker = state.get("visual.class_embedding")
    if marker is not None:
        fingerprint = hashlib.sha256(marker.flatten()[: 1 << 16].half().numpy().tobytes()).hexdigest()
        if fingerprint in _QUICK_GELU_TOWERS:
            quick = bool((open_clip.get_model_config(name) or {}).get("quick_gelu"))
            _check_activation(weights.model, quick, True, f"{_QUICK_GELU_TOWERS[fingerprint]} in {weights.path.name}")
    own = model.state_dict()
    text = {key for key in own if not key.startswith("visual.") and key not in {"logit_scale", "logit_bias", "attn_mask"}}
    has_text = not text.isdisjoint(state)  # the file holds all of a tower or nothing of it
    load_state(
        model,
        state,
        weights.model,
        weights.path,
        optional={"logit_scale", "logit_bias", "attn_mask"} | (set() if has_text else text),
    )
    return LoadedClip(model, weights, has_text)


def _clip_state(model: CLIP, path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file under a CLIP's names: all of it, or the image tower with or without ``visual.``."""
    own = model.state_dict()
    visual = [key for key in own if key.startswith("visual.")]
    state = unwrapped(read_state(path), visual, path, "--clip-pretrained")
    if not any(key.startswith("visual.") for key in state):
        bare = [key.removeprefix("visual.") for key in visual]
        state = {f"visual.{key}": value for key, value in unwrapped(state, bare, path, "--clip-pretrained").items()}
    return state


def _normalisation(name: str, tag: str) -> dict[str, Any]:
    """Return the mean and std of pixels of a tag; for a file without a tag, those in which all tags of the model agree.

    Some CLIPs differ from OpenAI's values: SigLIP's are 0.5.
    """
    import open_clip

    tags = [tag] if open_clip.get_pretrained_cfg(name, tag) else open_clip.list_pretrained_tags_by_model(name)
    listed = [open_clip.get_pretrained_cfg(name, each) for each in tags]
    values = {key: {tuple(config.get(key) or ()) for config in listed} for key in ("mean", "std")}
    return {key: next(iter(found)) for key, found in values.items() if len(found) == 1 and found != {()}}


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Hide open_clip's warning that a model without a tag is random, because a file is loaded into it next."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _clip_from_hub(weights: Weights) -> CLIP:
    import open_clip

    release = _openable_clip(weights)
    source = release.fetch() or weights.pretrained
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = open_clip.create_model(weights.model, pretrained=str(source), weights_only=True)
    except Exception as error:  # huggingface_hub raises many network types
        raise release.unavailable(error) from error
    for key, value in _normalisation(weights.model, weights.pretrained).items():
        setattr(model.visual, f"image_{key}", value)
    return cast("CLIP", model)


def _openable_clip(weights: Weights) -> Release:
    """Return the release of a tag, after a check of its image tower without weights.

    Raises:
        UsageError: No adapter fits the image tower.
    """
    from pipelines.encoders.towers import adapter_of

    release = clip_release(weights.model, weights.pretrained)
    if release.repo and not release.cached():
        try:
            with _quiet_root_logger(), torch.device("meta"):
                visual = cast("CLIP", release.skeleton()).visual
        except Exception:  # a part of the model itself is on the hub
            return release
        adapter_of(visual, weights.name, "--clip-model", text=True)
    return release


def resolve_dino(model: str, pretrained: str) -> Weights:
    """Find by name or by file which weights a DINO has; `fetch_dino` and `build_dino` check that timm has them.

    Args:
        model: timm name, such as ``vit_small_patch16_224.dino`` or ``vit_small_patch14_dinov2``, or a ``.json`` of timm's form.
        pretrained: ``hub`` for timm's own weights, or a local ``.safetensors``.

    Raises:
        UsageError: The file is missing, or the ``.json`` is no such config.
    """
    if is_config_file(model):
        read_dino_config(model)
    if _is_file_name(pretrained):
        return _local(model, pretrained, "--dino-pretrained")
    if is_config_file(model):
        raise UsageError(
            f"{model} describes a model; its weights must be a file, found {pretrained!r}", "--dino-pretrained FILE"
        )
    return _released(model, pretrained, place_of(model))


def check_dino(weights: Weights) -> TimmModel:
    """Return the description from which timm builds a DINO.

    Raises:
        UsageError: The model is unknown, or it has no weights.
    """
    import timm

    architecture, model = dino_architecture(weights.model), weights.model
    if weights.path is None and not dino_known(model).has_weights:
        names = ", ".join(timm.list_pretrained(f"{model.split('.')[0]}*")) or "none"
        raise UsageError(f"timm has no weights of {model} (it has: {names})", "--dino-model, or --dino-pretrained FILE")
    return architecture


def fetch_dino(weights: Weights) -> None:
    """Download released weights of a DINO as `fetch_clip` does; weights that could not be used are not downloaded.

    Raises:
        UsageError: No adapter fits the model.
        SsrError: The hub cannot be reached and the model is not in the cache.
    """
    check_dino(weights)
    if weights.path is None:
        _openable_dino(weights).fetch()


def _openable_dino(weights: Weights) -> Release:
    from pipelines.encoders.towers import adapter_of

    release = dino_release(weights.model)
    with torch.device("meta"):
        adapter_of(release.skeleton(), weights.name, "--dino-model")
    return release


def build_dino(weights: Weights) -> nn.Module:
    """Build a timm transformer without classifier and load its weights.

    Raises:
        UsageError: No adapter fits the model, or the file does not fit it.
        SsrError: The hub cannot be reached and the model is not in the cache.
    """
    import timm

    from pipelines.encoders.towers import adapter_of

    architecture = check_dino(weights)
    options: dict[str, Any] = {**architecture.arguments, "num_classes": 0, "dynamic_img_size": True}
    path, release = weights.path, None
    if path is None:
        release = _openable_dino(weights)
        path = release.fetch()
    try:
        with nullcontext() if path is None else WithoutRandomWeights():
            model = timm.create_model(
                architecture.name,
                pretrained=path is None,
                pretrained_cfg_overlay=architecture.normalisation or None,
                **options,
            )
    except TypeError as error:  # a model without dynamic_img_size
        raise UsageError(f"{weights.name} does not take images of any size: {first_line(error)}", "--dino-model") from error
    except Exception as error:  # huggingface_hub raises many network types
        raise (release.unavailable(error) if release else cannot_build(weights.model, error)) from error
    adapter = adapter_of(model, weights.name, "--dino-model")
    if path is not None:
        state = unwrapped(read_state(path), model.state_dict(), path, "--dino-pretrained")
        try:
            with redirect_stdout(None):  # timm prints what it leaves out
                state = dict(adapter.convert(state, model)) if adapter.convert else state
        except Exception as error:  # it reshapes tensors of any shape
            raise UsageError(
                f"{path} does not fit {weights.model}: {first_line(error)}", "bring the weights of this model"
            ) from error
        load_state(model, state, weights.model, path)
    return model

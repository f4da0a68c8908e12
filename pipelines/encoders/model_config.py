"""Model names, or files that describe a model: open_clip's model config, timm's ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.encoders.weights_folder import first_line
from pipelines.errors import SsrError, UsageError
from pipelines.plugins import load_plugins

_LARGEST, _DEEPEST = 1 << 20, 256  # limits of any number in a model's description, and of its number of layers


def is_config_file(model: str) -> bool:
    """Return whether a model is named by a file."""
    return model.endswith(".json")


def clip_name(model: str) -> str:
    """Return the name of a CLIP in open_clip; a config file is registered first, under its own name.

    Args:
        model: Name, or a ``.json`` with ``embed_dim``, ``vision_cfg`` and ``text_cfg`` as open_clip writes them.

    Raises:
        UsageError: The name is unknown, or the file is missing or is no such config.
    """
    import open_clip

    if is_config_file(model):
        path = read_clip_config(model)
        open_clip.add_model_config(path)
        return path.stem
    if ":" in model or open_clip.get_model_config(model) is None:  # hf-hub: and local-dir: names are refused
        raise UsageError(f"open_clip has no model {model!r}", "see open_clip.list_models(), or give a .json; --clip-model")
    return model


def read_clip_config(model: str) -> Path:
    """Check a file that describes a CLIP, without an import of open_clip.

    Raises:
        UsageError: The file is missing or is no such config.
    """
    path = Path(model).expanduser()
    content = _read(path, {"embed_dim", "vision_cfg", "text_cfg"}, "an open_clip model config", "--clip-model")
    if not isinstance(content["vision_cfg"], dict) or not isinstance(content["text_cfg"], dict):
        raise UsageError(f"{path} is not an open_clip model config: vision_cfg or text_cfg is no object", "--clip-model")
    return path


@dataclass(frozen=True)
class TimmModel:
    """Description from which timm builds a model.

    Attributes:
        name: Registered name.
        arguments: Arguments that override the registered ones.
        normalisation: ``mean`` and ``std`` that override the registered ones.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    normalisation: dict[str, Any] = field(default_factory=dict)


def dino_architecture(model: str) -> TimmModel:
    """Return the description from which a DINO is built.

    Args:
        model: timm name, or a ``.json`` with ``architecture``, ``model_args`` and ``pretrained_cfg`` as timm writes them.

    Raises:
        UsageError: The name is unknown, or the file is missing or is no such config.
    """
    if not is_config_file(model):
        if not _is_timms(model):
            raise UsageError(f"timm has no model {model!r}", "see timm.list_models('vit_*'), or give a .json; --dino-model")
        return TimmModel(model)
    described = read_dino_config(model)
    if not _is_timms(described.name):
        raise UsageError(f"{Path(model).expanduser()}: timm has no model {described.name!r}", "--dino-model")
    return described


def read_dino_config(model: str) -> TimmModel:
    """Read a file that describes a DINO, without an import of timm.

    Raises:
        UsageError: The file is missing or is no such config.
    """
    path = Path(model).expanduser()
    content = _read(path, {"architecture"}, "a timm config.json", "--dino-model")
    name, arguments, settings = content["architecture"], content.get("model_args", {}), content.get("pretrained_cfg", {})
    if not isinstance(name, str) or not isinstance(arguments, dict) or not isinstance(settings, dict):
        raise UsageError(f"{path} is not a timm config.json: architecture, model_args or pretrained_cfg", "--dino-model")
    statistics = {key: settings[key] for key in ("mean", "std") if key in settings}
    if not all(_is_statistic(value) for value in statistics.values()) or 0 in statistics.get("std", ()):
        raise UsageError(f"{path}: expected mean and std of three numbers, std above 0", "--dino-model")
    return TimmModel(name, arguments, statistics)


def _is_timms(name: str) -> bool:
    """Return whether timm has a model of this name, or a plugin registers one."""
    import timm

    if not timm.is_model(name.split(".")[0]):
        load_plugins()
    return timm.is_model(name.split(".")[0])


def _is_statistic(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(one, int | float) and one >= 0 for one in value)


def _read(path: Path, wanted: set[str], what: str, flag: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"no model config at {path}: {error.strerror}", flag) from None
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise UsageError(f"{path} is not JSON", flag) from None
    if not isinstance(content, dict) or not wanted <= set(content):
        raise UsageError(f"{path} is not {what}: expected {', '.join(sorted(wanted))}", flag)
    odd = next(_odd(content), None)
    if odd is not None:
        raise UsageError(f"{path} is not {what}: no model here has {odd:.80}", flag)
    return content


def _odd(content: Mapping[str, Any], section: str = "") -> Iterator[str]:
    """Yield entries that would fill the memory, or make a library download something."""
    for key, value in content.items():
        if isinstance(value, dict) and not section:
            yield from _odd(value, f"{key}.")
        elif isinstance(value, int | float) and not abs(value) <= (_DEEPEST if key in {"layers", "depth"} else _LARGEST):
            yield f"{section}{key} {value!r:.20}"
        elif key.startswith("hf_") or (isinstance(value, str) and ":" in value and key.endswith("model_name")):
            yield f"{section}{key} from a hub"


def cannot_build(model: str, error: Exception) -> SsrError:
    """Return the error for a config with entries that its library refuses."""
    return UsageError(f"cannot build {model}: {first_line(error)}", "mend the .json")

"""What a work directory holds: its digest, how two of them differ, what does not read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def explain(one: Path, other: Path, names: list[str]) -> str:
    """How manifests differ, for a message."""
    lines = []
    for name in names:
        if name.endswith(".json") and (one / name).is_file() and (other / name).is_file():
            a, b = json.loads((one / name).read_text()), json.loads((other / name).read_text())
            lines += [
                f"{name} {key}: {a[key]} / {b.get(key)}"
                for key in a
                if a[key] != b.get(key) and key not in {"updated", "created"}
            ]
        else:
            lines.append(name)
    return "; ".join(lines)


def differing(wanted: dict[str, str], found: dict[str, str], but: tuple[str, ...] = ()) -> list[str]:
    """Names that only one of two digests has, or that differ."""
    names = sorted(wanted.keys() | found.keys())
    return [name for name in names if wanted.get(name) != found.get(name) and not name.startswith(but or "\0")]


def digest(work: Path, made_as: Path | None = None) -> dict[str, str]:
    """What a work directory holds: a checksum of each file by name.

    Left out are locks and temporary files; of manifests, when and by which commit they were written and the counts of
    the last run; the mean loss of `ssr align`'s metrics, which begins anew where a run does; mmengine's log; the work
    directory's own name.
    """
    found = {}
    for path in sorted(work.rglob("*")):
        empty = path.name == "failures.jsonl" and path.stat().st_size == 0  # as good as none
        left_out = path.name.endswith((".lock", ".tmp")) or "mmengine" in path.parts
        if path.is_file() and not left_out and not empty:
            found[str(path.relative_to(work))] = hashlib.sha256(_essence(path, made_as or work)).hexdigest()[:16]
    return found


def _essence(path: Path, work: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".py":
        return content.replace(bytes(work), b"WORK")
    if path.suffix == ".pth":  # pickle writes equal values in more than one way
        state = torch.load(path, weights_only=True)
        return json.dumps(state, default=lambda tensor: hashlib.sha256(tensor.numpy()).hexdigest()).encode()
    if path.suffix != ".json":
        return content
    try:
        values = json.loads(content)
    except ValueError:
        return content
    if isinstance(values, dict) and "updated" in values:
        values = {key: value for key, value in values.items() if key not in {"updated", "created", "counts", "commit"}}
    elif path.name == "metrics.json":
        values = [{**line, "loss": None} for line in values]
    return json.dumps(values, sort_keys=True).encode()


def litter(work: Path) -> list[str]:
    """Temporary files and parts that a finished run should have removed."""
    return [str(p.relative_to(work)) for p in work.rglob("*") if p.name.endswith((".tmp", ".parts"))]


def unreadable(work: Path) -> list[str]:
    """Everything of a broken-off work directory that does not read back: committed arrays, masks, weights, manifests."""
    import numpy as np
    from PIL import Image
    from safetensors.numpy import load_file

    from pipelines.stores.array_store import ArrayReader

    found = []
    stores = {path for path in work.rglob("*.h5") if not path.parent.name.endswith(".parts")}
    stores |= {path.with_suffix("") for path in work.rglob("*.h5.parts") if any(path.glob("[0-9]*.h5"))}
    readers: list[tuple[Path, Callable[[Path], Any]]] = [(path, _arrays(ArrayReader)) for path in stores]
    for pattern, read in (("*.png", lambda p: np.array(Image.open(p))), ("*.safetensors", load_file), ("*.json", _json)):
        readers += [(path, read) for path in work.rglob(pattern)]
    for path, read in readers:
        try:
            read(path)
        except Exception as error:
            found.append(f"{path.relative_to(work)}: {type(error).__name__}: {error}")
    return found


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _arrays(reader_of: Any) -> Callable[[Path], Any]:
    def read(path: Path) -> list[Any]:
        with reader_of(path) as reader:
            return [reader.read(image_id) for image_id in reader.ids()]

    return read

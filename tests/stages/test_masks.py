"""`ssr masks`: one pass of the encoders writes what the stages write one by one, whatever of it was there before."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.config import read_recipe
from pipelines.encoders.clip import ClipEncoder
from pipelines.method import encoders
from pipelines.options.stages import CamsOptions, RefineOptions, SuperpixelsOptions
from pipelines.stages import cams, masks, superpixels
from pipelines.stages.refine import stage as refine
from pipelines.stores.array_store import ArrayReader

SLIC = SuperpixelsOptions(segments=12)
RECIPES = {name: read_recipe(name) for name in ("ssr", "clip-es")}
SSR = CamsOptions(**RECIPES["ssr"]["cams"]), RefineOptions(**RECIPES["ssr"]["refine"])
CLIP_ES = CamsOptions(**RECIPES["clip-es"]["cams"]), RefineOptions(**RECIPES["clip-es"]["refine"])
VIEWS = SSR[0].model_copy(update={"scales": (0.5, 1.5), "flip": True}), SSR[1]
HEADS = SSR[0].model_copy(update={"ckpt": Path("auto")}), SSR[1].model_copy(update={"superpixel_mask": "colour"})
CDA = CLIP_ES[0], CLIP_ES[1].model_copy(update={"affinity_filter": "cda"})


def contents(work: Path) -> dict[str, bytes]:
    """Stores and masks, and the settings of their manifests."""
    files = {
        str(path.relative_to(work)): path.read_bytes() for path in sorted(work.rglob("*")) if path.suffix in {".h5", ".png"}
    }
    settings = {path.name: json.loads(path.read_text())["settings"] for path in work.glob("*.json") if path.name != "work.json"}
    return files | {name: json.dumps(value).encode() for name, value in settings.items() if name != "cmpa.json"}


@pytest.mark.parametrize("options", [SSR, CLIP_ES, VIEWS, HEADS, CDA], ids=["ssr", "clip-es", "views", "heads", "cda"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_same_bytes_as_the_stages_one_by_one(new, options, batch_size):
    one, three = new("one", batch_size=batch_size, force=True), new("three", batch_size=batch_size)
    (three.work / "superpixels.h5").unlink()
    (three.work / "superpixels.json").unlink()
    counts = masks.run(one, SLIC, *options)
    assert (counts.done, counts.failed) == (6, 0)
    if options not in (CLIP_ES, CDA):
        superpixels.run(three, SLIC)
    cams.run(three, options[0])
    refine.run(three, options[1])
    together, apart = contents(one.work), contents(three.work)
    if options in (CLIP_ES, CDA):  # no part needs them: those of before stay
        together = {name: value for name, value in together.items() if "superpixels" not in name}
    assert together.keys() == apart.keys()
    assert [name for name in apart if together[name] != apart[name]] == []


@pytest.mark.parametrize(
    "kept", [["superpixels"], ["superpixels", "cams"], ["cams"], ["superpixels", "cams", "refined"], ["refined"], []]
)
def test_it_goes_on_from_whatever_is_there(workspace_in, finished, tmp_path, kept):
    work = tmp_path / "work"
    shutil.copytree(finished["ssr"], work)
    for name in ("superpixels", "cams", "refined"):
        if name not in kept:
            (work / f"{name}.h5").unlink()
    (work / "masks/b_trio.png").unlink()
    counts = masks.run(workspace_in(work), SLIC, *SSR)
    assert counts.done + counts.skipped == 6
    assert contents(work) == contents(finished["ssr"])


def test_one_pass_of_clip_serves_cams_and_refinement(workspace_in, tmp_path, monkeypatch):
    passes: list[int] = []
    encode = ClipEncoder.encode
    monkeypatch.setattr(ClipEncoder, "encode", lambda *args, **named: passes.append(1) or encode(*args, **named))
    masks.run(workspace_in(tmp_path / "work"), SLIC, *SSR)
    assert len(passes) == 6
    masks.run(workspace_in(tmp_path / "work"), SLIC, *SSR)
    assert len(passes) == 6


class Waits(TorchDispatchMode):
    """Counts what a GPU would make the host wait for, and what is copied between the two."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        for name in ("cpu", "numpy", "tolist", "to"):
            patch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            self.count += 1
            return method(*args, **named)

        return call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in {"_local_scalar_dense", "nonzero", "is_nonzero", "item"}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [SSR, CLIP_ES, VIEWS, HEADS], ids=["ssr", "clip-es", "views", "heads"])
def test_the_host_waits_as_often_for_one_image_as_for_a_batch(new, options, monkeypatch):
    """By stage and size of a batch; in images without a class there is less to do."""
    found: dict[tuple[str, bool], set[int]] = defaultdict(set)

    def watch(module: Any, name: str, batch_of: Callable[..., Sequence[Any]]) -> None:
        function = getattr(module, name)

        def call(*args: Any) -> Any:
            with pytest.MonkeyPatch.context() as patch, Waits(patch) as waits:
                made = function(*args)
            found[name, len(batch_of(*args)) > 1].add(waits.count)
            return made

        monkeypatch.setattr(module, name, call)

    watch(masks, "_made", lambda *args: args[-1])
    watch(refine, "_refined", lambda *args: args[-1])
    watch(cams, "extract_cams", lambda encoders, photos, *_: photos)
    for size in (1, 4):
        masks.run(new(f"together {size}", batch_size=size, force=True), SLIC, *options)
        apart = new(f"apart {size}", batch_size=size)
        cams.run(apart, options[0])
        refine.run(apart, options[1])
    for stage in ("_made", "_refined", "extract_cams"):
        assert max(found[stage, True]) <= max(found[stage, False])


def test_a_bad_photo_is_counted_once(workspace_in, tiny_voc, tmp_path):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    (root / "JPEGImages/a_cat.jpg").write_bytes(b"no photo")
    counts = masks.run(workspace_in(tmp_path / "work", root=root, max_failures=-1), SLIC, *SSR)
    assert (counts.done, counts.failed) == (5, 1)
    assert len((tmp_path / "work/failures.jsonl").read_text().splitlines()) == 1


def test_a_photo_whose_attention_would_fill_the_memory_is_refused(workspace_in, tmp_path, monkeypatch):
    """With the longer side that its message names, it is made: on a smaller grid, with a mask of the photo's own size."""
    monkeypatch.setattr(encoders, "memory_of", lambda device: encoders.BYTES_A_PAIR * 20**2)  # 12 tokens fit, 24 do not
    counts = masks.run(workspace_in(tmp_path / "work", max_failures=-1), SLIC, *SSR)
    assert (counts.done, counts.failed) == (2, 4)
    lines = (tmp_path / "work/failures.jsonl").read_text().splitlines()
    assert len(lines) == 4
    for words in ("96 x 64 pixels are 24 tokens", "--long-side 80"):
        assert any(words in line for line in lines)
    workspace = workspace_in(tmp_path / "other", max_failures=-1)
    workspace = replace(workspace, dataset_options=workspace.dataset_options.model_copy(update={"long_side": 80}))
    masks.run(workspace, SLIC, *SSR)
    with ArrayReader(workspace.refined) as reader:
        refined, attributes = reader.read("a_cat")
    assert (refined.shape, attributes["size"]) == ((1, 4, 5), [64, 96])
    assert Image.open(workspace.masks / "a_cat.png").size == (96, 64)


def test_shards_merge_to_the_whole(ssr, tiny_voc, finished, tmp_path):
    work = tmp_path / "work"
    for shard in ("0/2", "1/2"):
        ssr("masks", "--config", tiny_voc.config, "--work", work, "--shard", shard)
    ssr("merge", "--work", work)
    assert contents(work) == contents(finished["ssr"])

"""`ssr align`: patches and CAMs are those of plain CLIP, a second run does nothing, equal seeds give equal bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.config import read_recipe
from pipelines.encoders.clip import ClipEncoder
from pipelines.errors import UsageError
from pipelines.method.composition import initial_cams, refined_cams
from pipelines.method.encoders import Blocks, Encoders
from pipelines.method.loading import FrozenModels
from pipelines.method.parts_in_use import cam_needs, refine_needs
from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.stages.align import stage as align
from pipelines.stages.align.inputs import drawn_patches
from pipelines.stores.array_store import ArrayReader, iter_records
from pipelines.training.alignment import AlignmentTrainer
from pipelines.workdir.photos import load_photo
from pipelines.workdir.settings import model_sources
from pipelines.workdir.workspace import Workspace

OPTIONS = AlignOptions(hidden=8, tokens=16, batch=2, iterations=7, refresh=3, learning_rate=1e-3)
CAMS = CamsOptions(readout="mix", dense_weight=0.7)
REFINE = RefineOptions(**read_recipe("ssr")["refine"])
LABELLED = ("a_cat", "b_trio", "c_bird", "e_pair", "f_car")
OUTPUTS = ("cmpa.safetensors", "align/metrics.json", "align/tokens.h5", "align/cams.h5")


def run(workspace: Workspace, cams: CamsOptions = CAMS, **changed: object) -> align.Counts:
    return align.run(workspace, OPTIONS.model_copy(update=changed), cams, REFINE)


def contents(work: Path) -> dict[str, bytes]:
    return {name: (work / name).read_bytes() for name in OUTPUTS}


def arrays(store: Path) -> dict[str, np.ndarray]:
    return {image_id: array for image_id, (array, _) in iter_records(store)}


def manifest(work: Path) -> dict[str, object]:
    return {k: v for k, v in json.loads((work / "cmpa.json").read_text()).items() if k not in {"updated", "created"}}


@pytest.fixture(scope="module")
def aligned(workspace_in, finished, tmp_path_factory) -> Path:
    """A work directory with superpixels and trained heads. Shared: copy before changing."""
    work = tmp_path_factory.mktemp("aligned") / "work"
    work.mkdir()
    for name in ("superpixels.h5", "superpixels.json"):
        shutil.copy(finished["ssr"] / name, work / name)
    counts = run(workspace_in(work))
    assert (counts.done, counts.failed) == (5, 0)
    return work


@pytest.fixture
def again(aligned, workspace_in, tmp_path) -> Callable[..., Workspace]:
    """A copy of `aligned`, as workspaces with options of their own."""
    work = Path(shutil.copytree(aligned, tmp_path / "work"))
    return lambda **options: workspace_in(work, **options)


@pytest.fixture
def no_encoder(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an encoder ran")

    monkeypatch.setattr(ClipEncoder, "encode", refuse)


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """The steps that are really taken."""
    taken: list[int] = []
    step = AlignmentTrainer._step

    def counted(trainer: AlignmentTrainer, photos: list[int]) -> float:
        taken.append(trainer.iteration)
        return step(trainer, photos)

    monkeypatch.setattr(AlignmentTrainer, "_step", counted)
    return taken


def test_outputs(aligned):
    metrics = json.loads((aligned / "align/metrics.json").read_text())
    assert [m["iteration"] for m in metrics] == [0, 3, 6, 7]
    assert metrics[0]["loss"] is None
    assert all(m["loss"] > 0 for m in metrics[1:])
    assert all(0 < m["purity"] <= 1 and m["within"] >= 0 and m["between"] >= 0 for m in metrics)
    assert all(m["temperature"] == pytest.approx(OPTIONS.temperature) for m in metrics)
    told = manifest(aligned)
    assert (told["stage"], told["complete"], told["counts"]) == ("align", True, {"iterations": 7, "photos": 5})
    assert told["settings"]["hidden"] == 8
    assert "resume" not in told["settings"]
    assert not list(aligned.rglob("*.tmp"))
    assert not list(aligned.rglob("*.parts"))


def test_second_run_encodes_and_trains_nothing(again, no_encoder, steps):
    workspace = again()
    before, told = contents(workspace.work), manifest(workspace.work)
    counts = run(workspace)
    assert (counts.done, counts.failed, steps) == (0, 0, [])
    assert (contents(workspace.work), manifest(workspace.work)) == (before, told)


# twins


def seen(workspace: Workspace, refine: RefineOptions = REFINE):
    """Encoder, and a photo's tokens and CAM, initial and refined: made one by one, without the stage."""
    needs = cam_needs(CAMS) | refine_needs(refine) | {"tokens_cls"}
    models = FrozenModels(model_sources(workspace, needs), torch.device("cpu"), "fp32")
    encoders = models.encoders(needs, Blocks(clip_attention=refine.clip_blocks, dino_attention=refine.dino_blocks))
    with ArrayReader(workspace.superpixels) as reader:
        for sample in workspace.dataset.samples:
            if sample.labels:
                evidence = encoders.encode([load_photo(encoders, reader, sample)])
                cam = initial_cams(evidence, CAMS)  # (K, N)
                yield sample.image_id, models.clip, evidence.tokens_cls, cam, refined_cams(evidence, cam, refine)


@torch.no_grad()
def slow_features(encoder: ClipEncoder, tokens_cls: torch.Tensor, which: str) -> torch.Tensor:
    """Patch features ``(N, E)`` of one photo by open_clip's own modules, the value path row by row."""
    block, post, projection = encoder.blocks[-1], encoder.model.ln_post, encoder.model.proj
    if which == "output":
        return post(block(tokens_cls)[0, 1:]) @ projection
    width = tokens_cls.shape[-1]
    rows = []
    for token in block.ln_1(tokens_cls)[0, 1:]:
        value = block.attn.in_proj_weight[2 * width :] @ token + block.attn.in_proj_bias[2 * width :]
        rows.append(post(block.attn.out_proj(value)) @ projection)
    return torch.stack(rows)


def drawn_by_hand(image_id: str, patches: int) -> list[int]:
    """What the store holds depends on the id alone."""
    found = drawn_patches(image_id, patches, OPTIONS.tokens).tolist()
    assert len(found) == OPTIONS.tokens
    assert set(found) <= set(range(patches))
    assert patches < OPTIONS.tokens or len(set(found)) == OPTIONS.tokens
    return found


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("features", ["output", "value"])
@pytest.mark.parametrize("cam", ["initial", "refined"])
def test_patches_and_cams_are_those_of_plain_clip(again, cam, features, batch_size):
    workspace = again(force=True, batch_size=batch_size)
    run(workspace, cam=cam, features=features, iterations=1)
    tokens, cams = arrays(workspace.work / "align/tokens.h5"), arrays(workspace.work / "align/cams.h5")
    assert set(tokens) == set(cams) == set(LABELLED)
    with ArrayReader(workspace.work / "align/cams.h5") as reader:
        assert reader.attributes("b_trio")["labels"] == [2, 11, 14]
    for image_id, encoder, tokens_cls, initial, refined in seen(workspace):
        maps = refined if cam == "refined" else initial
        drawn = drawn_by_hand(image_id, maps.shape[1])
        expected = slow_features(encoder, tokens_cls, features)[drawn].numpy()
        assert (tokens[image_id].shape, tokens[image_id].dtype) == ((16, 32), np.float16)
        np.testing.assert_allclose(tokens[image_id].astype(np.float32), expected, atol=3e-3, rtol=1e-3)
        np.testing.assert_allclose(cams[image_id].astype(np.float32), maps[:, drawn].numpy(), atol=2e-3)


def test_output_and_value_initial_and_refined_differ(again):
    """Else the table above would not bite."""
    workspace = again(force=True)
    found = {}
    for name, changed in {"a": {}, "b": {"cam": "initial"}, "c": {"features": "value"}}.items():
        run(workspace, iterations=1, **changed)
        found[name] = [arrays(workspace.work / f"align/{store}.h5")["b_trio"] for store in ("tokens", "cams")]
    assert np.array_equal(found["a"][0], found["b"][0])
    assert np.abs(found["a"][1].astype(float) - found["b"][1]).max() > 0.05
    assert np.abs(found["a"][0].astype(float) - found["c"][0]).max() > 0.05


def test_checkpoint_scales_and_flip_of_cams_do_not_count(again, no_encoder):
    """They say how CAMs are read out later, not what pools the features now."""
    workspace = again()
    before = contents(workspace.work)
    run(workspace, CAMS.model_copy(update={"ckpt": workspace.work / "cmpa.safetensors", "scales": (0.5, 1.0), "flip": True}))
    assert contents(workspace.work) == before


# changes


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"learning_rate": 0.1}, "learning_rate: 0.001 -> 0.1"),
        ({"seed": 3}, "seed: 0 -> 3"),
        ({"tokens": 8}, "tokens: 16 -> 8"),
        ({"features": "value"}, 'features: "output" -> "value"'),
        ({"cam": "initial"}, 'cam: "refined" -> "initial"'),
        ({"cams": CAMS.model_copy(update={"dense_weight": 0.5})}, "cams.dense_weight: 0.7 -> 0.5"),
    ],
)
def test_changed_option_is_one_line_and_changes_nothing(again, changed, said):
    workspace = again()
    before = contents(workspace.work)
    with pytest.raises(UsageError) as caught:
        run(workspace, **changed)
    assert said in str(caught.value)
    assert "--force" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(workspace.work) == before


def test_force_keeps_the_patches_if_only_the_training_changed(again, no_encoder, steps):
    workspace = again(force=True)
    before = contents(workspace.work)
    counts = run(workspace, learning_rate=0.1)
    after = contents(workspace.work)
    assert (counts.done, len(steps)) == (0, 7)
    assert {name for name in OUTPUTS if after[name] != before[name]} == {"cmpa.safetensors", "align/metrics.json"}


def test_force_with_the_same_options_trains_anew_to_the_same_bytes(again, no_encoder, steps):
    workspace = again(force=True)
    before = contents(workspace.work)
    run(workspace)
    assert len(steps) == 7
    assert contents(workspace.work) == before


def test_force_with_other_patches_collects_anew(again, steps):
    workspace = again(force=True)
    assert run(workspace, tokens=8).done == 5
    assert len(steps) == 7
    assert {array.shape for array in arrays(workspace.work / "align/tokens.h5").values()} == {(8, 32)}


def test_resume_never_trains_anew_on_the_patches_kept(again, no_encoder, steps):
    workspace = again()
    before = contents(workspace.work)
    run(workspace, resume="never")
    assert steps == list(range(7))
    assert contents(workspace.work) == before


@pytest.mark.parametrize("option", [{}, {"prototypes": "kmeans"}, {"loss": "intra"}, {"residual": False}])
def test_seed_decides(aligned, workspace_in, tmp_path, option):
    found = []
    for place, seed in enumerate((0, 0, 1)):
        work = tmp_path / str(place)
        shutil.copytree(aligned, work, ignore=lambda _, names: {n for n in names if n.startswith(("cmpa", "state", "metrics"))})
        run(workspace_in(work), seed=seed, **option)
        found.append((work / "cmpa.safetensors").read_bytes())
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize(
    "option",
    [{}, {"prototypes": "kmeans"}, {"learn_temperature": True}, {"loss": "intra", "residual": False}, {"separation": 1.0}],
)
def test_stopped_training_goes_on_to_the_same_bytes(again, monkeypatch, no_encoder, option):
    step, stops = AlignmentTrainer._step, {0, 4, 6}

    def stopping(trainer: AlignmentTrainer, photos: list[int]) -> float:
        if trainer.iteration in stops:
            stops.remove(trainer.iteration)
            raise KeyboardInterrupt
        return step(trainer, photos)

    run(again(force=True), **option)
    undisturbed = contents(again().work)["cmpa.safetensors"]
    monkeypatch.setattr(AlignmentTrainer, "_step", stopping)
    for force in (True, False, False):
        with pytest.raises(KeyboardInterrupt):
            run(again(force=force), **option)
    run(again(), **option)
    assert stops == set()
    assert contents(again().work)["cmpa.safetensors"] == undisturbed


def test_changed_labels_redo_that_photo(aligned, workspace_in, tiny_voc, tmp_path, monkeypatch):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    shutil.copytree(aligned, tmp_path / "work")
    (root / "Annotations/a_cat.xml").write_text("<annotation><object><name>dog</name></object></annotation>")
    before = arrays(tmp_path / "work/align/cams.h5")
    encoded: list[str] = []
    photo = Encoders.photo
    monkeypatch.setattr(
        Encoders, "photo", lambda self, sample, *rest: (encoded.append(sample.image_id), photo(self, sample, *rest))[1]
    )
    checkpoint = (tmp_path / "work/cmpa.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"photos: .*--force"):  # trained on other labels: a person decides
        run(workspace_in(tmp_path / "work", root=root))
    assert (tmp_path / "work/cmpa.safetensors").read_bytes() == checkpoint
    run(workspace_in(tmp_path / "work", root=root, force=True))
    assert encoded == ["a_cat"]
    after = arrays(tmp_path / "work/align/cams.h5")
    assert {name for name in after if not np.array_equal(after[name], before[name])} == {"a_cat"}
    with ArrayReader(tmp_path / "work/align/cams.h5") as reader:
        assert reader.attributes("a_cat")["labels"] == [11]
    assert (tmp_path / "work/cmpa.safetensors").read_bytes() != checkpoint


def test_photos_added_later_are_collected_alone(aligned, workspace_in, tmp_path):
    shutil.copytree(aligned, tmp_path / "work")
    listed = tmp_path / "three.txt"
    listed.write_text("a_cat\nb_trio\nf_car\n")
    few = workspace_in(tmp_path / "work", split=str(listed), force=True)
    assert run(few).done == 0
    assert manifest(tmp_path / "work")["counts"] == {"iterations": 7, "photos": 3}

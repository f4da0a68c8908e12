"""`ssr train` on tiny models: what it writes, that it is the same however often it is stopped, and that it learns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.weights import resolve_clip
from pipelines.errors import SsrError, UsageError
from pipelines.models.segmenter import read_segmenter
from pipelines.options.stages import EvalOptions, SuperpixelsOptions
from pipelines.options.train import PredictOptions
from pipelines.stages import evaluate, predict, superpixels
from pipelines.stages.train import stage as train
from pipelines.training.segmentation import SegmentationTrainer, StepLosses
from pipelines.workdir.workspace import Workspace

SETS = ("ssr", "joint", "weclip", "masks", "views")
ONCE = {"scales": (1.0,), "flip": False, "long_side": 0}


def contents(work: Path) -> dict[str, bytes]:
    names = ("model.safetensors", "train/state.safetensors", "train/best.safetensors", "train/cmpa.safetensors")
    return {name: (work / name).read_bytes() for name in names if (work / name).exists()}


def lines(work: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (work / "train/curves.jsonl").read_text().splitlines()]


def manifest(work: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work / "model.json").read_text())
    return found


@pytest.fixture(scope="module")
def trained(with_heads, workspace_in, tmp_path_factory, run_train) -> dict[str, Path]:
    """Work directories after a training with each of `SETS`. Shared: copy before changing."""
    works = {}
    for name in SETS:
        works[name] = Path(shutil.copytree(with_heads, tmp_path_factory.mktemp("trained") / name))
        counts = run_train(workspace_in(works[name]), name)
        assert (counts.done, counts.skipped, counts.failed) == (6, 0, 0)
    return works


@pytest.fixture
def again(trained, workspace_in, tmp_path) -> Callable[..., Workspace]:
    """A copy of one of `trained`, as a workspace with options of its own."""

    def make(name: str = "weclip", **options: Any) -> Workspace:
        if not (tmp_path / name).exists():
            shutil.copytree(trained[name], tmp_path / name)
        return workspace_in(tmp_path / name, **options)

    return make


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """The steps that are really taken."""
    taken: list[int] = []
    step = SegmentationTrainer.step

    def counted(trainer: SegmentationTrainer) -> StepLosses:
        taken.append(trainer.iteration)
        return step(trainer)

    monkeypatch.setattr(SegmentationTrainer, "step", counted)
    return taken


# outputs


@pytest.mark.parametrize("name", SETS)
def test_outputs(trained, models, name):
    work = trained[name]
    found = read_segmenter(work / "model.safetensors", resolve_clip("tiny-quickgelu", str(models.visual)))
    assert (found.blocks, found.iteration) == (3 if name == "weclip" else 4, 6)
    assert found.supervision == ("masks" if name == "masks" else "pseudo")
    assert (len(found.classes), found.classes[:2]) == (20, ("aeroplane", "bicycle"))
    state = load_file(work / "train/state.safetensors")
    assert int(state["iteration"]) == 6
    for key, tensor in found.decoder.state_dict().items():
        assert torch.equal(tensor, state[f"decoder.{key}"])
    assert any(key.startswith("heads.") for key in state) == (name == "joint")
    assert [line["iteration"] for line in lines(work)] == [2, 4, 6]
    for line in lines(work):
        assert set(line) == {"iteration", "segmentation", "affinity", "prototype", "learning_rate"}
        assert line["segmentation"] > 0
        assert (line["affinity"] > 0, line["prototype"] > 0) == (name == "weclip", name == "joint")
    assert {path.name for path in (work / "train").iterdir() if path.name != ".lock"} == {
        "state.safetensors", "curves.jsonl", "curves.png", *(["cmpa.safetensors"] if name == "joint" else []),
        *(["views.h5", "views.json", "view_labels.h5", ".views.h5.lock", ".view_labels.h5.lock"] if name == "views" else []),
        "photos.json",
    }  # fmt: skip
    assert not list(work.rglob("*.tmp"))


@pytest.mark.parametrize("name", SETS)
def test_manifest_tells_what_made_the_model(trained, name):
    told = manifest(trained[name])
    assert (told["stage"], told["complete"]) == ("train", True)
    assert told["counts"] == {"iterations": 6, "done": 6, "skipped": 0, "failed": 0}
    settings = told["settings"]
    assert (settings["hidden"], settings["processes"], settings["precision"]) == (16, 1, "float32")
    made_by = {key for key in ("cams", "refine", "align") if key in settings}
    assert made_by == (set() if name == "masks" else {"cams", "refine"} | ({"align"} if name == "joint" else set()))
    assert not {"ckpt", "resume", "save_every", "val_split", "validate_every"} & settings.keys()
    assert str(trained[name]) not in json.dumps(told)


def test_weights_move_and_sets_differ(trained):
    found = {name: load_file(work / "model.safetensors")["fusion.weight"] for name, work in trained.items() if name != "weclip"}
    assert len({tensor.sum().item() for tensor in found.values()}) == 4


def test_heads_that_were_trained_on_are_written_beside_those_of_align(trained, with_heads):
    ours, theirs = load_file(trained["joint"] / "train/cmpa.safetensors"), load_file(with_heads / "cmpa.safetensors")
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["class_photos"], theirs["class_photos"])
    for key in ("isa.layers.0.weight", "tsa.layers.3.weight", "image_prototypes"):
        assert not torch.equal(ours[key], theirs[key])
    for name in SETS:
        assert (trained[name] / "cmpa.safetensors").read_bytes() == (with_heads / "cmpa.safetensors").read_bytes()


def test_trained_on_heads_are_read_again(trained, again, run_train):
    """Of another training, for example."""
    workspace = again("joint", force=True)
    run_train(workspace, "ssr", ckpt=workspace.work / "train/cmpa.safetensors", iterations=1)
    assert manifest(workspace.work)["settings"]["cams"]["ckpt"]["sha256"]


# again


@pytest.mark.parametrize("name", SETS)
def test_second_run_encodes_and_trains_nothing(again, monkeypatch, steps, name, run_train):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an encoder ran, or a photo was decoded")

    monkeypatch.setattr(ClipEncoder, "encode", refuse)
    monkeypatch.setattr("pipelines.stages.train.crops.load_image", refuse)
    workspace = again(name)
    before = contents(workspace.work)
    counts = run_train(workspace, name)
    assert (counts.done, counts.skipped, counts.failed, steps) == (0, 6, 0, [])
    assert contents(workspace.work) == before
    assert manifest(workspace.work)["complete"] is True


def test_a_model_that_was_removed_is_written_again(again, steps, run_train):
    workspace = again()
    before = contents(workspace.work)
    workspace.model.unlink()
    run_train(workspace)
    assert steps == []
    assert contents(workspace.work) == before


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("weclip", {"iterations": 7}, "iterations: 6 -> 7"),
        ("weclip", {"learning_rate": 0.1}, "learning_rate: 0.01 -> 0.1"),
        ("weclip", {"seed": 3}, "seed: 0 -> 3"),
        ("weclip", {"batch": 3}, "batch: 2 -> 3"),
        ("weclip", {"filter_from": -1}, "filter_from: 3 -> -1"),
        ("weclip", {"supervision": "masks"}, 'supervision: "pseudo" -> "masks"'),
        ("masks", {"supervision": "pseudo"}, 'supervision: "masks" -> "pseudo"'),
        ("joint", {"gamma": 1.0}, "gamma: 0.1 -> 1.0"),
        ("ssr", {"ckpt": None}, "cams.ckpt: {"),
    ],
)
def test_changed_option_is_one_line_and_changes_nothing(again, steps, name, changed, said, run_train):
    workspace = again(name)
    before = contents(workspace.work)
    with pytest.raises(UsageError) as caught:
        run_train(workspace, name, **changed)
    assert said in str(caught.value)
    assert "--force" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(workspace.work) == before
    assert steps == []


def test_what_labels_are_made_of_is_no_less_a_setting(again, workspace_in, run_train, train_sections):
    workspace = again("ssr")
    changed = train_sections("ssr")
    for other in (
        replace(changed, cams=changed.cams.model_copy(update={"dense_weight": 0.5})),
        replace(changed, refine=changed.refine.model_copy(update={"power": 3})),
        replace(changed, refine=changed.refine.model_copy(update={"min_confidence": 0.3})),
    ):
        with pytest.raises(UsageError, match=r"--force"):
            train.run(workspace, other)
    superpixels.run(workspace_in(workspace.work, force=True), SuperpixelsOptions(segments=9))
    with pytest.raises(UsageError, match=r"superpixels: .*--force"):
        run_train(workspace, "ssr")


@pytest.mark.parametrize("changed", [{"save_every": 3}, {"validate_every": 2}, {"resume": "auto"}], ids=lambda c: next(iter(c)))
def test_options_that_change_no_weight_may_change(again, steps, changed, run_train):
    workspace = again()
    before = contents(workspace.work)
    run_train(workspace, **changed)
    assert contents(workspace.work) == before
    assert steps == []


def test_a_trained_model_may_be_validated_later(again, steps, run_train):
    """Once on each split; the best is that of the split asked for."""
    workspace = again()
    before = contents(workspace.work)
    for split in ("val", "val", "train"):
        run_train(workspace, val_split=split)
        assert contents(workspace.work) == before | {"train/best.safetensors": before["model.safetensors"]}
    assert [line["val_split"] for line in lines(workspace.work) if "val_miou" in line] == ["val", "train"]
    assert steps == []


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("how", ["force", "resume never"])
def test_trained_anew_it_ends_with_the_same_bytes(again, steps, name, how, run_train):
    workspace = again(name, force=how == "force")
    before, told = contents(workspace.work), lines(workspace.work)
    counts = run_train(workspace, name, resume="auto" if how == "force" else "never")
    assert (counts.done, steps) == (6, list(range(6)))
    assert contents(workspace.work) == before
    assert lines(workspace.work) == told


def test_force_with_another_option_clears_what_was_there(again, run_train):
    workspace = again("joint", force=True)
    before = contents(workspace.work)
    (workspace.work / "train/best.safetensors").write_bytes(b"of the training before")
    run_train(workspace, "ssr", seed=1)
    after = contents(workspace.work)
    assert after.keys() == {"model.safetensors", "train/state.safetensors"}
    assert after["model.safetensors"] != before["model.safetensors"]


@pytest.mark.parametrize("name", SETS)
def test_seed_decides(new, trained, name, run_train):
    found = {name: contents(trained[name])["model.safetensors"]}
    for seed in (0, 1):
        workspace = new(f"seed {seed}")
        torch.manual_seed(seed + 7)
        run_train(workspace, name, seed=seed)
        found[f"seed {seed}"] = contents(workspace.work)["model.safetensors"]
    assert found["seed 0"] == found[name]
    assert found["seed 1"] != found[name]


@pytest.mark.parametrize("stops", [(0,), (1, 2), (3,), (5,)], ids=str)
@pytest.mark.parametrize("name", SETS)
def test_stopped_training_goes_on_to_the_same_bytes(new, trained, monkeypatch, name, stops, run_train):
    """Whether it was saved at the step where it stopped or before."""
    step, left = SegmentationTrainer.step, set(stops)

    def stopping(trainer: SegmentationTrainer) -> StepLosses:
        if trainer.iteration in left:
            left.remove(trainer.iteration)
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(SegmentationTrainer, "step", stopping)
    workspace = new()
    for number, _ in enumerate(stops):
        with pytest.raises(KeyboardInterrupt):
            run_train(workspace, name, save_every=1 + number)
        assert manifest(workspace.work)["complete"] is False
    counts = run_train(workspace, name)
    assert left == set()
    assert counts.done + counts.skipped == 6
    assert counts.skipped >= stops[0]
    assert contents(workspace.work) == contents(trained[name])


def test_curves_are_cut_back_to_where_the_training_stands(new, monkeypatch, run_train):
    monkeypatch.setattr("pipelines.training.curves.LOG_EVERY", 1)
    undisturbed, workspace = new("undisturbed"), new()
    run_train(undisturbed, val_split="val", validate_every=2)
    expected = lines(undisturbed.work)
    assert [(line["iteration"], "val_miou" in line) for line in expected] == [
        (1, False), (2, False), (2, True), (3, False), (4, False), (4, True), (5, False), (6, False), (6, True)
    ]  # fmt: skip
    step = SegmentationTrainer.step

    def stopping(trainer: SegmentationTrainer) -> StepLosses:
        if trainer.iteration == 5:
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(SegmentationTrainer, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_train(workspace, val_split="val", validate_every=2)
    with (workspace.work / "train/curves.jsonl").open("a") as file:  # as a run killed between curves and state leaves it
        file.write('{"iteration": 5, "segmentation": 9.0}\n{"iteration": 6, "val_miou": 1.0}\n')
    monkeypatch.setattr(SegmentationTrainer, "step", step)
    run_train(workspace, val_split="val", validate_every=2)
    assert lines(workspace.work) == expected
    assert contents(workspace.work) == contents(undisturbed.work)


def test_damaged_state_is_one_line(again, run_train):
    workspace = again()
    (workspace.work / "train/state.safetensors").write_bytes(b"no state")
    with pytest.raises(UsageError, match="--resume never"):
        run_train(workspace)
    run_train(workspace, resume="never")


def test_state_of_another_training_is_not_taken_over(again, trained, steps, run_train):
    workspace = again("weclip", force=True)
    run_train(workspace, seed=1)
    shutil.copy(trained["weclip"] / "train/state.safetensors", workspace.work / "train/state.safetensors")
    steps.clear()
    run_train(replace(workspace, force=False), seed=1)
    assert steps == list(range(6))


def test_a_loss_that_is_no_number_stops_before_it_is_saved(new, monkeypatch, run_train, steps):
    step, workspace = SegmentationTrainer.step, new()

    def spoilt(trainer: SegmentationTrainer) -> StepLosses:
        losses = step(trainer)
        return losses | {"affinity": float("nan")} if trainer.iteration == 4 else losses

    monkeypatch.setattr(SegmentationTrainer, "step", spoilt)
    with pytest.raises(SsrError, match=r"affinity of step 4 is not a number .*--learning-rate"):
        run_train(workspace)
    assert int(load_file(workspace.work / "train/state.safetensors")["iteration"]) == 2
    assert [line["iteration"] for line in lines(workspace.work)] == [2]


# learning


@pytest.mark.slow
def test_one_photo_is_learnt_by_heart(workspace_in, make_voc, tmp_path, run_train):
    root = tmp_path / "VOC2012"
    make_voc(root, {"a_pair": ((160, 160), ("cat", "dog"))})
    workspace = workspace_in(tmp_path / "w", root=root)
    options = {
        "crop": 160, "min_scale": 1, "max_scale": 1, "flip": False, "batch": 1, "iterations": 400, "warmup": 20, "hidden": 48,
        "learning_rate": 5e-3, "dropout": 0.0, "save_every": 400,
    }  # fmt: skip
    run_train(workspace, "masks", **options)
    predict.run(workspace, PredictOptions(**ONCE))
    found = evaluate.run(workspace, str(workspace.predictions / "train"), EvalOptions(pictures=False), 1.0)[0]
    ious = [iou for iou in found.metrics.per_class_iou.values() if iou is not None]
    assert len(ious) == 3
    assert min(ious) > 0.93
    assert found.report.miou > 0.95

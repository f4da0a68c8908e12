"""`ssr train` on tiny models: what it writes, that it is the same however often it is stopped, and that it learns."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipelines.config import read_recipe
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.weights import resolve_clip
from pipelines.errors import SsrError, TooManyFailures, UsageError
from pipelines.evaluation.confusion import confusion_counts
from pipelines.evaluation.metrics import metrics_from_counts
from pipelines.execution.progress import Silent
from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, EvalOptions, RefineOptions, SuperpixelsOptions
from pipelines.options.train import PredictOptions, TrainOptions
from pipelines.stages import align, evaluate, predict, superpixels, train
from pipelines.stages.segmenter import read_segmenter
from pipelines.stages.train_inputs import TrainInputs, TrainSections
from pipelines.stages.workspace import Workspace
from pipelines.training.processes import Processes
from pipelines.training.segmentation import SegmentationTrainer

SMALL = {
    "crop": 64, "batch": 2, "iterations": 6, "save_every": 2, "warmup": 2, "hidden": 16, "decoder_layers": 1,
    "decoder_heads": 2, "par_iterations": 1, "par_dilations": (1, 2), "learning_rate": 1e-2,
}  # fmt: skip
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    # recipe, changes to [train]
    "ssr": ("ssr", {"ckpt": Path("auto")}),
    "joint": ("ssr", {"ckpt": Path("auto"), "train_heads": True, "prototype_refresh": 4, "accumulate": 2}),
    "weclip": ("weclip", {"clip_layers": 3, "filter_from": 3, "filter_blocks": 2}),
    "masks": ("ssr", {"supervision": "masks"}),
}
ONCE = {"scales": (1.0,), "flip": False, "long_side": 0}


def sections(name: str, **changed: Any) -> TrainSections:
    recipe, own = SETS[name]
    found = read_recipe(recipe)
    return TrainSections(
        TrainOptions(**{**found.get("train", {}), **SMALL, **own, **changed}),
        AlignOptions(),
        CamsOptions(**found["cams"]),
        RefineOptions(**found["refine"]),
    )


def run(workspace: Workspace, name: str = "weclip", **changed: Any) -> train.Counts:
    return train.run(workspace, sections(name, **changed))


def contents(work: Path) -> dict[str, bytes]:
    names = ("model.safetensors", "train/state.safetensors", "train/best.safetensors", "train/cmpa.safetensors")
    return {name: (work / name).read_bytes() for name in names if (work / name).exists()}


def lines(work: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (work / "train/curves.jsonl").read_text().splitlines()]


def manifest(work: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work / "model.json").read_text())
    return found


@pytest.fixture(scope="module")
def prepared(workspace_in, finished, tmp_path_factory) -> Path:
    """A work directory with superpixels and alignment heads. Shared: copy before changing."""
    work = tmp_path_factory.mktemp("prepared") / "work"
    work.mkdir()
    for name in ("superpixels.h5", "superpixels.json"):
        shutil.copy(finished["ssr"] / name, work / name)
    options = AlignOptions(cam="initial", hidden=8, tokens=16, batch=2, iterations=6, refresh=3, learning_rate=1e-2)
    align.run(workspace_in(work), options, CamsOptions(), RefineOptions())
    shutil.rmtree(work / "align")
    return work


@pytest.fixture(scope="module")
def trained(prepared, workspace_in, tmp_path_factory) -> dict[str, Path]:
    """Work directories after a training with each of `SETS`. Shared: copy before changing."""
    works = {}
    for name in SETS:
        works[name] = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("trained") / name))
        counts = run(workspace_in(works[name]), name)
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
def new(prepared, workspace_in, tmp_path) -> Callable[..., Workspace]:
    """A copy of `prepared` by name, as a workspace with options of its own."""

    def make(name: str = "new", **options: Any) -> Workspace:
        if not (tmp_path / name).exists():
            shutil.copytree(prepared, tmp_path / name)
        return workspace_in(tmp_path / name, **options)

    return make


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """The steps that are really taken."""
    taken: list[int] = []
    step = SegmentationTrainer.step

    def counted(trainer: SegmentationTrainer, parts: Any) -> Any:
        taken.append(trainer.iteration)
        return step(trainer, parts)

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
    (line,) = lines(work)
    assert set(line) == {"iteration", "segmentation", "affinity", "prototype", "learning_rate"}
    assert line["iteration"] == 6
    assert line["segmentation"] > 0
    assert (line["affinity"] > 0, line["prototype"] > 0) == (name == "weclip", name == "joint")
    with Image.open(work / "train/curves.png") as picture:
        assert picture.size[0] > 300
    assert {path.name for path in (work / "train").iterdir()} == {
        "state.safetensors", "curves.jsonl", "curves.png", *(["cmpa.safetensors"] if name == "joint" else [])
    }  # fmt: skip
    assert not list(work.rglob("*.tmp"))


@pytest.mark.parametrize("name", SETS)
def test_manifest_tells_what_made_the_model(trained, name):
    told = manifest(trained[name])
    assert (told["stage"], told["complete"]) == ("train", True)
    assert told["counts"] == {"iterations": 6, "done": 6, "skipped": 0, "failed": 0}
    settings = told["settings"]
    assert (settings["hidden"], settings["processes"], settings["precision"]) == (16, 1, "float32")
    assert ("cams" in settings, "refine" in settings, "align" in settings) == (name != "masks", name != "masks", name == "joint")
    assert not {"ckpt", "resume", "save_every", "val_split", "validate_every"} & settings.keys()
    assert str(trained[name]) not in json.dumps(told)


def test_weights_move_and_sets_differ(trained):
    found = {name: load_file(work / "model.safetensors")["fusion.weight"] for name, work in trained.items() if name != "weclip"}
    assert len({tensor.sum().item() for tensor in found.values()}) == 3


def test_heads_that_were_trained_on_are_written_beside_those_of_align(trained, prepared):
    ours, theirs = load_file(trained["joint"] / "train/cmpa.safetensors"), load_file(prepared / "cmpa.safetensors")
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["class_photos"], theirs["class_photos"])
    for key in ("isa.layers.0.weight", "tsa.layers.3.weight", "image_prototypes"):
        assert not torch.equal(ours[key], theirs[key])
    for name in SETS:
        assert (trained[name] / "cmpa.safetensors").read_bytes() == (prepared / "cmpa.safetensors").read_bytes()


def test_trained_on_heads_are_read_again(trained, again):
    """Of another training, for example."""
    workspace = again("joint", force=True)
    run(workspace, "ssr", ckpt=workspace.work / "train/cmpa.safetensors", iterations=1)
    assert manifest(workspace.work)["settings"]["cams"]["ckpt"]["sha256"]


# again


@pytest.mark.parametrize("name", SETS)
def test_second_run_encodes_and_trains_nothing(again, monkeypatch, steps, name):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an encoder ran, or a photo was decoded")

    monkeypatch.setattr(ClipEncoder, "encode", refuse)
    monkeypatch.setattr("pipelines.stages.training_crops.load_image", refuse)
    workspace = again(name)
    before = contents(workspace.work)
    counts = run(workspace, name)
    assert (counts.done, counts.skipped, counts.failed, steps) == (0, 6, 0, [])
    assert contents(workspace.work) == before
    assert manifest(workspace.work)["complete"] is True


def test_a_model_that_was_removed_is_written_again(again, steps):
    workspace = again()
    before = contents(workspace.work)
    workspace.model.unlink()
    run(workspace)
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
def test_changed_option_is_one_line_and_changes_nothing(again, steps, name, changed, said):
    workspace = again(name)
    before = contents(workspace.work)
    with pytest.raises(UsageError) as caught:
        run(workspace, name, **changed)
    assert said in str(caught.value)
    assert "--force" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(workspace.work) == before
    assert steps == []


def test_what_labels_are_made_of_is_no_less_a_setting(again, workspace_in):
    workspace = again("ssr")
    changed = sections("ssr")
    for other in (
        replace(changed, cams=changed.cams.model_copy(update={"dense_weight": 0.5})),
        replace(changed, refine=changed.refine.model_copy(update={"power": 3})),
        replace(changed, refine=changed.refine.model_copy(update={"min_confidence": 0.3})),
    ):
        with pytest.raises(UsageError, match=r"--force"):
            train.run(workspace, other)
    superpixels.run(workspace_in(workspace.work, force=True), SuperpixelsOptions(segments=9))
    with pytest.raises(UsageError, match=r"superpixels: .*--force"):
        run(workspace, "ssr")


@pytest.mark.parametrize(
    "changed", [{"save_every": 3}, {"val_split": "val"}, {"validate_every": 2}, {"resume": "auto"}], ids=lambda c: next(iter(c))
)
def test_options_that_change_no_weight_may_change(again, steps, changed):
    workspace = again()
    before = contents(workspace.work)
    run(workspace, **changed)
    assert contents(workspace.work) == before
    assert steps == []


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("how", ["force", "resume never"])
def test_trained_anew_it_ends_with_the_same_bytes(again, steps, name, how):
    workspace = again(name, force=how == "force")
    before, told = contents(workspace.work), lines(workspace.work)
    counts = run(workspace, name, resume="auto" if how == "force" else "never")
    assert (counts.done, steps) == (6, list(range(6)))
    assert contents(workspace.work) == before
    assert lines(workspace.work) == told


def test_force_with_another_option_clears_what_was_there(again):
    workspace = again("joint", force=True)
    before = contents(workspace.work)
    (workspace.work / "train/best.safetensors").write_bytes(b"of the training before")
    run(workspace, "ssr", seed=1)
    after = contents(workspace.work)
    assert after.keys() == {"model.safetensors", "train/state.safetensors"}
    assert after["model.safetensors"] != before["model.safetensors"]


@pytest.mark.parametrize("name", SETS)
def test_seed_decides(new, trained, name):
    found = {name: contents(trained[name])["model.safetensors"]}
    for seed in (0, 1):
        workspace = new(f"seed {seed}")
        torch.manual_seed(seed + 7)
        run(workspace, name, seed=seed)
        found[f"seed {seed}"] = contents(workspace.work)["model.safetensors"]
    assert found["seed 0"] == found[name]
    assert found["seed 1"] != found[name]


@pytest.mark.parametrize("stops", [(0,), (1, 2), (3,), (5,)], ids=str)
@pytest.mark.parametrize("name", SETS)
def test_stopped_training_goes_on_to_the_same_bytes(new, trained, monkeypatch, name, stops):
    """Whether it was saved at the step where it stopped or before."""
    step, left = SegmentationTrainer.step, set(stops)

    def stopping(trainer: SegmentationTrainer, parts: Any) -> Any:
        if trainer.iteration in left:
            left.remove(trainer.iteration)
            raise KeyboardInterrupt
        return step(trainer, parts)

    monkeypatch.setattr(SegmentationTrainer, "step", stopping)
    workspace = new()
    for number, _ in enumerate(stops):
        with pytest.raises(KeyboardInterrupt):
            run(workspace, name, save_every=1 + number)
        assert manifest(workspace.work)["complete"] is False
    counts = run(workspace, name)
    assert left == set()
    assert counts.done + counts.skipped == 6
    assert counts.skipped >= stops[0]
    assert contents(workspace.work) == contents(trained[name])


def test_curves_are_cut_back_to_where_the_training_stands(new, monkeypatch):
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    undisturbed, workspace = new("undisturbed"), new()
    run(undisturbed, val_split="val", validate_every=2)
    expected = lines(undisturbed.work)
    assert [(line["iteration"], "val_miou" in line) for line in expected] == [
        (1, False), (2, False), (2, True), (3, False), (4, False), (4, True), (5, False), (6, False), (6, True)
    ]  # fmt: skip
    step = SegmentationTrainer.step

    def stopping(trainer: SegmentationTrainer, parts: Any) -> Any:
        if trainer.iteration == 5:
            raise KeyboardInterrupt
        return step(trainer, parts)

    monkeypatch.setattr(SegmentationTrainer, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(workspace, val_split="val", validate_every=2)
    with (workspace.work / "train/curves.jsonl").open("a") as file:  # as a run killed between curves and state leaves it
        file.write('{"iteration": 5, "segmentation": 9.0}\n{"iteration": 6, "val_miou": 1.0}\n')
    monkeypatch.setattr(SegmentationTrainer, "step", step)
    run(workspace, val_split="val", validate_every=2)
    assert lines(workspace.work) == expected
    assert contents(workspace.work) == contents(undisturbed.work)


def test_damaged_curves_are_one_line(again):
    workspace = again()
    (workspace.work / "train/curves.jsonl").write_text("no curves\n")
    with pytest.raises(SsrError, match="line 1: .*remove the file"):
        run(workspace)


def test_damaged_state_is_one_line(again):
    workspace = again()
    (workspace.work / "train/state.safetensors").write_bytes(b"no state")
    with pytest.raises(UsageError, match="--resume never"):
        run(workspace)
    run(workspace, resume="never")


def test_state_of_another_training_is_not_taken_over(again, trained, steps):
    workspace = again("weclip", force=True)
    run(workspace, seed=1)
    shutil.copy(trained["weclip"] / "train/state.safetensors", workspace.work / "train/state.safetensors")
    steps.clear()
    run(replace(workspace, force=False), seed=1)
    assert steps == list(range(6))


# bad photos


def test_a_bad_photo_is_left_out_and_counted_once(new, tiny_voc, tmp_path):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    (root / "JPEGImages/c_bird.jpg").write_text("no photo")
    with pytest.raises(TooManyFailures, match=r"c_bird.*--max-failures allows 0"):
        run(new(root=root), iterations=12)
    workspace = new(root=root, max_failures=1)
    counts = run(workspace, iterations=12)  # four epochs
    assert counts.failed == 1
    told = [json.loads(line) for line in (workspace.work / "failures.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["image"]) for line in told] == [("train", "c_bird")]
    assert manifest(workspace.work)["counts"]["failed"] == 1
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(workspace.model).values())


def test_steps_without_any_photo_are_survived(new, tiny_voc, tmp_path):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    for image_id in tiny_voc.ids[:-1]:
        (root / f"JPEGImages/{image_id}.jpg").write_text("no photo")
    workspace = new(root=root, max_failures=5)
    assert run(workspace, batch=1).failed == 5
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(workspace.model).values())
    (line,) = lines(workspace.work)
    assert np.isfinite(list(line.values())).all()


def no_superpixels(workspace: Workspace, root: Path) -> None:
    from pipelines.stores.array_store import ArrayWriter, iter_records

    records = [(name, array, attributes) for name, (array, attributes) in iter_records(workspace.superpixels)]
    workspace.superpixels.unlink()
    with ArrayWriter(workspace.superpixels) as writer:
        for name, array, attributes in records:
            if name != "c_bird":
                writer.add(name, array, attributes)


def other_size(workspace: Workspace, root: Path) -> None:
    with Image.open(root / "JPEGImages/c_bird.jpg") as image:
        image.resize((70, 70)).save(root / "JPEGImages/c_bird.jpg")


def no_mask(workspace: Workspace, root: Path) -> None:
    (root / "SegmentationClass/c_bird.png").unlink()


def unknown_class(workspace: Workspace, root: Path) -> None:
    Image.fromarray(np.full((80, 80), 21, np.uint8)).save(root / "SegmentationClass/c_bird.png")


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("ssr", no_superpixels, "no superpixels"),
        ("ssr", other_size, r"its superpixels are \(80, 80\), the photo \(70, 70\)"),
        ("masks", no_mask, "c_bird"),
        ("masks", other_size, r"its ground truth is \(80, 80\), the photo \(70, 70\)"),
        ("masks", unknown_class, "a class above 20"),
    ],
)
def test_what_belongs_to_a_photo_may_be_bad_too(new, tiny_voc, tmp_path, name, spoil, said):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    workspace = new(root=root, max_failures=1)
    spoil(workspace, root)
    assert run(workspace, name, iterations=4).failed == 1
    (line,) = [json.loads(line) for line in (workspace.work / "failures.jsonl").read_text().splitlines()]
    assert line["image"] == "c_bird"
    assert re.search(said, line["error"])


def test_photos_without_classes_alone(new, tmp_path):
    """Nothing but background to learn, and nothing to contrast."""
    listed = tmp_path / "none.txt"
    listed.write_text("d_empty\n")
    for name in ("ssr", "joint", "weclip"):
        workspace = new(name, split=str(listed))
        run(workspace, name, iterations=4)
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(workspace.work / "train/state.safetensors").values())


# validation


class Listening(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.statuses: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def status(self, message: str) -> None:
        self.statuses.append(message)


@pytest.mark.parametrize("name", ["ssr", "masks"])
def test_validation_scores_as_eval_scores_what_predict_makes(new, workspace_in, name):
    workspace, progress = new(), Listening()
    train.run(workspace, sections(name, val_split="val", validate_every=2, learning_rate=3e-2), progress)
    scores = {line["iteration"]: line["val_miou"] for line in lines(workspace.work) if "val_miou" in line}
    assert list(scores) == [2, 4, 6]
    assert len(set(scores.values())) > 1
    best = max(scores.values())
    said = [line for line in progress.statuses if line.startswith("mIoU")]
    assert [line.startswith(f"mIoU {100 * score:.2f} on val") for line, score in zip(said, scores.values(), strict=True)]
    bests = [step for step, score in scores.items() if score > max([0.0, *(s for i, s in scores.items() if i < step)])]
    assert ["best so far" in line for line in said] == [step in bests for step in scores]
    models = {workspace.model: scores[6], workspace.work / "train/best.safetensors": best}
    val = workspace_in(workspace.work, split="val")
    for number, (path, score) in enumerate(models.items()):
        output = workspace.work / f"label maps {number}"
        predict.run(val, PredictOptions(model=path, output=output, **ONCE))
        report = evaluate.run(val, str(output), EvalOptions(pictures=False), 1.0)[0].report
        assert report.miou == pytest.approx(score, abs=1e-3)  # logits travel in half precision there
    assert read_segmenter(workspace.work / "train/best.safetensors", resolve_clip_of(workspace)).iteration == bests[-1]


def resolve_clip_of(workspace: Workspace) -> Any:
    return resolve_clip(workspace.clip.model, workspace.clip.pretrained)


def test_validation_is_that_of_a_slow_twin(again, models, tiny_voc):
    from pipelines.datasets.image import load_image
    from pipelines.encoders.image import encoder_input, token_grid
    from pipelines.encoders.weights import build_clip

    workspace = again("masks", force=True)
    run(workspace, "masks", val_split="val")
    (score,) = [line["val_miou"] for line in lines(workspace.work) if "val_miou" in line]
    weights = resolve_clip_of(workspace)
    encoder, decoder = ClipEncoder(build_clip(weights), torch.device("cpu")), read_segmenter(workspace.model, weights).decoder
    total = np.zeros((21, 22), np.int64)
    for image_id in tiny_voc.ids[-2:]:
        image = load_image(tiny_voc.root / f"JPEGImages/{image_id}.jpg")
        grid = token_grid(image.height, image.width, 16)
        tokens = encoder.encode(encoder_input(image, grid, 16, encoder.mean, encoder.std)[None], token_blocks=4).block_tokens
        with torch.no_grad():
            logits = decoder(tokens, grid)[0]
        size = (image.height, image.width)
        found = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].argmax(0)
        with Image.open(tiny_voc.root / f"SegmentationClass/{image_id}.png") as mask:
            total += confusion_counts(found.numpy().astype(np.uint8), np.asarray(mask), 21)
    names = ["background", *workspace.dataset.classes.names]
    assert score == pytest.approx(metrics_from_counts(total, names).miou, abs=1e-4)


def test_validation_does_not_disturb_the_training(new, trained):
    workspace = new()
    run(workspace, val_split="val", validate_every=1)
    assert contents(workspace.work)["model.safetensors"] == contents(trained["weclip"])["model.safetensors"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: shutil.rmtree(root / "SegmentationClass"), "split val has no ground truth .*--val-split"),
        (lambda root: (root / "SegmentationClass/f_car.png").unlink(), "validation stopped at f_car"),
        (lambda root: (root / "JPEGImages/f_car.jpg").write_text(""), "validation stopped at f_car"),
        (
            lambda root: Image.fromarray(np.full((37, 51), 99, np.uint8)).save(root / "SegmentationClass/f_car.png"),
            "validation stopped at f_car: .*99",
        ),
    ],
)
def test_validation_that_cannot_be_is_one_line(new, tiny_voc, tmp_path, spoil, said):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    spoil(root)
    with pytest.raises(SsrError, match=said) as caught:
        run(new(root=root, max_failures=-1), val_split="val")
    assert "\n" not in str(caught.value)
    with pytest.raises(SsrError, match="nowhere"):
        run(new(root=root), val_split="nowhere")


def test_upper_bound_is_called_so(again):
    for name in ("masks", "weclip"):
        progress = Listening()
        train.run(again(name), sections(name), progress)
        assert progress.notes == ([train.UPPER_BOUND] if name == "masks" else [])


# options that do not fit


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("weclip", {"decoder_heads": 3}, "3 attention heads cannot share 16 channels .*--decoder-heads, --hidden"),
        ("weclip", {"min_scale": 2.0, "max_scale": 1.0}, "--min-scale, --max-scale"),
        ("weclip", {"train_heads": True}, "no alignment heads to train .*--ckpt"),
        ("masks", {"train_heads": True, "ckpt": Path("auto")}, "--supervision pseudo"),
        ("weclip", {"crop": 72}, "72 pixels is no multiple of CLIP's patch of 16 .*--crop"),
        ("weclip", {"clip_layers": 5}, "this CLIP has 4 blocks, found 5 .*--clip-layers"),
        ("ssr", {"ckpt": Path("nowhere.safetensors")}, "no checkpoint at nowhere.safetensors .*--ckpt"),
    ],
)
def test_options_that_do_not_fit_are_one_line(new, name, changed, said):
    workspace = new()
    before = sorted(path.name for path in workspace.work.rglob("*"))
    with pytest.raises(UsageError, match=said) as caught:
        run(workspace, name, **changed)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in workspace.work.rglob("*")) == before


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"clip_blocks": 0, "dino_weight": 0.0, "superpixel_mask": "gate"}, "no attention left"),
        ({"dino_weight": 0.0}, "--superpixel-mask cluster needs DINO"),
        ({"dino_blocks": 0}, "--superpixel-mask cluster needs DINO"),
    ],
)
def test_refinement_without_what_it_needs_is_refused_as_by_refine(new, changed, said):
    given = sections("ssr")
    spoilt = replace(given, refine=given.refine.model_copy(update=changed))
    with pytest.raises(UsageError, match=said):
        train.run(new(), spoilt)
    masks = replace(sections("masks", iterations=1), refine=spoilt.refine)
    assert train.run(new(), masks).done == 1  # nobody refines there


def test_without_superpixels_the_command_is_named(workspace_in, tmp_path):
    with pytest.raises(SsrError, match="`ssr superpixels`"):
        run(workspace_in(tmp_path / "w"), "ssr", ckpt=None)
    assert run(workspace_in(tmp_path / "w"), "weclip").done == 6  # needs none


def test_more_processes_than_crops(workspace_in, tmp_path):
    from contextlib import ExitStack

    workspace = workspace_in(tmp_path / "w")
    with ExitStack() as stack, pytest.raises(UsageError, match="3 processes share 2 crops a step .*--batch"):
        TrainInputs(workspace, sections("weclip").checked(workspace), torch.device("cpu"), Processes(0, 3), stack)


# learning


def test_one_photo_is_learnt_by_heart(workspace_in, make_voc, tmp_path):
    root = tmp_path / "VOC2012"
    make_voc(root, {"a_pair": ((160, 160), ("cat", "dog"))})
    workspace = workspace_in(tmp_path / "w", root=root)
    options = {
        "crop": 160, "min_scale": 1, "max_scale": 1, "flip": False, "batch": 1, "iterations": 400, "warmup": 20, "hidden": 48,
        "learning_rate": 5e-3, "dropout": 0.0, "save_every": 400,
    }  # fmt: skip
    run(workspace, "masks", **options)
    predict.run(workspace, PredictOptions(**ONCE))
    found = evaluate.run(workspace, str(workspace.predictions / "train"), EvalOptions(pictures=False), 1.0)[0]
    ious = [iou for iou in found.metrics.per_class_iou.values() if iou is not None]
    assert len(ious) == 3
    assert min(ious) > 0.93
    assert found.report.miou > 0.95

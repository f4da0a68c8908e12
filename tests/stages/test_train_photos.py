"""What `ssr train` does with bad photos, how it validates, and which options it refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.weights import resolve_clip
from pipelines.errors import SsrError, TooManyFailures, UsageError
from pipelines.evaluation.confusion import confusion_counts
from pipelines.evaluation.metrics import metrics_from_counts
from pipelines.method.photo import Crop
from pipelines.models.segmenter import read_segmenter
from pipelines.options.stages import EvalOptions
from pipelines.options.train import PredictOptions
from pipelines.stages import evaluate, predict
from pipelines.stages.train import stage as train
from pipelines.stages.train.inputs import train_inputs
from pipelines.stages.train.settings import train_settings
from pipelines.training.processes import Processes
from pipelines.workdir.workspace import Workspace
from tests.fixtures.heard import Heard
from tests.fixtures.model_files import rewritten

ONCE = {"scales": (1.0,), "flip": False, "long_side": 0}


def lines(work: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (work / "train/curves.jsonl").read_text().splitlines()]


def manifest(work: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work / "model.json").read_text())
    return found


# bad photos


def test_a_bad_photo_is_left_out_and_counted_once(new, tiny_voc, tmp_path, run_train):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    (root / "JPEGImages/c_bird.jpg").write_text("no photo")
    with pytest.raises(TooManyFailures, match=r"c_bird.*--max-failures allows 0"):
        run_train(new(root=root), iterations=12)
    workspace = new(root=root, max_failures=1)
    counts = run_train(workspace, iterations=12)  # four epochs
    assert counts.failed == 1
    told = [json.loads(line) for line in (workspace.work / "failures.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["image"]) for line in told] == [("train", "c_bird")]
    assert manifest(workspace.work)["counts"]["failed"] == 1
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(workspace.model).values())


def test_steps_without_any_photo_are_survived(new, tiny_voc, tmp_path, run_train):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    for image_id in tiny_voc.ids[:-1]:
        (root / f"JPEGImages/{image_id}.jpg").write_text("no photo")
    workspace = new(root=root, max_failures=5)
    assert run_train(workspace, batch=1).failed == 5
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(workspace.model).values())
    assert all(np.isfinite(list(line.values())).all() for line in lines(workspace.work))


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
        ("ssr", other_size, r"its superpixels are \(80, 80\), the image \(70, 70\)"),
        ("masks", no_mask, "c_bird"),
        ("masks", other_size, r"its ground truth is \(80, 80\), the image \(70, 70\)"),
        ("masks", unknown_class, r"expected values 0\.\.20 and 255"),
    ],
)
def test_what_belongs_to_a_photo_may_be_bad_too(new, tiny_voc, tmp_path, name, spoil, said, run_train):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    workspace = new(root=root, max_failures=1)
    spoil(workspace, root)
    assert run_train(workspace, name, iterations=4).failed == 1
    (line,) = [json.loads(line) for line in (workspace.work / "failures.jsonl").read_text().splitlines()]
    assert line["image"] == "c_bird"
    assert re.search(said, line["error"])


def test_photos_without_classes_alone(new, tmp_path, run_train):
    """Nothing but background to learn, and nothing to contrast."""
    listed = tmp_path / "none.txt"
    listed.write_text("d_empty\n")
    for name in ("ssr", "joint", "weclip"):
        workspace = new(name, split=str(listed))
        run_train(workspace, name, iterations=4)
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(workspace.work / "train/state.safetensors").values())


# validation


@pytest.mark.parametrize("name", ["ssr", "masks"])
def test_validation_scores_as_eval_scores_what_predict_makes(new, workspace_in, name, run_train, train_sections):
    workspace, progress = new(), Heard()
    train.run(workspace, train_sections(name, val_split="val", validate_every=2, learning_rate=3e-2), progress)
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
        assert report.miou == pytest.approx(score, abs=1e-9)
    assert read_segmenter(workspace.work / "train/best.safetensors", resolve_clip_of(workspace)).iteration == bests[-1]


def resolve_clip_of(workspace: Workspace) -> Any:
    return resolve_clip(workspace.clip.model, workspace.clip.pretrained)


def test_validation_is_that_of_a_slow_twin(new, models, tiny_voc, run_train):
    from pipelines.datasets.image import load_image
    from pipelines.encoders.image import encoder_input, token_grid
    from pipelines.encoders.weights import build_clip

    workspace = new()
    run_train(workspace, "masks", val_split="val")
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
    assert score == pytest.approx(metrics_from_counts(total, names).miou, abs=2e-3)  # logits in half precision


def test_validation_does_not_disturb_the_training(new, run_train):
    plain, validated = new("plain"), new("validated")
    run_train(plain)
    run_train(validated, val_split="val", validate_every=1)
    assert plain.model.read_bytes() == validated.model.read_bytes()


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
def test_validation_that_cannot_be_is_one_line(new, tiny_voc, tmp_path, spoil, said, run_train):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    spoil(root)
    with pytest.raises(SsrError, match=said) as caught:
        run_train(new(root=root, max_failures=-1), val_split="val")
    assert "\n" not in str(caught.value)
    with pytest.raises(SsrError, match="nowhere"):
        run_train(new(root=root), val_split="nowhere")


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
        (
            "ssr",
            {"clip_layers": 3},
            "last of CLIP's 4 blocks, the decoder's last is block 3 .*--clip-layers 0, or --no-text-class",
        ),
        ("ssr", {"ckpt": Path("nowhere.safetensors")}, "no checkpoint at nowhere.safetensors .*--ckpt"),
    ],
)
def test_options_that_do_not_fit_are_one_line(new, name, changed, said, run_train):
    workspace = new()
    before = sorted(path.name for path in workspace.work.rglob("*"))
    with pytest.raises(UsageError, match=said) as caught:
        run_train(workspace, name, **changed)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in workspace.work.rglob("*")) == before


def test_heads_of_values_make_no_text_classifier(new, run_train):
    workspace = new()
    rewritten(workspace.checkpoint, lambda note: note.update(features="value"))
    with pytest.raises(UsageError, match=r"text classifier reads the output .* value path .*--no-text-classifier") as caught:
        run_train(workspace, "ssr")
    assert "\n" not in str(caught.value)
    assert run_train(workspace, "ssr", text_classifier=False, iterations=1).done == 1


def test_refinement_without_attention_is_refused_as_by_refine(new, train_sections):
    given = train_sections("ssr")
    changed = {"clip_blocks": 0, "dino_weight": 0.0, "superpixel_mask": "gate"}
    spoilt = replace(given, refine=given.refine.model_copy(update=changed))
    with pytest.raises(UsageError, match="no attention left"):
        train.run(new(), spoilt)
    masks = replace(train_sections("masks", iterations=1), refine=spoilt.refine)
    assert train.run(new(), masks).done == 1  # nobody refines there


def test_without_superpixels_the_command_is_named(workspace_in, tmp_path, run_train):
    with pytest.raises(SsrError, match="`ssr superpixels --work "):
        run_train(workspace_in(tmp_path / "w"), "ssr", ckpt=None)
    with pytest.raises(UsageError, match=r"cmpa\.safetensors .*--ckpt"):
        run_train(workspace_in(tmp_path / "w"), "weclip", ckpt=Path("auto"))
    assert run_train(workspace_in(tmp_path / "w"), "weclip").done == 6  # needs none


def test_more_processes_than_crops(workspace_in, tmp_path, train_sections):
    workspace = workspace_in(tmp_path / "w")
    with pytest.raises(UsageError, match=r"3 processes share 2 crops a step .*--batch"):
        train_settings(workspace, train_sections("weclip").checked(workspace), Processes(0, 3))


@pytest.mark.parametrize(
    ("batch", "accumulate", "processes", "sizes"),
    [(4, 1, 1, [4]), (4, 2, 1, [2, 2]), (4, 3, 1, [2, 2]), (5, 2, 1, [3, 2]), (2, 8, 1, [1, 1]), (5, 2, 2, [2, 1])],
    ids=str,
)
def test_crops_of_a_step_are_taken_in_micro_batches(
    workspace_in, tmp_path, batch, accumulate, processes, sizes, train_sections
):
    """None is empty from the start: it would count as one."""
    sections = train_sections("weclip", batch=batch, accumulate=accumulate)
    learnt: list[list[int]] = []

    def learn(crops: Sequence[Crop]) -> None:
        learnt.append([crop.slot for crop in crops])

    skipped: list[None] = []
    with ExitStack() as stack:
        workspace, own = workspace_in(tmp_path / "w"), Processes(0, processes)
        inputs = train_inputs(workspace, sections.checked(workspace), torch.device("cpu"), own, stack)
        _, crops, _ = next(inputs.source.steps(0, own))
    count, size = inputs.source.micro_batches(own)
    trainer = SimpleNamespace(micro_batches=count, skip=lambda: skipped.append(None), step=dict)
    train.take_step(trainer, crops, size, learn)
    assert [len(slots) for slots in learnt] == sizes
    assert [slot for slots in learnt for slot in slots] == list(range(0, batch, processes))
    assert skipped == []
    learnt.clear()
    train.take_step(trainer, crops[:1], size, learn)  # the others were bad
    assert (learnt, len(skipped)) == ([[0]], len(sizes) - 1)

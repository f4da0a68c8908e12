"""Cached views: what is kept is what a training would make on the spot, made once, and refused where it could not be right."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipelines.datasets.classes import VOC12
from pipelines.encoders.clip import ClipEncoder
from pipelines.errors import SsrError, TooManyFailures, UsageError
from pipelines.stages.train import stage as train
from pipelines.stages.train import views as module
from pipelines.stages.train.inputs import TrainInputs, new_decoder, train_inputs
from pipelines.stages.train.settings import TrainSections
from pipelines.stages.train.views import Views
from pipelines.stores.array_store import ArrayReader, iter_records
from pipelines.training.alignment_data import photo_order
from pipelines.training.losses import Targets
from pipelines.training.processes import Processes
from pipelines.training.segmentation import SegmentationTrainer
from pipelines.workdir.workspace import Workspace
from tests.fixtures.heard import Heard


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many crops the encoders saw, call by call."""
    seen: list[int] = []
    encode = ClipEncoder.encode

    def counted(encoder: ClipEncoder, images: torch.Tensor, *others: object) -> object:
        seen.append(len(images))
        return encode(encoder, images, *others)

    monkeypatch.setattr(ClipEncoder, "encode", counted)
    return seen


@pytest.fixture
def on_the_spot(train_sections):
    """Inputs of a training that makes its labels itself, of the same options, and the options."""
    with ExitStack() as stack:

        def make(workspace: Workspace, name: str, **changed: object) -> tuple[TrainInputs, TrainSections]:
            sections = train_sections(name, **changed).checked(workspace)
            return train_inputs(workspace, sections, torch.device("cpu"), Processes(), stack), sections

        yield make


def contents(workspace: Workspace) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((workspace.work / "train").glob("view*.h5"))}


@pytest.mark.parametrize("name", ["views", "weclip", "masks", "sbe"])
def test_views_are_what_the_training_makes_on_the_spot(new, run_train, on_the_spot, name):
    """Tokens and super-class maps to the last of their 16 bits, labels to the pixel."""
    workspace = new()
    run_train(workspace, name, cache_views=3, iterations=1, min_scale=0.5, max_scale=1.5)
    inputs, sections = on_the_spot(workspace, name, cache_views=3, iterations=1, min_scale=0.5, max_scale=1.5)
    tokens, labels, *supers = (dict(iter_records(path)) for path in Views(workspace, sections).paths)
    assert len(supers) == (name == "sbe")
    samples = workspace.dataset.samples
    assert tokens.keys() == labels.keys() == {f"{sample.image_id}.{view}" for sample in samples for view in range(3)}
    for sample in samples:
        for view, crop in enumerate(inputs.source.views(sample, range(3))):
            evidence = inputs.encoders.encode([crop.photo])
            targets = None if inputs.labels is None else inputs.labels([crop], evidence)
            label = crop.target if targets is None else targets.labels[0]
            key = f"{sample.image_id}.{view}"
            assert np.array_equal(tokens[key][0], evidence.clip_block_tokens[:, 0].half().numpy())
            assert np.array_equal(labels[key][0], label.numpy())
            for maps in supers:
                assert np.array_equal(maps[key][0], targets.super_maps[0].half().numpy())
    assert len({array.tobytes() for array, _ in tokens.values()}) == len(tokens)


@pytest.mark.parametrize("name", ["views", "sbe"])
def test_a_training_on_views_is_that_of_its_loop(new, run_train, on_the_spot, name):
    """Every photo shows view e, modulo their number, in epoch e; seven steps are more than two epochs of six photos."""
    workspace = new()
    run_train(workspace, name, iterations=7, accumulate=2, batch=3, dropout=0.3)
    inputs, sections = on_the_spot(workspace, name, iterations=7, accumulate=2, batch=3, dropout=0.3)
    options, samples = sections.train, workspace.dataset.samples
    clip = inputs.encoders.clip
    decoder, project = new_decoder(options, clip, 20, inputs.aligned), clip.tail((1, 1)).project
    assert (decoder.text is not None) == (name == "views")
    trainer = SegmentationTrainer(decoder, options, torch.device("cpu"), micro_batches=2, project=project)
    for step, photos in enumerate(islice(photo_order(6, 3, 0), 7)):
        crops = [inputs.source.views(samples[photo], [step // 2 % 2])[0] for photo in photos]
        for slots in ((0, 1), (2,)):
            evidence = [inputs.encoders.encode([crops[slot].photo]) for slot in slots]
            tokens = torch.cat([one.clip_block_tokens for one in evidence], dim=1).half()
            made = [inputs.labels([crops[slot]], one) for slot, one in zip(slots, evidence, strict=True)]
            targets = Targets(torch.cat([own.labels for own in made]))
            if name == "sbe":
                maps = torch.cat([own.super_maps for own in made]).half().float()
                targets = replace(targets, super_maps=maps, super_of_class=made[0].super_of_class)
            trainer.backward(trainer.forward(tokens, (4, 4), slots), targets)
        trainer.step()
    found = load_file(workspace.model)
    for key, tensor in trainer.decoder.state_dict().items():
        assert torch.equal(found[key], tensor), key


def test_more_views_leave_those_that_are_there(new, run_train, encoded):
    workspace, other = new(), new("other", force=True)
    run_train(workspace, "views", cache_views=1)
    assert encoded == [1] * 6
    workspace = new(force=True)
    run_train(workspace, "views", cache_views=3)
    assert encoded == [1] * 18
    run_train(other, "views", cache_views=3)
    assert contents(workspace) == contents(other)
    encoded.clear()
    run_train(workspace, "views", cache_views=2, learning_rate=1e-3, iterations=8)
    assert encoded == []
    assert contents(workspace) == contents(other)


def test_super_class_maps_come_to_views_that_are_there_and_hurt_none(new, run_train, encoded):
    """Views without the maps are encoded again to make them; a training that needs no maps then reads the views as they are."""
    workspace = new()
    run_train(workspace, "sbe", losses={})
    encoded.clear()
    run_train(new(force=True), "sbe")
    assert encoded == [1] * 12
    before = contents(workspace)
    assert set(before) == {"views.h5", "view_labels.h5", "view_supers.h5"}
    run_train(new(force=True), "sbe", losses={}, iterations=8)
    assert (encoded, contents(workspace)) == ([1] * 12, before)


def test_processes_share_the_views_of_one(new, run_train, train_sections, on_the_spot):
    workspace = new()
    run_train(workspace, "views", batch=5)
    inputs, sections = on_the_spot(workspace, "views", batch=5)
    views = Views(workspace, sections)
    alone = list(islice(views.steps(inputs, 1, Processes()), 3))
    shares = [list(islice(views.steps(inputs, 1, Processes(rank, 2)), 3)) for rank in range(2)]
    for number, (step, kept, _) in enumerate(alone):
        for rank in range(2):
            assert shares[rank][number][0] == step
            for ours, theirs in zip(shares[rank][number][1], kept[rank::2], strict=True):
                assert ours.slot == theirs.slot
                assert torch.equal(ours.tokens, theirs.tokens)
                assert torch.equal(ours.labels, theirs.labels)


# changes


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"crop": 96}, "crop: 64 -> 96"), ({"seed": 1}, "seed: 0 -> 1"), ({"par_iterations": 0}, "par_iterations: 1 -> 0")],
    ids=str,
)
def test_changed_views_are_refused_or_made_again(new, run_train, encoded, changed, said):
    workspace = new()
    run_train(workspace, "views")
    before = contents(workspace)
    workspace.model.with_suffix(".json").unlink()  # as if there had been no training: the views speak for themselves
    encoded.clear()
    with pytest.raises(UsageError, match=rf"views.h5 was made with other options \({said}.*--force"):
        run_train(workspace, "views", **changed)
    assert (encoded, contents(workspace)) == ([], before)
    run_train(new(force=True), "views", **changed)
    assert encoded == [1] * 12
    assert contents(workspace) != before


def test_a_photo_with_other_labels_is_labelled_again(new, run_train, encoded, tiny_voc, tmp_path):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    workspace = new(root=root)
    run_train(workspace, "views")
    annotation = root / "Annotations/a_cat.xml"
    annotation.write_text(annotation.read_text().replace("<name>cat<", "<name>dog<"))
    encoded.clear()
    workspace = new(root=root, force=True)
    run_train(workspace, "views")
    assert encoded == [1, 1]
    with ArrayReader(Views(workspace, None).labels_path) as labels:
        assert labels.attributes("a_cat.1")["labels"] == list(
            next(s.labels for s in workspace.dataset.samples if s.image_id == "a_cat")
        )


def test_a_replaced_photo_is_encoded_again(new, run_train, encoded, tiny_voc, tmp_path):
    """Where superpixels are used, those of the old photo are refused first."""
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    workspace = new(root=root)
    run_train(workspace, "weclip", cache_views=2, iterations=1)
    photo = root / "JPEGImages/a_cat.jpg"
    with Image.open(photo) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photo)
    before = contents(workspace)
    encoded.clear()
    run_train(new(root=root, force=True), "weclip", cache_views=2, iterations=1)
    assert encoded == [1, 1]
    assert contents(workspace) != before
    with pytest.raises(TooManyFailures, match="its image was replaced after its superpixels were made"):
        run_train(new(root=root, force=True), "views")


def test_a_bad_photo_has_no_views(new, run_train, tiny_voc, tmp_path):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    (root / "JPEGImages/c_bird.jpg").write_text("no photo")
    workspace = new(root=root, max_failures=1)
    assert run_train(workspace, "views", iterations=12).failed == 1
    assert {name for name, _ in iter_records(Views(workspace, None).tokens_path)}.isdisjoint({"c_bird.0", "c_bird.1"})


# refusals


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("joint", {}, r"heads that are trained change the labels.*--no-train-heads"),
        ("weclip", {}, r"the decoder's filter changes the labels.*--filter-from -1"),
        ("ssr", {"losses": {"own": 0.5}}, r"loss 'own' may read the crops.*--loss own=0"),
        ("ssr", {"cache_limit": 1e-5}, r"2 views of 6 images take 0\.074 MB, more than the 1e-05 GB allowed.*--cache-limit"),
    ],
)
def test_what_cannot_be_cached_is_one_line(new, run_train, monkeypatch, name, changed, said):
    from pipelines.training.losses import LOSSES, Loss

    monkeypatch.setitem(LOSSES, "own", Loss("own", lambda _: (torch.zeros(1), torch.zeros(1))))
    workspace = new()
    with pytest.raises(UsageError, match=said) as caught:
        run_train(workspace, name, cache_views=2, **changed)
    assert "\n" not in str(caught.value)
    assert contents(workspace) == {}
    assert not workspace.model.exists()


def test_one_super_class_meets_no_other(new, run_train, tmp_path):
    entries = ", ".join(f"{{name = '{name}', super = 'thing'}}" for name in VOC12.names)
    (tmp_path / "one.toml").write_text(f"classes = [{entries}]")
    workspace = new()
    options = workspace.dataset_options.model_copy(update={"classes": tmp_path / "one.toml"})
    with pytest.raises(UsageError, match=r"of which there must be two; the class list has one.*--loss sbe=0"):
        run_train(replace(workspace, dataset_options=options), "sbe")
    assert contents(workspace) == {}


def test_a_filter_that_never_begins_changes_nothing(new, run_train):
    assert run_train(new(), "weclip", cache_views=1, filter_from=6).done == 6


def test_too_little_disk_is_said_before_anything_is_written(new, train_sections, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 0, 90_000))
    heard, workspace = Heard(), new()
    with pytest.raises(SsrError, match=r"2 views of 6 images take 0\.074 MB and twice that.*0\.09 MB are free"):
        train.run(workspace, train_sections("views"), heard)
    monkeypatch.undo()
    train.run(workspace, train_sections("views"), heard)
    assert any("2 views of 6 images take" in str(note) for note in heard.notes)

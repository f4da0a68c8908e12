"""CAMs through alignment heads: untrained heads change nothing, few photos trust plain CLIP, a wrong checkpoint is one line."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from pipelines.datasets.classes import VOC12, ClassList
from pipelines.encoders.weights import resolve_clip
from pipelines.errors import UsageError
from pipelines.method import composition, readouts
from pipelines.method.aligned import ALIGNED_READOUTS
from pipelines.models.alignment import AlignmentHeads
from pipelines.models.alignment_file import Alignment, identity, read_alignment, write_alignment
from pipelines.ops.scaling import min_max
from pipelines.options.stages import CamsOptions
from pipelines.stages import cams
from pipelines.stores.array_store import iter_records

CPU = torch.device("cpu")
PLAIN = CamsOptions(aligned_superpixel_share=0, superpixel_share=0)
SURE = PLAIN.model_copy(update={"few_photos": 0.0})


def alignment(trained: bool = False, features: str = "output", photos: int = 50, temperature: float = 0.02) -> Alignment:
    """Heads as they are before the training, or turned far away from that."""
    torch.manual_seed(5)
    heads = AlignmentHeads(32, 8, True, temperature, learn_temperature=False).eval()
    if trained:
        for head in (heads.isa, heads.tsa):
            torch.nn.init.normal_(head.layers[3].weight, std=0.5)
            head.layers[1].running_mean.normal_()
    return Alignment(heads.requires_grad_(False), features, torch.full((20,), photos), torch.ones(20), torch.zeros(20, 32))


def changed(options: CamsOptions, **values: object) -> CamsOptions:
    return options.model_copy(update=values)


# untrained heads


@pytest.mark.parametrize("aligned_scale", [None, 7.0])
@pytest.mark.parametrize("image_id", ["b_trio", "e_pair", "f_car"])
def test_untrained_dense_is_a_softmax_over_cosines_of_clips_features(clip, image_id, aligned_scale):
    made = alignment(temperature=0.1)
    options = changed(SURE, aligned_scale=aligned_scale)
    of = clip.extractor(options, made)
    photo = of.load(clip.samples[image_id])
    found = of.cams([photo])[0].flatten(1)
    tokens_cls = clip.encoder.encode(photo.inputs[0][None]).tokens_cls
    with torch.no_grad():
        output = clip.encoder.model.ln_post(clip.encoder.blocks[-1](tokens_cls)[0, 1:]) @ clip.encoder.model.proj  # (N, E)
    labels = photo.sample.labels
    words = [clip.text.classes[label] for label in labels] + list(clip.text.background)
    scale = aligned_scale or 10.0
    rows = [
        torch.tensor([(scale * torch.cosine_similarity(patch, word, dim=0)).item() for word in words]).softmax(0)
        for patch in output
    ]
    expected = min_max(torch.stack(rows)[:, : len(labels)].T)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("image_id", ["b_trio", "f_car"])
def test_untrained_gradcam_at_ln_1_is_plain_gradcam(clip, image_id):
    options = changed(
        SURE, aligned_readout="gradcam", aligned_layer="ln_1", aligned_relu=True, aligned_scale=clip.encoder.logit_scale
    )
    found, plain = clip.cam(image_id, options, alignment()), clip.cam(image_id, PLAIN)
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=0)
    assert (clip.cam(image_id, options, alignment(trained=True)) - plain).abs().max() > 0.05


def test_value_features_are_read_where_the_heads_were_trained_on_them(clip):
    """Untrained heads on the value path are the plain dense read-out."""
    options = changed(SURE, readout="dense", dense_scale=12.0, aligned_scale=12.0)
    plain = clip.cam("b_trio", options)
    torch.testing.assert_close(clip.cam("b_trio", options, alignment(features="value")), plain, atol=1e-4, rtol=0)
    assert (clip.cam("b_trio", options, alignment()) - plain).abs().max() > 0.05


# weight of the aligned CAM


@pytest.mark.parametrize(
    ("photos", "few", "trust"), [(0, 20.0, 0.0), (20, 20.0, 0.5), (60, 20.0, 0.75), (0, 0.0, 1.0), (3, 0.0, 1.0)]
)
def test_weight_grows_with_the_photos_of_a_class(clip, photos, few, trust):
    weight = clip.extractor(changed(PLAIN, few_photos=few), alignment(photos=photos)).encoders.alignment.class_weight
    assert weight.tolist() == pytest.approx([trust] * 20)


@pytest.mark.parametrize("readout", ["gradcam", "dense", "mix"])
def test_a_class_without_photos_gives_the_plain_cam_of_its_class_alone(clip, readout):
    made = alignment(trained=True)
    made.class_photos[14] = 0  # person
    made.class_photos[11] = 60  # dog
    options = changed(PLAIN, readout=readout, few_photos=20.0)
    found, plain = clip.cam("b_trio", options, made), clip.cam("b_trio", options)
    aligned = clip.cam("b_trio", changed(options, few_photos=0.0), made)
    bird, dog, person = range(3)
    assert clip.samples["b_trio"].labels == (2, 11, 14)
    assert torch.equal(found[person], plain[person])
    assert not torch.equal(aligned[person], plain[person])
    for index, share in ((bird, 50 / 70), (dog, 0.75)):
        expected = min_max((share * aligned[index] + (1 - share) * plain[index]).flatten()).view_as(plain[index])
        torch.testing.assert_close(found[index], expected, atol=1e-5, rtol=0)
        assert (found[index] - plain[index]).abs().max() > 0.01


@pytest.mark.parametrize("readout", ["gradcam", "dense", "mix"])
def test_the_plain_map_is_left_out_where_its_share_is_small(clip, readout, monkeypatch):
    """By class alone, whatever else is in the photo; and no gradient is taken for a photo that needs none."""
    monkeypatch.setattr(composition, "PLAIN_SHARE", 0.1)
    made = alignment(trained=True, photos=10)  # plain share 1/11
    options = changed(PLAIN, readout=readout, few_photos=1.0)
    found, aligned = (clip.cam("b_trio", changed(options, few_photos=few), made) for few in (1.0, 0.0))
    assert torch.equal(found, aligned)
    made.class_photos[11] = 8  # dog, 1/9
    asked = []
    gradcam = readouts.softmax_gradcam
    monkeypatch.setattr(readouts, "softmax_gradcam", lambda *args, **named: asked.append(args[6]) or gradcam(*args, **named))
    found, plain = clip.cam("b_trio", options, made), clip.cam("b_trio", options)
    bird, dog, person = range(3)
    assert torch.equal(found[[bird, person]], aligned[[bird, person]])
    expected = min_max((8 / 9 * aligned[dog] + 1 / 9 * plain[dog]).flatten()).view_as(plain[dog])
    torch.testing.assert_close(found[dog], expected, atol=1e-5, rtol=0)
    if readout != "dense":
        assert [targets.nonzero()[:, 1].tolist() for targets in asked] == [[11], [2, 11, 14]]  # through heads, plain


def test_a_class_that_the_heads_cannot_find_keeps_the_plain_cam(clip):
    made = replace(alignment(photos=30), average_precision=torch.tensor([0.89, 0.91] * 10))
    options = changed(PLAIN, few_photos=10.0, min_average_precision=0.9)
    assert clip.extractor(options, made).encoders.alignment.class_weight.tolist() == pytest.approx([0, 0.75] * 10)


def test_few_photos_zero_is_exactly_the_aligned_cam(clip):
    """Whatever plain CLIP's read-out says, and whoever was seen."""
    made = alignment(trained=True, photos=0)
    of = clip.extractor(SURE, made)
    photo = of.load(clip.samples["b_trio"])
    expected = min_max(ALIGNED_READOUTS[SURE.aligned_readout].call(of.encoders.encode([photo]), SURE))
    for readout in ("gradcam", "dense"):
        found = clip.cam("b_trio", changed(SURE, readout=readout), made)
        assert torch.equal(found.flatten(1), expected)


# read-outs


@pytest.mark.parametrize("layer", ["features", "ln_1"])
@pytest.mark.parametrize("features", ["output", "value"])
@pytest.mark.parametrize("through_heads", [True, False])
def test_mix_is_the_weighted_sum_of_its_parts(clip, layer, features, through_heads):
    made = alignment(trained=True, features=features) if through_heads else None
    options, names = (
        changed(SURE, aligned_layer=layer, aligned_dense_weight=0.25, dense_weight=0.25),
        ("dense", "gradcam", "mix"),
    )
    parts = {name: clip.cam("e_pair", changed(options, readout=name, aligned_readout=name), made) for name in names}
    expected = min_max((0.25 * parts["dense"] + 0.75 * parts["gradcam"]).flatten(1)).view_as(parts["mix"])
    torch.testing.assert_close(parts["mix"], expected, atol=1e-5, rtol=0)
    assert (parts["dense"] - parts["gradcam"]).abs().max() > 0.05


@pytest.mark.parametrize("readout", ["dense", "gradcam"])
@pytest.mark.parametrize("through_heads", [True, False])
def test_scales_and_flip_are_the_mean_of_their_passes(clip, readout, through_heads):
    made = alignment(trained=True) if through_heads else None
    options = changed(PLAIN, readout=readout, aligned_readout=readout, few_photos=30.0)
    both = clip.extractor(changed(options, scales=(1.0, 2.0), flip=True), made)
    photo = both.load(clip.samples["b_trio"])
    found = both.cams([photo])[0]
    total = torch.zeros_like(found)
    for index, scale in enumerate((1.0, 2.0)):
        single = clip.extractor(changed(options, scales=(scale,)), made)
        for mirrored in (False, True):
            one = replace(single.load(photo.sample), grid=photo.grids[index])
            one = replace(one, inputs=tuple(x.flip(-1) for x in one.inputs)) if mirrored else one
            maps = single.cams([one])[0]
            maps = maps.flip(-1) if mirrored else maps
            total += F.interpolate(maps[None], size=found.shape[1:], mode="bilinear")[0]
    torch.testing.assert_close(found, min_max(total.flatten(1)).view_as(total), atol=1e-4, rtol=0)
    assert (found - clip.cam("b_trio", options, made)).abs().max() > 0.01


def test_superpixels_smooth_the_projected_patches(clip, finished):
    """With share 1 all patches of one superpixel say the same; with share 0 superpixels do nothing."""
    superpixels = torch.arange(96).repeat(64, 1).numpy() // 48  # left and right half of 96 x 64
    made, found = alignment(trained=True), {}
    for share in (0.0, 1.0):
        of = clip.extractor(changed(SURE, aligned_superpixel_share=share), made)
        found[share] = of.cams([of.load(clip.samples["e_pair"], superpixels)])[0]
    torch.testing.assert_close(found[0.0], clip.cam("e_pair", SURE, made), atol=1e-5, rtol=0)
    for half in (found[1.0][..., :3], found[1.0][..., 3:]):
        torch.testing.assert_close(half.flatten(1), half[:, :1, :1].flatten(1).expand(-1, half[0].numel()), atol=1e-3, rtol=0)
    assert (found[1.0][..., 0] - found[1.0][..., -1]).abs().min() > 0.9


@pytest.mark.parametrize("options", [
    {}, {"aligned_readout": "gradcam"}, {"aligned_readout": "mix", "aligned_layer": "ln_1", "readout": "mix"},
    {"scales": (0.5, 1.0), "flip": True}, {"aligned_superpixel_share": 0.5},
])  # fmt: skip
def test_batches_of_four_equal_single_images(workspace_in, workspace, clip, tmp_path, options):
    path = tmp_path / "cmpa.safetensors"
    write_alignment(path, alignment(trained=True, photos=30), identity(clip.weights, VOC12, clip.text))
    found = []
    for size in (1, 4):
        place = replace(workspace_in(workspace.work, batch_size=size), force=True)
        cams.run(place, changed(PLAIN, ckpt=path, **options))
        found.append({image_id: torch.from_numpy(array).float() for image_id, (array, _) in iter_records(place.cams)})
    assert len(found[0]) == 6
    for image_id, single in found[0].items():
        torch.testing.assert_close(found[1][image_id], single, atol=1e-3, rtol=0)


def test_another_checkpoint_is_another_cam(workspace, clip, tmp_path):
    path = tmp_path / "cmpa.safetensors"
    write_alignment(path, alignment(), identity(clip.weights, VOC12, clip.text))
    options = changed(PLAIN, ckpt=path)
    with pytest.raises(UsageError, match=r"ckpt: null -> .*--force"):
        cams.run(workspace, options)
    forced = replace(workspace, force=True)
    assert cams.run(forced, options).done == 6
    assert cams.run(workspace, options).skipped == 6
    write_alignment(path, alignment(trained=True), identity(clip.weights, VOC12, clip.text))
    with pytest.raises(UsageError, match=r"\(ckpt.sha256: .*--force"):
        cams.run(workspace, options)


# checkpoints


@pytest.fixture
def written(clip, tmp_path) -> Path:
    path = tmp_path / "cmpa.safetensors"
    made = alignment(trained=True, features="value", temperature=0.03)
    made.class_photos[3] = 7
    write_alignment(path, made, identity(clip.weights, VOC12, clip.text))
    return path


def test_what_was_written_is_read(clip, written):
    made, read = (
        alignment(trained=True, features="value", temperature=0.03),
        read_alignment(written, clip.weights, VOC12, clip.text),
    )
    assert read.features == "value"
    assert read.class_photos.tolist() == [50] * 3 + [7] + [50] * 16
    assert not read.heads.training
    assert read.heads.temperature.item() == pytest.approx(0.03)
    for name, tensor in made.heads.state_dict().items():
        assert torch.equal(read.heads.state_dict()[name], tensor), name


def refused(clip, path: Path, classes: ClassList = VOC12, **other: object) -> str:
    """The one line; it names the flag and the file."""
    with pytest.raises(UsageError) as caught:
        read_alignment(path, other.get("weights", clip.weights), classes, other.get("text", clip.text))
    said = str(caught.value)
    assert "\n" not in said
    assert "--ckpt" in said
    assert str(path) in said
    return said


def test_the_state_of_a_training_is_no_checkpoint(clip, tmp_path):
    from pipelines.stores.checkpoint import write_checkpoint

    write_checkpoint(tmp_path / "state.safetensors", {"iteration": torch.tensor(3)}, {"owner": "x"})
    assert "does not hold alignment heads" in refused(clip, tmp_path / "state.safetensors")


def test_another_clip(clip, written, models):
    other = dataclasses.replace(clip, weights=resolve_clip(clip.options.model, str(models.full)))
    assert "another CLIP" in refused(other, written)


@pytest.mark.parametrize("names", [VOC12.names[::-1], ("cat", *(f"c{n}" for n in range(19))), VOC12.names[:19]])
def test_another_class_list(clip, written, names):
    said = refused(clip, written, ClassList(names, names, ("ground",)))
    assert "another class list" in said
    assert "ssr align" in said


@pytest.mark.parametrize("part", [0, 1])
def test_another_text_bank(clip, written, part):
    sources = tuple("other" if index == part else source for index, source in enumerate(clip.text.sources))
    other = dataclasses.replace(clip.text, sources=sources)
    assert "other class or background embeddings" in refused(clip, written, text=other)


def content(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        note = json.loads(file.metadata()["note"])
        del note["sha256"]  # of what it held before
        return {name: file.get_tensor(name) for name in file.keys()}, {"note": json.dumps(note)}  # noqa: SIM118


SPOILT = {
    "of another width": lambda t: t | {"isa.layers.0.weight": torch.zeros(8, 16)},
    "of two widths inside": lambda t: t | {"tsa.layers.0.weight": torch.zeros(4, 32)},
    "flat": lambda t: t | {"isa.layers.0.weight": torch.zeros(256)},
    "a tensor too few": lambda t: {k: v for k, v in t.items() if k != "isa.layers.3.bias"},
    "a tensor too many": lambda t: t | {"more": torch.zeros(1)},
    "no first layer": lambda t: {k: v for k, v in t.items() if k != "isa.layers.0.weight"},
    "no counts": lambda t: {k: v for k, v in t.items() if k != "class_photos"},
    "no prototypes": lambda t: {k: v for k, v in t.items() if k != "image_prototypes"},
    "counts of other classes": lambda t: t | {"class_photos": torch.ones(19, dtype=torch.int64)},
    "NaN": lambda t: t | {"isa.layers.3.bias": torch.full((32,), float("nan"))},
    "infinite": lambda t: t | {"tsa.layers.3.weight": torch.full((32, 8), float("inf"))},
    "temperature of none": lambda t: t | {"log_temperature": torch.tensor(float("nan"))},
    "a scalar": lambda t: t | {"isa.layers.0.weight": torch.tensor(1.0)},
    "counts that are NaN": lambda t: t | {"class_photos": torch.full((20,), float("nan"))},
    "counts below zero": lambda t: t | {"class_photos": torch.full((20,), -20)},
    "prototypes that are NaN": lambda t: t | {"image_prototypes": torch.full((20, 32), float("nan"))},
}


@pytest.mark.parametrize("damage", SPOILT)
def test_tensors_that_are_not_those_of_heads(clip, written, damage):
    tensors, metadata = content(written)
    save_file(SPOILT[damage](tensors), written, metadata=metadata)
    assert "damaged" in refused(clip, written)


@pytest.mark.parametrize("note", [
    {"features": "other"}, {"features": None}, {"residual": ...}, {"features": ...}, {"belongs_to": ...}, {"belongs_to": 3},
    {"features": ["value"]},
])  # fmt: skip
def test_notes_that_are_not_ours(clip, written, note):
    tensors, metadata = content(written)
    told = {k: v for k, v in (json.loads(metadata["note"]) | note).items() if v is not ...}
    save_file(tensors, written, metadata={"note": json.dumps(told)})
    refused(clip, written)

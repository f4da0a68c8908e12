"""CMPA's loss against its formula in loops over photos, slots, patches and prototypes."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.models.alignment import AlignmentHeads
from pipelines.options.align import AlignOptions
from pipelines.training.alignment_loss import Batch, Prototypes, alignment_loss

EMBED, CLASSES, WORDS, PATCHES = 6, 5, 3, 4
SLOTS = [[3, -1, -1], [0, 1, 3], [1, 4, -1]]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def heads() -> AlignmentHeads:
    """Trained heads: nothing in them is 0 or 1."""
    heads = AlignmentHeads(EMBED, 8, True, 0.3, learn_temperature=True).double()
    for seed, parameter in enumerate([*heads.isa.parameters(), *heads.tsa.parameters()]):
        nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(seed))
    return heads


@pytest.fixture
def batch() -> Batch:
    classes = torch.tensor(SLOTS)
    cams = torch.rand(3, 3, PATCHES, generator=torch.Generator().manual_seed(20), dtype=torch.float64)
    cams[classes < 0] = 0
    return Batch(drawn(3, PATCHES, EMBED, seed=21), cams, classes, torch.tensor([[2, 0, 0], [1, 1, 0], [0, 2, 0]]))


def prototypes(kind: str) -> Prototypes:
    if kind == "class":
        image = F.normalize(drawn(CLASSES, EMBED, seed=22), dim=1)
        image[2] = 0  # without samples
        return Prototypes(image)
    image, text = F.normalize(drawn(3, EMBED, seed=23), dim=1), F.normalize(drawn(2, EMBED, seed=24), dim=1)
    return Prototypes(image, text, torch.tensor([1, 0, 0, 1, 0]))


def text(words: int = WORDS) -> Tensor:
    return F.normalize(drawn(CLASSES + words, EMBED, seed=25), dim=1)


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def miss(feature: Tensor, rows: list[Tensor], wanted: list[int], temperature: Tensor) -> Tensor:
    odds = [(torch.dot(feature, row) / temperature).exp() for row in rows]
    return -(sum(odds[index] for index in wanted) / sum(odds)).log()


def mean(terms: list[Tensor]) -> Tensor:
    return sum(terms) / len(terms)


def slow_loss(heads: AlignmentHeads, batch: Batch, text: Tensor, against: Prototypes, options: AlignOptions) -> Tensor:
    temperature = heads.log_temperature.exp()
    projected = heads.isa(batch.tokens.view(-1, EMBED)).view(batch.tokens.shape)
    words = [unit(row) for row in heads.tsa(text)]
    background = list(range(CLASSES, len(words)))
    to_text, to_image, to_own_image, to_own_text, distance, outside_terms, patch_terms = ([] for _ in range(7))
    for photo, slots in enumerate(batch.classes.tolist()):
        tokens, cams = projected[photo], batch.cams[photo]
        for slot, own in enumerate(slots):
            if own < 0:
                continue
            feature = unit(sum(cams[slot, t] ** options.cam_power * tokens[t] for t in range(PATCHES)))
            if against.text is None:
                text_rows, text_row, image_row = words, own, own
            else:
                text_rows = [*against.text, *words[CLASSES:]]
                text_row, image_row = int(against.text_clusters[own]), int(batch.image_clusters[photo, slot])
            to_text.append(miss(feature, text_rows, [text_row], temperature))
            to_own_image.append(miss(feature, list(against.image), [image_row], temperature))
            to_image.append(miss(words[own], list(against.image), [image_row], temperature))
            to_own_text.append(miss(words[own], text_rows, [text_row], temperature))
            distance.append(1 - torch.dot(feature, words[own]))
        unknown = torch.zeros(PATCHES) if batch.unknown is None else batch.unknown[photo]
        left = [1 - max(unknown[t], *(cams[slot, t] for slot in range(len(slots)))) for t in range(PATCHES)]
        if background:
            feature = unit(sum(left[t] * tokens[t] for t in range(PATCHES)))
            outside_terms.append(miss(feature, words, background, temperature))
        for t in range(PATCHES):
            token, term = unit(tokens[t]), torch.zeros((), dtype=torch.float64)
            for slot, own in enumerate(slots):
                if own >= 0:
                    term = term + cams[slot, t] ** options.cam_power * miss(token, words, [own], temperature)
            patch_terms.append(term + left[t] * miss(token, words, background, temperature) if background else term)
    if options.loss == "direct":
        return mean(distance)
    if options.loss == "intra":
        return mean(to_own_image) + mean(to_own_text)
    apart = [miss(words[c], words[:CLASSES], [c], temperature) for c in range(CLASSES)]
    loss = mean(to_text) + mean(to_image) + options.separation * mean(apart) + options.token_contrast * mean(patch_terms)
    return loss + options.background * mean(outside_terms) if outside_terms else loss


OPTIONS = [
    pytest.param({"loss": "cross"}, WORDS, id="cross"),
    pytest.param({"loss": "cross", "background": 0, "token_contrast": 0}, WORDS, id="cross alone"),
    pytest.param({"loss": "cross", "background": 0.7, "token_contrast": 0}, WORDS, id="background"),
    pytest.param({"loss": "cross", "background": 0, "token_contrast": 0.7}, WORDS, id="patches"),
    pytest.param({"loss": "cross", "separation": 0.7}, WORDS, id="separation"),
    pytest.param({"loss": "cross", "cam_power": 1, "separation": 0.2}, 0, id="no background words"),
    pytest.param({"loss": "intra"}, WORDS, id="intra"),
    pytest.param({"loss": "direct", "cam_power": 0.5}, WORDS, id="direct"),
]


@pytest.mark.parametrize("unknown", [False, True], ids=["", "unknown patches"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", ["class", "kmeans"])
@pytest.mark.parametrize(("options", "words"), OPTIONS)
def test_same_as_its_formula(heads, batch, kind, options, words, train, unknown):
    options = AlignOptions(**options)
    if unknown:
        drawn_unknown = torch.rand(3, PATCHES, generator=torch.Generator().manual_seed(26), dtype=torch.float64)
        batch = dataclasses.replace(batch, unknown=drawn_unknown)
    heads.train(train)
    twin = copy.deepcopy(heads)
    found = alignment_loss(heads, batch, text(words), CLASSES, prototypes(kind), options)
    expected = slow_loss(twin, batch, text(words), prototypes(kind), options)
    assert found.shape == ()
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    for (name, ours), theirs in zip(heads.named_parameters(), twin.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None or not ours.grad.any(), name
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    assert all(p.grad is not None and p.grad.any() for p in (heads.isa.layers[3].weight, heads.tsa.layers[3].weight))


@pytest.mark.parametrize("loss", ["cross", "intra", "direct"])
@pytest.mark.parametrize("kind", ["class", "kmeans"])
def test_empty_slots_do_not_matter(heads, batch, kind, loss):
    options, heads = AlignOptions(loss=loss, separation=0.1), heads.eval()
    wider = Batch(
        batch.tokens,
        F.pad(batch.cams, (0, 0, 0, 2)),
        F.pad(batch.classes, (0, 2), value=-1),
        F.pad(batch.image_clusters, (0, 2)),
    )
    found = [alignment_loss(heads, its, text(), CLASSES, prototypes(kind), options) for its in (batch, wider)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("loss", ["cross", "intra", "direct"])
def test_photos_without_any_slot_are_those_with_empty_ones(heads, batch, loss):
    found = []
    for slots in (0, 2):
        classes = torch.full((3, slots), -1)
        empty = Batch(batch.tokens, batch.cams[:, :slots] * 0, classes, torch.zeros_like(classes))
        found.append(alignment_loss(heads.eval(), empty, text(), CLASSES, prototypes("class"), AlignOptions(loss=loss)))
    assert found[0].isfinite()
    torch.testing.assert_close(found[0], found[1])


def test_pixels_covered_everywhere_leave_no_background(heads, batch):
    options = AlignOptions(token_contrast=0)
    full = Batch(batch.tokens, torch.ones_like(batch.cams), batch.classes.clamp_min(0), batch.image_clusters)
    found = alignment_loss(heads, full, text(), CLASSES, prototypes("class"), options)
    assert found.isfinite()
    found.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in heads.parameters())


def test_noise_moves_the_embeddings_of_samples_and_nothing_else(heads, batch):
    """With ``direct``, the mean distance to each sample's own disturbed embedding, one by one."""
    heads.eval()
    noise = drawn(3, 3, EMBED, seed=30)
    options = AlignOptions(loss="direct")
    found = alignment_loss(heads, batch, text(), CLASSES, prototypes("class"), options, noise)
    distances = []
    for photo, slot in zip(*torch.nonzero(batch.classes >= 0, as_tuple=True), strict=True):
        weights = batch.cams[photo, slot] ** options.cam_power
        image = unit((weights[:, None] * heads.isa(batch.tokens[photo])).sum(dim=0))
        own = heads.tsa((text()[batch.classes[photo, slot]] + noise[photo, slot])[None])[0]
        distances.append(1 - torch.dot(image, unit(own)))
    torch.testing.assert_close(found, mean(distances))
    still = alignment_loss(heads, batch, text(), CLASSES, prototypes("class"), options, torch.zeros_like(noise))
    torch.testing.assert_close(still, alignment_loss(heads, batch, text(), CLASSES, prototypes("class"), options))


def test_padding_is_neither_class_nor_background():
    torch.manual_seed(0)
    heads = AlignmentHeads(8, 8, True, 0.05, learn_temperature=False).eval()
    text = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
    tokens, cams = torch.randn(2, 6, 8), torch.rand(2, 1, 6)
    cams[:, :, 4:] = 0
    classes, clusters = torch.tensor([[0], [1]]), torch.zeros(2, 1, dtype=torch.int64)
    valid = torch.arange(6).expand(2, -1) < 4
    prototypes = Prototypes(text[:3])

    def loss(tokens: torch.Tensor, valid: torch.Tensor | None) -> float:
        batch = Batch(tokens, cams, classes, clusters, valid)
        return alignment_loss(heads, batch, text, 3, prototypes, AlignOptions()).item()

    other = tokens.clone()
    other[:, 4:] = torch.randn(2, 2, 8)
    assert loss(tokens, valid) == pytest.approx(loss(other, valid))
    assert loss(tokens, None) != pytest.approx(loss(other, None))

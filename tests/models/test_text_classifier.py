"""The text classifier: that of the heads it is made of, word by word; what it leaves out; a training never moves it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.models.alignment import AlignmentHeads
from pipelines.models.decoder import SegmentationDecoder
from pipelines.models.text_classifier import TextClassifier
from pipelines.options.train import TrainOptions
from pipelines.training.losses import Targets
from pipelines.training.segmentation import SegmentationTrainer

CLASSES, WORDS, WIDTH, SCALE, THRESHOLD = 3, 2, 6, 5.0, 0.6


def made_of(residual: bool) -> tuple[AlignmentHeads, Tensor, TextClassifier]:
    torch.manual_seed(0)
    heads = AlignmentHeads(WIDTH, 8, residual, 0.1, learn_temperature=False)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter)
    for _ in range(5):
        heads.isa(torch.randn(50, WIDTH) * 2 + 1)  # statistics of its BatchNorm that are not those of a new one
    heads.eval().requires_grad_(False)
    text = F.normalize(torch.randn(CLASSES + WORDS, WIDTH), dim=1)
    return heads, text, TextClassifier.of(heads, text, CLASSES, SCALE, THRESHOLD)


@pytest.mark.parametrize("residual", [True, False])
def test_log_probabilities_are_those_of_the_heads_word_by_word(residual):
    heads, text, classifier = made_of(residual)
    joint = torch.randn(2, 7, WIDTH)
    found = classifier(joint)
    assert found.shape == (2, 7, CLASSES + 1)
    for image in range(2):
        for patch in range(7):
            feature = heads.isa(joint[image, patch][None])[0]
            powers = [math.exp(SCALE * float(feature @ word) / float(feature.norm())) for word in text]
            expected = [sum(powers[CLASSES:]), *powers[:CLASSES]]
            for probability, power in zip(found[image, patch].exp().tolist(), expected, strict=True):
                assert probability == pytest.approx(power / sum(powers), rel=1e-3, abs=1e-6)


def test_the_gate_lowers_classes_below_the_threshold_but_not_the_best():
    _, _, classifier = made_of(True)
    patches = 45  # three of them are the best
    probabilities = torch.full((2, patches, CLASSES + 1), 0.01)
    probabilities[0, :3, 1], probabilities[0, 5:8, 2] = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0.5, 0.3, 0.1])
    probabilities[1, 9, 3] = 0.31  # an image that seems to show nothing
    found = classifier.image_gate(probabilities.log())
    assert found.shape == (2, 1, CLASSES + 1)
    half, none = math.log(0.3 / THRESHOLD), math.log(0.01 / THRESHOLD)
    torch.testing.assert_close(found[0, 0], torch.tensor([0.0, 0.0, half, none]), rtol=1e-4, atol=1e-5)
    relative = math.log(0.01 / 0.11)
    torch.testing.assert_close(found[1, 0], torch.tensor([0.0, relative, relative, 0.0]), rtol=1e-4, atol=1e-5)


def test_a_decoder_adds_the_classifier_and_the_gate_only_when_it_is_evaluated():
    _, _, classifier = made_of(True)
    torch.manual_seed(1)
    decoder = SegmentationDecoder(2, 4, CLASSES, hidden=8, layers=1, heads=2, text=classifier)
    plain = SegmentationDecoder(2, 4, CLASSES, hidden=8, layers=1, heads=2)
    plain.load_state_dict({name: t for name, t in decoder.state_dict().items() if not name.startswith("text")})
    with torch.no_grad():
        decoder.text_weight.copy_(torch.tensor([1.0, 0.5, 2.0, 0.0]))
    tokens, joint = torch.randn(2, 2, 6, 4), torch.randn(2, 6, WIDTH)
    scores = classifier(joint)  # (B, N, C + 1)
    expected = plain(tokens, (2, 3))[0] + (decoder.text_weight * scores).transpose(1, 2).reshape(2, CLASSES + 1, 2, 3)
    torch.testing.assert_close(decoder.train()(tokens, (2, 3), joint=joint)[0], expected)
    gate = classifier.image_gate(scores).transpose(1, 2).unsqueeze(-1)  # (B, C + 1, 1, 1)
    torch.testing.assert_close(decoder.eval()(tokens, (2, 3), joint=joint)[0], expected + gate)


def test_training_moves_the_weights_of_the_classes_and_nothing_of_the_classifier():
    _, _, classifier = made_of(True)
    decoder = SegmentationDecoder(2, 4, CLASSES, hidden=8, layers=1, heads=2, text=classifier)
    frozen = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    projection = torch.randn(4, WIDTH)
    options = TrainOptions(iterations=3, warmup=0, hidden=8, decoder_layers=1, decoder_heads=2, weight_decay=0.5)
    trainer = SegmentationTrainer(decoder, options, torch.device("cpu"), project=lambda tokens: tokens @ projection)
    labels = torch.randint(0, CLASSES + 1, (2, 32, 48))
    for _ in range(2):
        trainer.backward(trainer.forward(torch.randn(2, 2, 6, 4), (2, 3), [0, 1]), Targets(labels))
        trainer.step()
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in classifier.state_dict().items())
    assert bool((decoder.text_weight != 1).all())

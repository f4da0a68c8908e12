"""The inputs of the steps of `ssr train`: frozen encoders, crops, their labels, and heads that are trained too."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch

from pipelines.encoders.class_embeddings import TextEmbeddings
from pipelines.encoders.clip import ClipEncoder
from pipelines.errors import UsageError
from pipelines.method.aligned import AlignedText
from pipelines.method.encoders import Blocks, Encoders
from pipelines.method.loading import FrozenModels
from pipelines.method.online_labels import OnlineLabels
from pipelines.method.tagging import TAGGERS
from pipelines.models.alignment_file import Alignment
from pipelines.models.decoder import SegmentationDecoder
from pipelines.models.text_classifier import TextClassifier
from pipelines.options.train import TrainOptions
from pipelines.stages.train.crops import CropSource
from pipelines.stages.train.settings import TrainSections, needs_of_views, reads_text, training_needs
from pipelines.training.losses import needs_super_maps
from pipelines.training.online_alignment import OnlineAlignment
from pipelines.training.processes import Processes
from pipelines.workdir.corrected import corrected_masks
from pipelines.workdir.settings import model_sources
from pipelines.workdir.workspace import Workspace, superpixel_reader


@dataclass(frozen=True)
class TrainedHeads:
    """Alignment heads that are trained beside the decoder.

    Attributes:
        alignment: The heads as read from their file.
        online: Their training.
    """

    alignment: Alignment
    online: OnlineAlignment


@dataclass(frozen=True)
class TrainInputs:
    """The inputs of the steps of a training.

    Attributes:
        encoders: The frozen CLIP and, if labels need it, DINO.
        source: The crops.
        text: Class and background embeddings; None if labels and losses need none.
        labels: Makes label maps of crops on-line; None: crops have their ground truth.
        heads: Alignment heads that are trained further, or None.
        aligned: Alignment heads that the decoder's text classifier is made of, or None.
    """

    encoders: Encoders
    source: CropSource
    text: TextEmbeddings | None = None
    labels: OnlineLabels | None = None
    heads: TrainedHeads | None = None
    aligned: AlignedText | None = None


def train_inputs(
    workspace: Workspace,
    sections: TrainSections,
    device: torch.device,
    processes: Processes,
    stack: ExitStack,
    *,
    labelled: bool = False,
) -> TrainInputs:
    """Load the parts that the decoder and its labels need; ``supervision`` masks need no text, no CAMs and no DINO.

    Args:
        workspace: Names the images and superpixels.
        sections: Checked options.
        device: Where to train.
        processes: This process and its peers.
        stack: Stack that closes the superpixel store.
        labelled: Whether crops have their labels, as cached views do; then nothing that makes labels is loaded.

    Raises:
        UsageError: Options do not fit CLIP, or alignment heads do not fit CLIP or the classes.
    """
    options, needs = sections.train, needs_of_views(sections) if labelled else training_needs(sections)
    sources = model_sources(workspace, needs, sections.cams.ckpt)
    models = FrozenModels(sources, device, workspace.run.precision)
    _check_encoder(options, models.clip)
    if reads_text(sections):
        _check_text_classifier(options, models)
    if needs_super_maps(options) and models.embeddings is not None:
        _check_supers(models.embeddings)
    blocks = Blocks(
        clip_attention=sections.refine.clip_blocks,
        dino_attention=sections.refine.dino_blocks,
        clip_each=options.filter_blocks if "clip_block_attention" in needs else 0,
        clip_tokens=_read_blocks(options, models.clip),
    )
    encoders = models.encoders(needs, blocks, sections.cams)
    superpixels = stack.enter_context(superpixel_reader(workspace, "superpixels" in needs))
    corrected = corrected_masks(workspace, options.supervision, options.corrected)
    source = CropSource(workspace.dataset, options, encoders, superpixels, corrected)
    aligned = encoders.alignment if reads_text(sections) else None
    if labelled or options.supervision == "masks":
        return TrainInputs(encoders, source, models.embeddings, aligned=aligned)
    text, heads = models.embeddings, None
    if options.train_heads and text is not None and models.alignment is not None and encoders.alignment is not None:
        heads = _trained_heads(sections, models.alignment, encoders.alignment, text, processes)
    return TrainInputs(encoders, source, text, OnlineLabels(sections.cams, sections.refine, options), heads, aligned)


def new_decoder(
    options: TrainOptions, encoder: ClipEncoder, classes: int, aligned: AlignedText | None = None
) -> SegmentationDecoder:
    """Return an untrained decoder on the encoder's device; equal seeds give equal ones.

    Args:
        options: Sizes and seed.
        encoder: The frozen CLIP.
        classes: Number of foreground classes.
        aligned: Alignment heads for a text classifier; None: the decoder has none.
    """
    text = None
    if aligned is not None:
        threshold, words = TAGGERS["heads"].default_threshold(classes), aligned.text
        text = TextClassifier.of(aligned.heads, words.all, classes, words.logit_scale, threshold)
    torch.manual_seed(options.seed)
    blocks = _read_blocks(options, encoder)
    sizes = options.hidden, options.decoder_layers, options.decoder_heads
    return SegmentationDecoder(blocks, encoder.width, classes, *sizes, text).to(encoder.device)


def _read_blocks(options: TrainOptions, encoder: ClipEncoder) -> int:
    """Return the number of CLIP blocks that the decoder reads."""
    return options.clip_layers or len(encoder.blocks)


def _trained_heads(
    sections: TrainSections, alignment: Alignment, aligned: AlignedText, text: TextEmbeddings, processes: Processes
) -> TrainedHeads:
    prototypes = alignment.image_prototypes
    if sections.align.prototypes == "kmeans" or len(prototypes) != len(text.classes):
        prototypes = aligned.text.all[: len(text.classes)].clone()  # the class names, because k-means prototypes have no class
    refresh = sections.train.prototype_refresh
    return TrainedHeads(alignment, OnlineAlignment(alignment.heads, prototypes, text.all, sections.align, refresh, processes))


def _check_supers(text: TextEmbeddings) -> None:
    if text.supers is not None and len(text.supers) < 2:
        found = "a loss compares super-classes, of which there must be two; the class list has one"
        raise UsageError(found, "other `super` names in the class list, or --loss sbe=0")


def _check_encoder(options: TrainOptions, encoder: ClipEncoder) -> None:
    patch, depth = encoder.patch_size, len(encoder.blocks)
    if options.crop % patch:
        raise UsageError(f"a crop of {options.crop} pixels is no multiple of CLIP's patch of {patch}", "--crop")
    if options.clip_layers > depth:
        raise UsageError(f"this CLIP has {depth} blocks, found {options.clip_layers}", "--clip-layers")


def _check_text_classifier(options: TrainOptions, models: FrozenModels) -> None:
    """Refuse heads and blocks that a text classifier cannot read: it is the heads on the output of CLIP's last block."""
    depth, alignment, words = len(models.clip.blocks), models.alignment, models.embeddings
    if _read_blocks(options, models.clip) != depth:
        found = f"a text classifier reads the last of CLIP's {depth} blocks, the decoder's last is block {options.clip_layers}"
        raise UsageError(found, "--clip-layers 0, or --no-text-classifier")
    if alignment is not None and alignment.features != "output":
        found = f"a text classifier reads the output of CLIP's last block, these heads its {alignment.features} path"
        raise UsageError(found, "--no-text-classifier, or train heads with `ssr align --features output`")
    if words is not None and len(words.all) == len(words.classes):
        raise UsageError("a text classifier needs background words, the class list has none", "--no-text-classifier")

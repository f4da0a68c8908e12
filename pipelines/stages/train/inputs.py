"""What `ssr train` trains with: frozen encoders, crops, on-line labels, heads; built from options, described for manifests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipelines.encoders.class_embeddings import TextEmbeddings, text_embeddings
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.dino import DinoEncoder
from pipelines.encoders.weights import build_clip, resolve_clip, resolve_dino
from pipelines.errors import UsageError
from pipelines.execution.devices import precision_name, resolve_dtype
from pipelines.method.aligned_cams import AlignedReadout
from pipelines.method.cam_extractor import CamExtractor
from pipelines.method.cam_extractor import uses_superpixels as cams_use_superpixels
from pipelines.method.encoder_pair import Encoded, EncoderPair
from pipelines.method.online_labels import OnlineLabels
from pipelines.method.photo import Crop
from pipelines.method.refinement import check_encoders, uses_dino, uses_superpixels
from pipelines.models.alignment_file import Alignment, read_alignment
from pipelines.models.decoder import SegmentationDecoder
from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.options.train import TrainOptions
from pipelines.stages.train.crops import CropSource
from pipelines.stores.array_store import ArrayReader
from pipelines.training.online_alignment import OnlineAlignment
from pipelines.training.processes import Processes
from pipelines.training.segmentation import MakeTargets, Part, Targets
from pipelines.workdir.settings import cam_settings, refinement_settings
from pipelines.workdir.workspace import Workspace

NOT_SETTINGS = {"ckpt", "resume", "val_split", "validate_every", "save_every"}
"""Options that change nothing in the model; ``ckpt`` is recorded by its checksum."""


@dataclass(frozen=True)
class TrainSections:
    """The options that a training is made of.

    Attributes:
        train: Crops, decoder, losses, schedule.
        align: L_proto, if heads are trained.
        cams: How on-line CAMs are read out; ``ckpt`` is that of ``train``, one scale, no mirror image.
        refine: How they are refined; no CRF.
    """

    train: TrainOptions
    align: AlignOptions
    cams: CamsOptions
    refine: RefineOptions

    def checked(self, workspace: Workspace) -> TrainSections:
        """These options as a training takes them.

        Raises:
            UsageError: Options that do not go together.
        """
        train = self.train
        if train.hidden % train.decoder_heads:
            found = f"{train.decoder_heads} attention heads cannot share {train.hidden} channels"
            raise UsageError(found, "--decoder-heads, --hidden")
        if train.min_scale > train.max_scale:
            found = f"scales from {train.min_scale} to {train.max_scale}: nothing between"
            raise UsageError(found, "--min-scale, --max-scale")
        if train.train_heads and (train.ckpt is None or train.supervision == "masks"):
            raise UsageError("there are no alignment heads to train", "--ckpt, --supervision pseudo")
        if train.supervision == "pseudo":
            check_encoders(self.refine)
        plain = {"ckpt": workspace.heads(train.ckpt), "scales": (1.0,), "flip": False}
        return TrainSections(
            train, self.align, self.cams.model_copy(update=plain), self.refine.model_copy(update={"crf": False})
        )


class TrainInputs:
    """Everything around the decoder.

    Args:
        workspace: Photos and superpixels.
        sections: Checked options.
        device: Where to train.
        processes: This process among its peers.
        stack: Closes the superpixel store.

    Attributes:
        encoder: The frozen CLIP.
        pair: CLIP and, if labels ask for it, DINO.
        text: Class and background embeddings; None with ``supervision`` masks.
        labels: Makes label maps on line; None with ``supervision`` masks.
        heads: As they were read, or None.
        alignment: Trains them on, or None.
        source: The crops.
        pieces: Parts of a step, ``accumulate`` at most.
        settings: Whatever changes the model.

    Raises:
        UsageError: Options that do not fit CLIP, the photos or the processes.
        SsrError: No superpixels although they are asked for.
    """

    def __init__(
        self, workspace: Workspace, sections: TrainSections, device: torch.device, processes: Processes, stack: ExitStack
    ) -> None:
        self.workspace, self.sections, self.device = workspace, sections, device
        options = sections.train
        self.weights = resolve_clip(workspace.clip.model, workspace.clip.pretrained)
        clip = build_clip(self.weights)
        self.encoder = ClipEncoder(clip, device, resolve_dtype(workspace.run.precision, device))
        self._check_encoder()
        self.pair = frozen_pair(workspace, options, sections.refine, self.encoder)
        self.heads: Alignment | None = None
        self.alignment: OnlineAlignment | None = None
        self.labels: OnlineLabels | None = None
        self.text: TextEmbeddings | None = None
        superpixels = None
        self.settings: dict[str, Any] = {
            **options.model_dump(mode="json", exclude=NOT_SETTINGS),
            "clip": self.weights.provenance(),
            "classes": list(workspace.dataset.classes.names),
            "photos": workspace.dataset.digest(),
            "processes": processes.count,
            "precision": precision_name(workspace.run),
        }
        if options.supervision == "pseudo":
            self.text = text_embeddings(clip, workspace.dataset.classes, workspace.clip)
            self._label_by_cams(self.text, processes)
            if cams_use_superpixels(sections.cams) or uses_superpixels(sections.refine):
                superpixels = stack.enter_context(ArrayReader(workspace.superpixels))
        colours = sections.refine.superpixel_mask == "colour"
        self.source = CropSource(workspace.dataset, options, self.pair, superpixels, colours)
        if self.source.batch < processes.count:
            found = f"{processes.count} processes share {self.source.batch} crops a step"
            raise UsageError(found, "--batch, or fewer processes")
        share = -(-self.source.batch // processes.count)  # crops of a process
        self._piece = -(-share // options.accumulate)  # crops of a part
        self.pieces = -(-share // self._piece)

    @property
    def token_blocks(self) -> int:
        """CLIP blocks that the decoder reads."""
        return self.sections.train.clip_layers or len(self.encoder.blocks)

    def decoder(self) -> SegmentationDecoder:
        """A new decoder; equal seeds give equal ones."""
        options = self.sections.train
        torch.manual_seed(options.seed)
        classes, width = len(self.workspace.dataset.classes.names), self.encoder.width
        decoder = SegmentationDecoder(
            self.token_blocks, width, classes, options.hidden, options.decoder_layers, options.decoder_heads
        )
        return decoder.to(self.device)

    def parts(self, crops: Sequence[Crop]) -> Iterator[Part | None]:
        """Encode a process's crops of one step, one of `pieces` after the other; None where bad photos left none."""
        for piece in range(self.pieces):
            own = crops[piece * self._piece : (piece + 1) * self._piece]
            yield self._part(own) if own else None

    def _part(self, crops: Sequence[Crop]) -> Part:
        encoded = self.pair.encode([crop.photo for crop in crops], clip_tokens=True)
        return part_of(crops, encoded, self.labels)

    def _check_encoder(self) -> None:
        options, patch, depth = self.sections.train, self.encoder.patch_size, len(self.encoder.blocks)
        if options.crop % patch:
            raise UsageError(f"a crop of {options.crop} pixels is no multiple of CLIP's patch of {patch}", "--crop")
        if options.clip_layers > depth:
            raise UsageError(f"this CLIP has {depth} blocks, found {options.clip_layers}", "--clip-layers")

    def _label_by_cams(self, text: TextEmbeddings, processes: Processes) -> None:
        workspace, sections = self.workspace, self.sections
        readout = None
        if sections.cams.ckpt is not None:
            self.heads = read_alignment(sections.cams.ckpt, self.weights, workspace.dataset.classes, text)
            readout = AlignedReadout(self.heads, text, sections.cams, self.device)
        self.labels = OnlineLabels(
            CamExtractor(self.encoder, text, sections.cams, heads=readout), sections.refine, sections.train
        )
        dino = self.pair.dino.weights if self.pair.dino else None
        self.settings["cams"] = cam_settings(workspace, sections.cams, self.weights, text)
        self.settings["refine"] = refinement_settings(workspace, sections.refine, self.weights, dino)
        self.settings["refine"] |= sections.refine.model_dump(include={"background_power", "min_confidence"})
        if sections.train.train_heads and self.heads is not None:
            prototypes = self.heads.image_prototypes
            of_clusters = sections.align.prototypes == "kmeans" or len(prototypes) != len(text.classes)
            if of_clusters and readout is not None:  # a cluster is no class's in particular
                prototypes = readout.words[: len(text.classes)].clone()
            refresh = sections.train.prototype_refresh
            self.alignment = OnlineAlignment(self.heads.heads, prototypes, text.all, sections.align, refresh, processes)
            self.settings["align"] = sections.align.model_dump(mode="json")


def frozen_pair(workspace: Workspace, options: TrainOptions, refine: RefineOptions, clip: ClipEncoder) -> EncoderPair:
    """The frozen encoders as a training needs them; DINO stays out if no label asks for it."""
    token_blocks = options.clip_layers or len(clip.blocks)
    if options.supervision == "masks":
        return EncoderPair(clip, None, refine.model_copy(update={"clip_blocks": 0}), token_blocks)
    dino = None
    if uses_dino(refine):
        weights = resolve_dino(workspace.dino.model, workspace.dino.pretrained)
        dino = DinoEncoder(weights, clip.device, clip.dtype)
    return EncoderPair(clip, dino, refine, token_blocks, options.filter_blocks if options.filter_from >= 0 else 0)


def part_of(crops: Sequence[Crop], encoded: Encoded, labels: OnlineLabels | None) -> Part:
    """What a trainer needs of encoded crops; without ``labels`` it learns from their ground truth."""
    if encoded.clip is None or encoded.clip.block_tokens is None:
        raise ValueError("the decoder needs the tokens of CLIP's blocks")
    device = encoded.clip.tokens_cls.device
    make: MakeTargets = partial(_ground_truth, crops, device) if labels is None else partial(labels, crops, encoded)
    return Part(encoded.clip.block_tokens, crops[0].photo.grid, tuple(crop.slot for crop in crops), make)


def _ground_truth(crops: Sequence[Crop], device: torch.device, _: Tensor | None) -> Targets:
    return Targets(torch.stack([crop.target for crop in crops if crop.target is not None]).to(device))

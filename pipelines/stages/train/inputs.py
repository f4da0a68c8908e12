"""What `ssr train` trains with: frozen encoders, crops, on-line labels, heads; built from options, described for manifests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipelines.encoders.class_embeddings import TextEmbeddings
from pipelines.errors import UsageError
from pipelines.execution.devices import precision_name, resolve_dtype
from pipelines.method.composition import cam_needs, refine_needs
from pipelines.method.encoders import Blocks
from pipelines.method.evidence import Evidence, Needs
from pipelines.method.loading import FrozenModels, Sources
from pipelines.method.online_labels import OnlineLabels
from pipelines.method.photo import Crop
from pipelines.models.alignment_file import Alignment
from pipelines.models.decoder import SegmentationDecoder
from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.options.train import TrainOptions
from pipelines.stages.train.crops import CropSource
from pipelines.stores.array_store import ArrayReader
from pipelines.training.online_alignment import OnlineAlignment
from pipelines.training.processes import Processes
from pipelines.training.segmentation import MakeTargets, Part, Targets
from pipelines.workdir.settings import cam_settings, model_sources, refinement_settings
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
            refine_needs(self.refine)  # refuses options that leave no attention
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
        encoders: CLIP and, if labels need it, DINO.
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
        needs = training_needs(sections)
        sources = model_sources(workspace, needs, sections.cams.ckpt)
        self.weights = sources.clip
        models = FrozenModels(sources, device, resolve_dtype(workspace.run.precision, device))
        self.encoder = models.clip
        self._check_encoder()
        blocks = Blocks(
            clip_attention=sections.refine.clip_blocks,
            dino_attention=sections.refine.dino_blocks,
            clip_each=options.filter_blocks if options.filter_from >= 0 else 0,
            clip_tokens=self.token_blocks,
        )
        self.encoders = models.encoders(needs, blocks, sections.cams)
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
            self.text, self.heads = models.embeddings, models.alignment
            self._label_by_cams(sources, processes)
        if "superpixels" in needs:
            superpixels = stack.enter_context(ArrayReader(workspace.superpixels))
        self.source = CropSource(workspace.dataset, options, self.encoders, superpixels)
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
        return part_of(crops, self.encoders.encode([crop.photo for crop in crops]), self.labels)

    def _check_encoder(self) -> None:
        options, patch, depth = self.sections.train, self.encoder.patch_size, len(self.encoder.blocks)
        if options.crop % patch:
            raise UsageError(f"a crop of {options.crop} pixels is no multiple of CLIP's patch of {patch}", "--crop")
        if options.clip_layers > depth:
            raise UsageError(f"this CLIP has {depth} blocks, found {options.clip_layers}", "--clip-layers")

    def _label_by_cams(self, sources: Sources, processes: Processes) -> None:
        workspace, sections = self.workspace, self.sections
        self.labels = OnlineLabels(sections.cams, sections.refine, sections.train)
        self.settings["cams"] = cam_settings(workspace, sections.cams, sources)
        self.settings["refine"] = refinement_settings(workspace, sections.refine, sources)
        self.settings["refine"] |= sections.refine.model_dump(include={"background_power", "min_confidence"})
        text, aligned = self.text, self.encoders.alignment
        if sections.train.train_heads and self.heads is not None and aligned is not None and text is not None:
            prototypes = self.heads.image_prototypes
            of_clusters = sections.align.prototypes == "kmeans" or len(prototypes) != len(text.classes)
            if of_clusters:  # k-means prototypes have no class: start from the names
                prototypes = aligned.text.all[: len(text.classes)].clone()
            refresh = sections.train.prototype_refresh
            self.alignment = OnlineAlignment(self.heads.heads, prototypes, text.all, sections.align, refresh, processes)
            self.settings["align"] = sections.align.model_dump(mode="json")


def training_needs(sections: TrainSections) -> Needs:
    """What the decoder and its labels read."""
    decoder: Needs = frozenset({"tokens_cls", "clip_block_tokens"})
    if sections.train.supervision == "masks":
        return decoder
    filtered: Needs = frozenset({"clip_block_attention"}) if sections.train.filter_from >= 0 else frozenset()
    return decoder | filtered | cam_needs(sections.cams) | refine_needs(sections.refine)


def part_of(crops: Sequence[Crop], evidence: Evidence, labels: OnlineLabels | None) -> Part:
    """What a trainer needs of encoded crops; without ``labels`` it learns from their ground truth."""
    device = evidence.tokens_cls.device
    make: MakeTargets = partial(_ground_truth, crops, device) if labels is None else partial(labels, crops, evidence)
    return Part(evidence.clip_block_tokens, evidence.grid, tuple(crop.slot for crop in crops), make)


def _ground_truth(crops: Sequence[Crop], device: torch.device, _: Tensor | None) -> Targets:
    return Targets(torch.stack([crop.target for crop in crops if crop.target is not None]).to(device))

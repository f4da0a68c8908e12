"""The options that make a training, checked together, and what its manifest compares; no model is loaded here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.errors import UsageError
from pipelines.execution.devices import precision_name
from pipelines.method.evidence import Needs
from pipelines.method.parts_in_use import cam_needs, refine_needs
from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.options.train import TrainOptions
from pipelines.training.losses import active_losses
from pipelines.training.processes import Processes
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
        refine: How they are refined; no boundary refinement.
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
        active_losses(train)
        if train.train_heads and (train.ckpt is None or train.supervision == "masks"):
            raise UsageError("there are no alignment heads to train", "--ckpt, --supervision pseudo")
        if train.supervision == "pseudo":
            refine_needs(self.refine)  # refuses options that leave no attention
        alignment = workspace.heads(train.ckpt)
        if train.supervision == "pseudo" and alignment is not None and not alignment.is_file():
            raise UsageError(f"no checkpoint at {alignment}", "--ckpt")
        plain = {"ckpt": alignment, "scales": (1.0,), "flip": False}
        return TrainSections(
            train, self.align, self.cams.model_copy(update=plain), self.refine.model_copy(update={"boundary": "none"})
        )


def training_needs(sections: TrainSections) -> Needs:
    """What the decoder and its labels read."""
    decoder: Needs = frozenset({"tokens_cls", "clip_block_tokens"})
    if sections.train.supervision == "masks":
        return decoder
    filtered: Needs = frozenset({"clip_block_attention"}) if sections.train.filter_from >= 0 else frozenset()
    return decoder | filtered | cam_needs(sections.cams) | refine_needs(sections.refine)


def train_settings(workspace: Workspace, sections: TrainSections, processes: Processes) -> dict[str, Any]:
    """Whatever changes the model.

    Args:
        workspace: Photos, classes, encoders and superpixels.
        sections: Checked options.
        processes: How many train together.

    Raises:
        UsageError: More processes than crops in a step.
        SsrError: The options need superpixels and there are none.
    """
    options, refine = sections.train, sections.refine
    crops = min(options.batch, len(workspace.dataset.samples))
    if crops < processes.count:
        raise UsageError(f"{processes.count} processes share {crops} crops a step", "--batch, or fewer processes")
    sources = model_sources(workspace, training_needs(sections), sections.cams.ckpt)
    unused = set() if options.losses else {"losses"}  # trainings made before there were further losses stay the same
    settings: dict[str, Any] = {
        **options.model_dump(mode="json", exclude=NOT_SETTINGS | unused),
        "clip": sources.clip.provenance(),
        "classes": list(workspace.dataset.classes.names),
        "photos": workspace.dataset.digest(),
        "processes": processes.count,
        "precision": precision_name(workspace.run),
    }
    if options.supervision == "masks":
        return settings
    settings["cams"] = cam_settings(workspace, sections.cams, sources)
    settings["refine"] = refinement_settings(workspace, refine, sources)
    settings["refine"] |= refine.model_dump(include={"background_power", "min_confidence"})
    if options.train_heads:
        settings["align"] = sections.align.model_dump(mode="json")
    return settings

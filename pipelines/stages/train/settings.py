"""The options of a training, checked together, and the settings that its manifest compares. No model is loaded here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.errors import UsageError
from pipelines.execution.devices import precision_name
from pipelines.method.evidence import Needs
from pipelines.method.parts_in_use import cam_needs, refine_needs
from pipelines.method.super_maps import super_map_needs
from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.options.train import TrainOptions
from pipelines.training.losses import active_losses, needs_super_maps
from pipelines.training.processes import Processes
from pipelines.workdir.corrected import corrected_masks
from pipelines.workdir.settings import cam_settings, model_sources, refinement_settings
from pipelines.workdir.workspace import Workspace, oriented

NOT_SETTINGS = {"ckpt", "corrected", "resume", "val_split", "validate_every", "save_every", "cache_limit"}
"""Options that do not change the model; ``ckpt`` and corrected masks are recorded by checksums."""

VIEW_SETTINGS = {
    "supervision", "crop", "min_scale", "max_scale", "flip", "seed", "clip_layers",
    "par_iterations", "par_dilations", "par_scale",
}  # fmt: skip
"""Options that change a cached view; the number of views does not."""


@dataclass(frozen=True)
class TrainSections:
    """All options of a training.

    Attributes:
        train: Crops, decoder, losses, schedule.
        align: Options of L_proto, if heads are trained.
        cams: Read-out of on-line CAMs; ``ckpt`` is that of ``train``, with one scale and no mirror image.
        refine: Refinement of these CAMs, without boundary refinement.
    """

    train: TrainOptions
    align: AlignOptions
    cams: CamsOptions
    refine: RefineOptions

    def checked(self, workspace: Workspace) -> TrainSections:
        """Check these options, and return them in the form that a training uses.

        Raises:
            UsageError: Options contradict each other.
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
        if train.cache_views:
            _refuse_uncached(train)
        if train.supervision == "pseudo":
            refine_needs(self.refine)  # refuses options that leave no attention
        alignment = workspace.heads(train.ckpt)
        if train.supervision == "pseudo" and alignment is not None and not alignment.is_file():
            raise UsageError(f"no checkpoint at {alignment}", "--ckpt")
        plain = {"ckpt": alignment, "scales": (1.0,), "flip": False}
        return TrainSections(
            train, self.align, self.cams.model_copy(update=plain), self.refine.model_copy(update={"boundary": "none"})
        )


def _refuse_uncached(train: TrainOptions) -> None:
    """Refuse options that cached views cannot train with: labels that change during the training, and losses that read crops.

    Raises:
        UsageError: Such an option is on.
    """
    if train.train_heads:
        raise UsageError(
            "heads that are trained change the labels, which cached views keep", "--no-train-heads or --cache-views 0"
        )
    if train.supervision == "pseudo" and 0 <= train.filter_from < train.iterations:
        raise UsageError(
            "the decoder's filter changes the labels, which cached views keep", "--filter-from -1 or --cache-views 0"
        )
    reading = next((name for name, (loss, _) in active_losses(train).items() if name in train.losses and loss.crops), None)
    if reading is not None:
        found = f"loss {reading!r} may read the crops, which cached views do not hold"
        raise UsageError(found, f"--loss {reading}=0, or --cache-views 0")


DECODER_NEEDS: Needs = frozenset({"tokens_cls", "clip_block_tokens"})
"""Fields of the evidence that the decoder reads."""


def training_needs(sections: TrainSections) -> Needs:
    """Return the fields of the evidence that the decoder and its labels read."""
    if sections.train.supervision == "masks":
        return DECODER_NEEDS
    filtered: Needs = frozenset({"clip_block_attention"}) if sections.train.filter_from >= 0 else frozenset()
    needs = DECODER_NEEDS | filtered | cam_needs(sections.cams) | refine_needs(sections.refine)
    return needs | super_map_needs(sections.cams) if needs_super_maps(sections.train) else needs


def needs_of_views(sections: TrainSections) -> Needs:
    """Return the fields of the evidence that a training on cached views reads in addition."""
    words: Needs = frozenset({"text", "super_classes"}) if needs_super_maps(sections.train) else frozenset()
    heads: Needs = frozenset({"alignment"}) if reads_text(sections) else frozenset()
    return DECODER_NEEDS | words | heads


def reads_text(sections: TrainSections) -> bool:
    """Return whether the decoder has a text classifier, which is made of alignment heads."""
    return sections.train.text_classifier and sections.cams.ckpt is not None and sections.train.supervision != "masks"


def train_settings(workspace: Workspace, sections: TrainSections, processes: Processes) -> dict[str, Any]:
    """Return all settings that change the model.

    Args:
        workspace: Images, classes, encoders and superpixels.
        sections: Checked options.
        processes: The processes that train together.

    Raises:
        UsageError: There are more processes than crops in a step.
        SsrError: The options need superpixels, and there are none.
    """
    options = sections.train
    crops = min(options.batch, len(workspace.dataset.samples))
    if crops < processes.count:
        raise UsageError(f"{processes.count} processes share {crops} crops a step", "--batch, or fewer processes")
    # without these options the keys are absent, as in trainings made before the options existed
    unused = {name for name in ("losses", "cache_views", "text_classifier") if not getattr(options, name)}
    settings = {
        **options.model_dump(mode="json", exclude=NOT_SETTINGS | unused),
        **_label_settings(workspace, sections),
        **({"super_maps": supers} if (supers := super_map_settings(workspace, sections)) else {}),
        "photos": workspace.dataset.digest(),
        **corrected_masks(workspace, options.supervision, options.corrected).settings(),
        "processes": processes.count,
    }
    if options.train_heads and options.supervision == "pseudo":
        settings["align"] = sections.align.model_dump(mode="json")
    return settings


def view_settings(workspace: Workspace, sections: TrainSections) -> dict[str, Any]:
    """Return all settings that change a cached view.

    Raises:
        SsrError: The options need superpixels, and there are none.
    """
    options = sections.train
    corrected = corrected_masks(workspace, options.supervision, options.corrected).settings()
    return {**options.model_dump(mode="json", include=VIEW_SETTINGS), **_label_settings(workspace, sections), **corrected}


def super_map_settings(workspace: Workspace, sections: TrainSections) -> dict[str, Any]:
    """Return all settings that change a super-class map beside its crop and label; empty if no loss needs one."""
    if not needs_super_maps(sections.train):
        return {}
    sources = model_sources(workspace, training_needs(sections), sections.cams.ckpt)
    settings: dict[str, Any] = {"dino": sources.dino.provenance()} if sources.dino is not None else {}
    return settings | (sources.text.super_provenance() if sources.text is not None else {})


def _label_settings(workspace: Workspace, sections: TrainSections) -> dict[str, Any]:
    """Return the settings by which crops are encoded and labelled, beside the options of ``[train]``."""
    sources = model_sources(workspace, training_needs(sections), sections.cams.ckpt)
    settings: dict[str, Any] = {
        "clip": sources.clip.provenance(),
        "classes": list(workspace.dataset.classes.names),
        "precision": precision_name(workspace.run),
        **oriented(workspace),
    }
    if sections.train.supervision == "masks":
        return settings
    refine = sections.refine
    settings["cams"] = cam_settings(workspace, sections.cams, sources)
    settings["refine"] = refinement_settings(workspace, refine, sources)
    settings["refine"] |= refine.model_dump(include={"background_power", "min_confidence"})
    return settings

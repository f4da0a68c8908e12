"""Groups of options in ``--help``: which option stands under which title, and the order of the titles."""

from __future__ import annotations

MOST_USED = {
    "tag": ("tagger", "tag_threshold", "tag_thresholds", "class_thresholds"),
    "superpixels": ("segments",),
    "align": ("epochs", "iterations", "batch", "learning_rate", "seed", "resume"),
    "cams": ("ckpt", "readout", "scales", "flip"),
    "refine": ("boundary", "superpixel_mask", "dino_weight", "power", "background_power", "min_confidence", "probabilities"),
    "train": ("ckpt", "iterations", "batch", "crop", "val_split", "validate_every", "cache_views", "supervision", "resume"),
    "predict": ("model", "images", "output", "boundary", "probabilities", "flip", "scales", "long_side"),
    "retrain": ("model", "backbone", "schedule", "batch", "crop", "masks", "val_split", "amp", "resume", "write_only"),
    "export": ("format", "what", "output", "images", "photos"),
}
"""Section -> options at the top of its command's help, in this order; of a section that is not here, all of them."""

FURTHER = {
    "tag": "Tagging",
    "superpixels": "Superpixels (SLIC)",
    "align": "Training of the alignment heads",
    "cams": "Class activation maps",
    "refine": "Affinity, masks and background",
    "train": "Training of the decoder",
    "predict": "Prediction",
    "retrain": "Training of the network",
    "export": "Objects and outlines",
}
"""Section -> title of its other options."""

SHARED = {
    "dataset": "Dataset",
    "clip": "CLIP",
    "dino": "DINO",
    "run": "Running",
    "scale": "Several devices and machines",
}
"""Section that many commands have -> its title."""

BY_PREFIX = {
    "aligned_": "CAM through the alignment heads (--ckpt)",
    "excel_": "Read-outs excel and resclip",
    "resclip_": "Read-outs excel and resclip",
    "cda_": "Affinity filter cda",
    "filter_": "Selection of attention blocks",
    "par_": "Numbers of pixel-adaptive refinement (PAR)",
    "crf_": "Numbers of the dense CRF",
}
"""Beginning of an option's name -> its title, whatever its section."""

ARGUMENTS, FIRST = "Arguments", "Most used"

ORDER = tuple(
    dict.fromkeys((ARGUMENTS, FIRST, *list(SHARED.values())[:-1], *FURTHER.values(), SHARED["scale"], *BY_PREFIX.values()))
)
"""Every title, from the most used to the numbers that few change."""


FOUND_IN_THE_FOLDER = {"init": {("dataset", "kind"), ("dataset", "split")}}
"""Command -> options whose default the command finds in the dataset folder."""


def panel_of(section: str, key: str) -> str:
    """The title under which an option stands."""
    if section in SHARED:
        return SHARED[section]
    if prefixed := [title for prefix, title in BY_PREFIX.items() if key.startswith(prefix)]:
        return prefixed[0]
    return FIRST if key in MOST_USED.get(section, (key,)) else FURTHER[section]


def rank_of(section: str, key: str) -> int:
    """Place of an option among those of its section: as `MOST_USED` lists them, and then as the section does."""
    listed = MOST_USED.get(section, ())
    return listed.index(key) if key in listed else len(listed)

"""`PseudoLabeler`, which makes CAMs and a pseudo-mask from an image and the names of its classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipelines.api.inputs import (
    ImageLike,
    as_class_list,
    as_pictures,
    as_pixels,
    checked_labels,
    checked_superpixels,
    clip_of,
    precision_of,
)
from pipelines.api.results import PseudoLabels, PseudoLabelTensors
from pipelines.config import Values, build_options, read_config, read_recipe
from pipelines.datasets import load_dataset
from pipelines.datasets.base import Sample
from pipelines.datasets.classes import ClassList
from pipelines.encoders.class_embeddings import text_sources
from pipelines.encoders.weights import resolve_dino
from pipelines.errors import UsageError
from pipelines.execution.batches import batches_by
from pipelines.execution.devices import resolve_batch_size, resolve_device
from pipelines.method.cam_extractor import encode_and_extract, one_pass_scales
from pipelines.method.composition import refined_cams
from pipelines.method.encoders import Blocks, Encoders
from pipelines.method.evidence import DINO_NEEDS, Evidence
from pipelines.method.label_free import label_free, label_free_needs
from pipelines.method.label_maps import pseudo_mask, refuse_probabilities
from pipelines.method.loading import FrozenModels, Sources
from pipelines.method.parts_in_use import cam_needs, refine_needs
from pipelines.method.photo import Photo, by_photo, shapes
from pipelines.ops.online_label_map import background_first, online_label_map
from pipelines.ops.slic import slic_superpixels
from pipelines.options.sources import DatasetOptions, DinoOptions, RunOptions
from pipelines.options.stages import CamsOptions, RefineOptions, SuperpixelsOptions
from pipelines.options.tag import TagOptions
from pipelines.workdir.memory import recall
from pipelines.workdir.thresholds import given_thresholds
from pipelines.workdir.workspace import HEADS_FILE

_SECTIONS = ("superpixels", "cams", "refine", "tag")


class PseudoLabeler:
    """A labeler that makes CAMs and a pseudo-mask from an image and the names of its classes.

    Args:
        models: Loaded encoders, text and heads.
        classes: The class list.
        superpixels: How superpixels are made, for parts that need them.
        cams: Read-out of the initial CAM.
        refine: Affinity, column masks, propagation and label map.
        tag: How images without labels are tagged.
        batch_size: Images of one size in a pass of the encoders; 0 chooses by device.

    Attributes:
        models: As given.
        class_list: Names, prompts and background words.
        superpixels_options: As ``superpixels``.
        cams_options: As ``cams``.
        refine_options: As ``refine``.
        tag_options: As ``tag``.
        device: Where the encoders run.
    """

    def __init__(
        self,
        models: FrozenModels,
        classes: ClassList,
        superpixels: SuperpixelsOptions,
        cams: CamsOptions,
        refine: RefineOptions,
        tag: TagOptions = TagOptions(),  # noqa: B008 - a constant
        batch_size: int = 0,
    ) -> None:
        refuse_probabilities(refine)
        self.models, self.class_list = models, classes
        self.superpixels_options, self.cams_options, self.refine_options, self.tag_options = superpixels, cams, refine, tag
        blocks = Blocks(clip_attention=refine.clip_blocks, dino_attention=refine.dino_blocks)
        self._encoders = models.encoders(cam_needs(cams) | refine_needs(refine), blocks, cams)
        self._tagging = models.encoders(label_free_needs(tag, cams, refine), blocks, cams)
        self.device = models.clip.device
        self.batch_size = resolve_batch_size(RunOptions(batch_size=batch_size), self.device)

    @classmethod
    def from_recipe(  # noqa: PLR0913 - the keywords of a public function, all but one with a default
        cls,
        recipe: str = "ssr",
        *,
        classes: Sequence[str] | str | Path,
        clip: Mapping[str, Any] | None = None,
        dino: Mapping[str, Any] | None = None,
        alignment: Path | str | None = None,
        background: Sequence[str] | None = None,
        device: str = "auto",
        precision: str = "auto",
        **sections: Mapping[str, Any],
    ) -> PseudoLabeler:
        """Load the models that a recipe needs.

        Args:
            recipe: Name of a shipped recipe, such as ``ssr`` or ``clip-es``.
            classes: Class names, a class-list file (.toml, .yaml), or ``"voc12"`` / ``"coco14"``.
            clip: Keys of ``[clip]`` of a config file: ``model``, ``pretrained``, ``text_bank``, ``background_bank``.
            dino: Keys of ``[dino]``: ``model``, ``pretrained``.
            alignment: Heads of `ssr align` (.safetensors); None for plain CLIP.
            background: Words that compete with the classes; default: those of the class list.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            precision: ``auto``, ``fp32`` or ``bf16``.
            **sections: Further options by section: ``superpixels``, ``cams``, ``refine``, ``tag``, each a mapping.

        Raises:
            UsageError: An unknown recipe, section, key or class, or weights that do not fit.
            SsrError: Weights that cannot be downloaded or read.

        Examples:
            The real CLIP and DINO come from the hub:

            >>> labeler = PseudoLabeler.from_recipe("ssr", classes=["cat", "dog"], refine={"boundary": "crf"})  # doctest: +SKIP
        """
        class_list = as_class_list(classes, background)
        return cls._loaded(read_recipe(recipe), class_list, (clip or {}, dino or {}), alignment, device, precision, sections)

    @classmethod
    def from_work(
        cls,
        work: Path | str,
        *,
        alignment: Path | str | None = None,
        device: str = "auto",
        precision: str | None = None,
        **sections: Mapping[str, Any],
    ) -> PseudoLabeler:
        """Load the classes, models, recipe and config file that a work directory stores.

        Flags of single commands, such as ``--boundary``, are not stored; give them as sections.

        Args:
            work: A work directory, such as ``runs/voc``.
            alignment: Heads of `ssr align` (.safetensors); ``"auto"`` for those in ``work``, None for plain CLIP.
            device: As for `from_recipe`.
            precision: As for `from_recipe`; default: that of the config file that ``work`` stores, else ``auto``.
            **sections: As for `from_recipe`.

        Raises:
            UsageError: Not a work directory, or options that do not fit.

        Examples:
            >>> labeler = PseudoLabeler.from_work("runs/sample", alignment="auto")
            >>> result = labeler("runs/sample/dataset/JPEGImages/train_0000.jpg", ["apple", "cup"])
            >>> result.classes, result.mask.shape
            (('apple', 'cup'), (242, 256))
        """
        memory = recall(Path(work))
        if not memory:
            raise UsageError(f"{work} is no work directory: it records no dataset", "a folder that `ssr` commands wrote to")
        heads = Path(work) / HEADS_FILE if alignment == "auto" else alignment
        return cls._configured(memory, memory.get("config") or {}, memory.get("recipe"), (heads, device, precision), sections)

    @classmethod
    def from_config(
        cls,
        path: Path | str,
        *,
        alignment: Path | str | None = None,
        device: str = "auto",
        precision: str | None = None,
        **sections: Mapping[str, Any],
    ) -> PseudoLabeler:
        """Load the classes and models that a config file of the commands names; no command has to run before.

        Args:
            path: A .toml file with a section ``[dataset]``, which the class list comes from.
            alignment: Heads of `ssr align` (.safetensors); None for plain CLIP.
            device: As for `from_recipe`.
            precision: As for `from_recipe`; default: that of the file's ``[run]``, else ``auto``.
            **sections: As for `from_recipe`; they override the file.

        Raises:
            UsageError: A file that cannot be read, names no dataset, or has options that do not fit.

        Examples:
            >>> labeler = PseudoLabeler.from_config("runs/sample/sample.toml", cams={"readout": "dense"})
            >>> labeler.class_list.names[:3]
            ('apple', 'balloon', 'boat')
        """
        values, top = read_config(Path(path))
        if "dataset" not in values:
            raise UsageError(f"{path} has no section [dataset] to take classes from", "PseudoLabeler.from_recipe takes names")
        return cls._configured(values, values, top.get("recipe"), (alignment, device, precision), sections)

    @classmethod
    def _configured(
        cls,
        sources: Mapping[str, Any],
        config: Values,
        recipe: str | None,
        where: tuple[Path | str | None, str, str | None],
        sections: Mapping[str, Mapping[str, Any]],
    ) -> PseudoLabeler:
        of_recipe = read_recipe(recipe or "ssr")
        values = {name: of_recipe.get(name, {}) | config.get(name, {}) for name in _SECTIONS}
        class_list = load_dataset(cast("DatasetOptions", build_options("dataset", sources["dataset"]))).classes
        models = (sources.get("clip", {}), sources.get("dino", {}))
        return cls._loaded(values, class_list, models, *where[:2], precision_of(where[2], config), sections)

    @classmethod
    def _loaded(
        cls,
        values: Values,
        class_list: ClassList,
        models: tuple[Mapping[str, Any], Mapping[str, Any]],
        alignment: Path | str | None,
        device: str,
        precision: str,
        sections: Mapping[str, Mapping[str, Any]],
    ) -> PseudoLabeler:
        unknown = set(sections) - set(_SECTIONS)
        if unknown:
            raise UsageError(f"unknown section {min(unknown)!r}: expected {', '.join(_SECTIONS)}", "PseudoLabeler")
        superpixels, cams, refine, tag = (
            build_options(name, values.get(name, {}), sections.get(name, {})) for name in _SECTIONS
        )
        cams = cast("CamsOptions", cams).model_copy(update={"ckpt": None if alignment is None else Path(alignment)})
        refine = cast("RefineOptions", refine)
        needs = cam_needs(cams) | refine_needs(refine)
        clip_options, weights = clip_of(models[0])
        dino_options = cast("DinoOptions", build_options("dino", models[1]))
        sources = Sources(
            weights,
            resolve_dino(dino_options.model, dino_options.pretrained) if needs & DINO_NEEDS else None,
            text_sources(weights, class_list, clip_options, "super_classes" in needs),
            cams.ckpt,
        )
        where = resolve_device(device)
        frozen = FrozenModels(sources, where, precision)
        return cls(frozen, class_list, cast("SuperpixelsOptions", superpixels), cams, refine, cast("TagOptions", tag))

    def __call__(self, image: ImageLike, labels: Sequence[str] | None = None) -> PseudoLabels:
        """Make the CAMs and the pseudo-mask of one image.

        Args:
            image: RGB array ``(H, W, 3)`` uint8, PIL image or path.
            labels: Names of the classes in the image; if None, they are found as by `ssr predict --model tags`.

        Raises:
            UsageError: An unknown class, or an array of another shape or type.
            ImageError: An image that cannot be used.
        """
        return self.batch([image], None if labels is None else [labels])[0]

    def batch(self, images: Sequence[ImageLike], labels: Sequence[Sequence[str]] | None = None) -> list[PseudoLabels]:
        """Make the CAMs and the pseudo-mask of each image; images of one size share a pass of the encoders.

        Args:
            images: Images in any form that a call takes.
            labels: Class names of each image; if None, the classes of all images are found.

        Returns:
            One result for each image, in the order of ``images``.
        """
        results: dict[int, PseudoLabels] = {}
        pictures = as_pictures(images)
        known = [()] * len(pictures) if labels is None else checked_labels(labels, len(pictures), self.class_list)
        encoders, make = (self._tagging, self._made_without) if labels is None else (self._encoders, self._made)
        for group in batches_by(self._numbered(encoders, pictures, known), lambda pair: shapes(pair[1]), self.batch_size):
            photos, cams, refined = make([photo for _, photo in group])
            of_photos = (by_photo(maps.cpu().numpy(), photos) for maps in (cams, refined.half()))
            for (number, _), photo, cam, own in zip(group, photos, *of_photos, strict=True):
                results[number] = self._result(pictures[number], photo, cam, own)
        return [results[number] for number in range(len(pictures))]

    def _made(self, photos: Sequence[Photo]) -> tuple[Sequence[Photo], Tensor, Tensor]:
        """Return images, their CAMs ``(T, h, w)`` as `ssr cams` stores them, and their refined CAMs."""
        evidence, made = encode_and_extract(self._encoders, photos, self.cams_options)
        cams = made.half().float()
        return photos, cams, self._refined(evidence, cams)

    def _made_without(self, photos: Sequence[Photo]) -> tuple[Sequence[Photo], Tensor, Tensor]:
        """Return the same as `_made` for images without labels; their tags become their labels."""
        made = label_free(self._tagging, photos, self._thresholds, self.tag_options, self.cams_options, self.refine_options)
        return made.photos, made.cams, made.refined

    @cached_property
    def _thresholds(self) -> NDArray[np.float64]:
        """Score from which each class is a tag, ``(C,)``; a thresholds file is read once, and only if images are tagged."""
        return given_thresholds(self.class_list.names, self.cams_options, self.tag_options)

    def torch(self, pixels: Tensor, labels: Sequence[Sequence[str]], superpixels: Tensor | None = None) -> PseudoLabelTensors:
        """Make the maps of a batch as tensors on its device.

        Torch resizes the images in place of Pillow, so values differ slightly from those of a call.

        Args:
            pixels: ``(B, 3, H, W)`` RGB, uint8 or floating point in [0, 1].
            labels: Class names of each image.
            superpixels: ``(B, H, W)`` ids from 0; without them, a recipe that needs superpixels copies the pixels to the
                host and makes them there.
        """
        scaled = as_pixels(pixels, self.device)
        indices = checked_labels(labels, len(pixels), self.class_list)
        given = [None] * len(scaled) if superpixels is None else checked_superpixels(superpixels, pixels)
        rows = zip(scaled, indices, given, strict=True)
        photos = [self._photo_of(of_photo, own, ids) for of_photo, own, ids in rows]
        evidence, cams = encode_and_extract(self._encoders, photos, self.cams_options)
        refined = self._refined(evidence, cams)
        classes = pad_sequence([torch.tensor(own, dtype=torch.int64) for own in indices], True, -1).to(self.device)  # (B, K)
        padded = evidence.padded(refined)  # (B, K, h, w)
        size = (pixels.shape[-2], pixels.shape[-1])
        resized = (
            F.interpolate(padded, size=size, mode="bilinear") if padded.shape[1] else padded.new_zeros(len(pixels), 0, *size)
        )
        scores = background_first(resized, classes >= 0, self.refine_options.background_power)  # (B, K + 1, H, W)
        mask = online_label_map(scores, classes, self.refine_options.min_confidence)
        return PseudoLabelTensors(classes, evidence.padded(cams), padded, mask)

    def superpixels(self, image: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Return the superpixels ``(H, W)`` of an RGB array ``(H, W, 3)``; ids start at 0."""
        options = self.superpixels_options
        return slic_superpixels(image, options.segments, options.compactness, options.iterations)

    def _numbered(
        self, encoders: Encoders, pictures: Sequence[Image.Image], labels: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[int, Photo]]:
        """Yield the number and the prepared `Photo` of each image, one at a time."""
        for number, (picture, own) in enumerate(zip(pictures, labels, strict=True)):
            ids = self.superpixels(np.asarray(picture)) if "superpixels" in encoders.needs else None
            scales = one_pass_scales(self.cams_options)
            yield number, encoders.photo(Sample(str(number), Path(), own), picture, ids, scales)

    def _photo_of(self, pixels: Tensor, labels: tuple[int, ...], superpixels: Tensor | None) -> Photo:
        ids = None
        if superpixels is not None:
            ids = superpixels.cpu().numpy()
        elif "superpixels" in self._encoders.needs:
            ids = self.superpixels((pixels * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())
        sample = Sample("", Path(), labels)
        return self._encoders.photo_of_pixels(sample, pixels, ids, one_pass_scales(self.cams_options))

    def _refined(self, evidence: Evidence, cams: Tensor) -> Tensor:
        """Refine the CAMs ``(T, h, w)`` of images of one grid; the shape stays."""
        return refined_cams(evidence, cams.flatten(1), self.refine_options).view_as(cams)

    def _result(self, picture: Image.Image, photo: Photo, cam: NDArray[np.float32], maps: NDArray[np.float16]) -> PseudoLabels:
        labels, device = photo.sample.labels, str(self.device)
        mask, scores = pseudo_mask(maps, labels, photo.size, self.refine_options, lambda: picture, device)
        confidence = scores.max(axis=0) / np.maximum(scores.sum(axis=0), np.finfo(np.float32).tiny)
        names = tuple(self.class_list.names[label] for label in labels)
        return PseudoLabels(names, cam, maps.astype(np.float32), mask, confidence)

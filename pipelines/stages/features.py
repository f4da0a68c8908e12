"""`ssr show features`: shows the effect of alignment on image features, as a map in the plane and as numbers.

A sample is an (image, present class) pair; its feature is the mean of the image's patches, weighted by the class's CAM. Both
are stored by `ssr align`, so no image and no ground truth is opened, and CLIP's image tower does not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from pipelines.datasets.classes import palette
from pipelines.encoders.class_embeddings import text_embeddings
from pipelines.encoders.weights import build_clip, resolve_clip
from pipelines.errors import SsrError
from pipelines.evaluation.figures import save_figure
from pipelines.execution.progress import Progress, Silent
from pipelines.figures.feature_map import FeaturePanel, Marks, feature_map
from pipelines.models.alignment import AlignmentHeads
from pipelines.models.alignment_file import read_alignment
from pipelines.ops.prototype_loss import weighted_pool
from pipelines.ops.prototypes import class_means, kmeans_prototypes, purity, spread
from pipelines.options.align import AlignOptions
from pipelines.options.stages import ShowOptions
from pipelines.stores.array_store import ArrayReader
from pipelines.stores.files import write_json
from pipelines.stores.manifest import Manifest
from pipelines.workdir.commands import command_for
from pipelines.workdir.settings import input_digest
from pipelines.workdir.workspace import Workspace

Projection = Literal["tsne", "pca"]

MOST_DOTS = 3000
"""Maximum number of samples drawn, evenly spaced; more points would cover each other, and t-SNE would take hours."""

_CALLED: dict[str, str] = {"tsne": "t-SNE", "pca": "PCA"}


@dataclass(frozen=True)
class Separation:
    """Measures of how well classes are separated, in the space of the features itself.

    Attributes:
        purity: Share of samples whose class is the most frequent one of their k-means cluster, with as many clusters as
            classes.
        within: Mean cosine distance of samples to the mean of their class.
        between: Mean cosine distance between the means of two classes; None for one class.
    """

    purity: float
    within: float
    between: float | None


@dataclass(frozen=True)
class FeatureMap:
    """The files that `run` wrote, and their numbers.

    Attributes:
        picture: The PNG.
        numbers: The JSON that holds the rest.
        projection: The projection that was used.
        photos: Number of images whose samples count.
        left_out: Number of images of the split without patches, or whose labels differ from those that `ssr align` read.
        samples: Number of (image, class) pairs.
        drawn: Number of these that are drawn as dots.
        before: Separation of plain CLIP's features.
        after: Separation of the features projected by the heads.
    """

    picture: Path
    numbers: Path
    projection: Projection
    photos: int
    left_out: int
    samples: int
    drawn: int
    before: Separation
    after: Separation


def run(workspace: Workspace, align: AlignOptions, show: ShowOptions, progress: Progress | None = None) -> FeatureMap:
    """Draw ``WORK/show/features.png`` and write ``WORK/show/features.json``.

    Args:
        workspace: A work directory with trained alignment heads.
        align: Exponent, seed and kind of prototypes, used where the training's own manifest does not have them.
        show: The projection.
        progress: Receives images.

    Raises:
        SsrError: There are no heads, the patches are gone, or the patches are those of another training.
        UsageError: The heads belong to another CLIP, class list or text bank.
    """
    progress = progress or Silent()
    checkpoint = workspace.checkpoint
    if not checkpoint.is_file():
        raise SsrError(f"no {checkpoint.name} in {workspace.work}", f"run `{command_for(workspace.work, 'ssr align')}` first")
    inputs = input_digest(workspace.work / "align" / "tokens.h5", "ssr align")
    align = _as_trained(align, checkpoint, inputs)
    clip = build_clip(resolve_clip(workspace.clip.model, workspace.clip.pretrained))
    classes = workspace.dataset.classes
    text = text_embeddings(clip, classes, workspace.clip)
    alignment = read_alignment(checkpoint, clip.weights, classes, text)
    pooled = _pool(workspace, alignment.heads, align.cam_power, progress)

    present = torch.unique(pooled.classes)
    projection: Projection = show.projection if len(pooled.classes) >= 4 else "pca"  # t-SNE needs neighbours
    drawn = torch.linspace(0, len(pooled.classes) - 1, min(len(pooled.classes), MOST_DOTS)).round().long()
    with torch.no_grad():
        words = F.normalize(alignment.heads.tsa(text.classes), dim=1)  # (C, E)
    if align.prototypes == "class":
        plain = class_means(pooled.before, pooled.classes, len(classes.names))[0]  # (C, E)
    else:
        plain = kmeans_prototypes(pooled.before, len(present)).prototypes  # (P, E)
    sides: list[FeaturePanel] = []
    separations: list[Separation] = []
    for title, features, own_words, prototypes in (
        ("before: plain CLIP", pooled.before, text.classes, plain),
        ("after: through the alignment heads", pooled.after, words, alignment.image_prototypes),
    ):
        separation = _separation(features, pooled.classes, len(classes.names))
        rows = (prototypes.norm(dim=1) > 0.5).nonzero()[:, 0]  # the row of a class without images is zero
        parts = [features[drawn], own_words[present], prototypes[rows]]
        dots, stars, crosses = _lay_out(parts, projection, align.seed)
        owners = rows if align.prototypes == "class" else torch.full_like(rows, -1)
        sides.append(
            FeaturePanel(
                title,
                _described(separation),
                Marks(dots, pooled.classes[drawn].numpy()),
                Marks(stars, present.numpy()),
                Marks(crosses, owners.numpy()),
            )
        )
        separations.append(separation)
    folder = workspace.work / "show"
    made = FeatureMap(
        folder / "features.png", folder / "features.json", projection,
        pooled.photos, pooled.left_out, len(pooled.classes), len(drawn), *separations,
    )  # fmt: skip
    colours = palette()[1 : len(classes.names) + 1]
    save_figure(feature_map(sides[0], sides[1], classes.names, colours, _caption(made)), made.picture)
    counts = torch.bincount(pooled.classes, minlength=len(classes.names)).tolist()
    by_class = {name: count for name, count in zip(classes.names, counts, strict=True) if count}
    numbers = {key: value for key, value in asdict(made).items() if not isinstance(value, Path)}
    write_json(made.numbers, {**numbers, "samples_of_class": by_class})
    return made


@dataclass(frozen=True)
class _Pooled:
    """Features of all samples ``(S, E)`` L2-normalised, their classes ``(S,)``, and the images they come from."""

    before: Tensor
    after: Tensor
    classes: Tensor
    photos: int
    left_out: int


def _as_trained(options: AlignOptions, checkpoint: Path, inputs: str) -> AlignOptions:
    """Return the options that made the features, which are the training's own where its manifest exists."""
    manifest = Manifest.read(checkpoint.with_suffix(".json"))
    if manifest is None:
        return options
    if manifest.settings.get("inputs", inputs) != inputs:
        raise SsrError(f"{checkpoint} was trained on other patches than {checkpoint.parent / 'align'} holds", "run `ssr align`")
    trained = {key: manifest.settings[key] for key in ("cam_power", "seed", "prototypes") if key in manifest.settings}
    return AlignOptions.model_validate({**options.model_dump(), **trained})


@torch.no_grad()
def _pool(workspace: Workspace, heads: AlignmentHeads, power: float, progress: Progress) -> _Pooled:
    folder, samples = workspace.work / "align", [sample for sample in workspace.dataset.samples if sample.labels]
    before: list[Tensor] = []
    after: list[Tensor] = []
    classes: list[int] = []
    photos = 0
    with _store(folder / "tokens.h5") as tokens, _store(folder / "cams.h5") as cams:
        progress.start("show: features", len(samples))
        for sample in samples:
            progress.advance()
            key = sample.image_id
            if key not in tokens or key not in cams or tuple(cams.attributes(key).get("labels", ())) != sample.labels:
                continue
            patches, weights = (_tensor(store.read(key)[0]) for store in (tokens, cams))  # (1, T, E), (1, K, T)
            before.append(weighted_pool(patches, weights**power)[0])  # (K, E)
            after.append(weighted_pool(heads.isa(patches), weights**power)[0])
            classes += sample.labels
            photos += 1
        progress.finish()
    if not photos:
        hint = f"run `{command_for(workspace.work, 'ssr align')}` first"
        raise SsrError(f"{folder} holds patches of no image of split {workspace.dataset.split}", hint)
    return _Pooled(torch.cat(before), torch.cat(after), torch.tensor(classes), photos, len(samples) - photos)


def _store(path: Path) -> ArrayReader:
    try:
        return ArrayReader(path)
    except SsrError as error:
        raise SsrError(error.message, error.hint or "run `ssr align` first") from error


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.float32)).unsqueeze(0)


def _separation(features: Tensor, classes: Tensor, count: int) -> Separation:
    clusters = kmeans_prototypes(features, len(torch.unique(classes)))
    within, between = spread(features, classes, count)
    return Separation(purity(clusters.index, classes), within, between)


def _lay_out(parts: Sequence[Tensor], projection: Projection, seed: int) -> list[NDArray[np.floating]]:
    """Project features and prototypes together, so that their distances compare; the first part has the samples.

    Args:
        parts: ``(n, E)`` each.
        projection: t-SNE from 4 samples on.
        seed: Equal seeds give equal maps on one machine.

    Returns:
        ``(n, 2)`` each.
    """
    points = torch.cat(list(parts)).numpy()
    if projection == "tsne":
        rate = max(len(points) / 48, 10.0)  # scikit-learn's rule without its minimum of 50, which diverges for small n
        tsne = TSNE(perplexity=min(30.0, (len(parts[0]) - 1) / 3), learning_rate=rate, init="pca", random_state=seed)
        with threadpool_limits(1):  # the order of threads would change the sums
            laid: NDArray[np.floating] = tsne.fit_transform(points)
    else:
        laid = PCA(2, svd_solver="full").fit_transform(points)
    return np.split(laid, np.cumsum([len(part) for part in parts])[:-1])


def _described(separation: Separation) -> str:
    between = "-" if separation.between is None else f"{separation.between:.3f}"
    distances = f"cosine distance within classes {separation.within:.3f}, between {between}"
    return f"cluster purity {100 * separation.purity:.1f} %   ·   {distances}"


def _caption(made: FeatureMap) -> str:
    drawn = "" if made.drawn == made.samples else f", {made.drawn:,} of them drawn"
    return (
        f"{made.samples:,} samples (image, class) of {made.photos:,} images{drawn}  ·  {_CALLED[made.projection]}, each panel "
        "laid out by itself  ·  numbers: in the features' own space"
    )

"""Super-classes: a few coarse names above the classes, such as ``animal`` above ``cat`` (CD-CLIP, CVPR 2026)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.datasets.classes import ClassList
from pipelines.encoders.text import encode_prompts
from pipelines.encoders.weights import LoadedClip
from pipelines.ops.agglomeration import agglomerate

CLASSES_A_CLUSTER = 4
"""Mean number of classes in a super-class if the class list names none: 20 classes make 5, the best number for CD-CLIP."""


@dataclass(frozen=True)
class SuperClasses:
    """Super-classes of the classes of a list.

    Attributes:
        names: Name of each super-class; for a cluster, the names of its first members.
        of_class: Place in ``names`` of each class, C numbers.
        named: Whether the class list names them; otherwise they are clusters of the class embeddings.
    """

    names: tuple[str, ...]
    of_class: tuple[int, ...]
    named: bool

    def described(self) -> str:
        """Return one line with the names and the number of classes of each."""
        counts = [self.of_class.count(place) for place in range(len(self.names))]
        listed = ", ".join(f"{name} ({count})" for name, count in zip(self.names, counts, strict=True))
        return f"super-classes {'of the class list' if self.named else 'by clustering'}: {listed}"


def super_classes(classes: ClassList, of_classes: Tensor) -> SuperClasses:
    """Return the super-classes of the class list, or else agglomerative clusters of the class embeddings.

    Args:
        classes: Class list, which may name super-classes.
        of_classes: ``(C, D)``, L2-normalised, in the class list's order.
    """
    if classes.supers:
        names = tuple(dict.fromkeys(classes.supers))
        return SuperClasses(names, tuple(names.index(name) for name in classes.supers), True)
    count = max(1, round(len(classes.names) / CLASSES_A_CLUSTER))
    places = tuple(int(place) for place in agglomerate(of_classes.cpu().numpy(), count))
    members = [[name for name, own in zip(classes.names, places, strict=True) if own == place] for place in range(count)]
    return SuperClasses(tuple("+".join(own[:2]) + ("+..." if len(own) > 2 else "") for own in members), places, False)


def super_embeddings(supers: SuperClasses, of_classes: Tensor, clip: LoadedClip | None, template: str) -> Tensor:
    """Compute the embeddings of the super-classes.

    Args:
        supers: Result of `super_classes`.
        of_classes: ``(C, D)``, L2-normalised.
        clip: CLIP whose text tower embeds the names that the class list gives. Without it, and for clusters, which have no
            name, the mean of the members is used.
        template: Sentence with one ``{}`` for the name.

    Returns:
        ``(S, D)`` fp32, L2-normalised.
    """
    if supers.named and clip is not None:
        return encode_prompts(clip, supers.names, supers.names, template).embeddings
    members = F.one_hot(torch.tensor(supers.of_class), len(supers.names)).to(of_classes)  # (C, S)
    return F.normalize(members.T @ of_classes, dim=1)

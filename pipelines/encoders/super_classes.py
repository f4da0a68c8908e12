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
"""Classes in a super-class on average where the class list names none: 20 classes make 5, best for CD-CLIP."""


@dataclass(frozen=True)
class SuperClasses:
    """Coarse names above the classes of a list.

    Attributes:
        names: One a super-class; of a cluster, the names of its first members.
        of_class: Place in ``names`` of each class, C numbers.
        named: Whether the class list names them; else they are clusters of the class embeddings.
    """

    names: tuple[str, ...]
    of_class: tuple[int, ...]
    named: bool

    def described(self) -> str:
        """One line: the names, with the number of classes of each."""
        counts = [self.of_class.count(place) for place in range(len(self.names))]
        listed = ", ".join(f"{name} ({count})" for name, count in zip(self.names, counts, strict=True))
        return f"super-classes {'of the class list' if self.named else 'by clustering'}: {listed}"


def super_classes(classes: ClassList, of_classes: Tensor) -> SuperClasses:
    """Those of the class list, or else agglomerative clusters of the class embeddings.

    Args:
        classes: Names, and super-classes where some are named.
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
    """Embeddings of the super-classes.

    Args:
        supers: As of `super_classes`.
        of_classes: ``(C, D)``, L2-normalised.
        clip: Its text tower reads the names that the class list gives; None, or clusters that have no name: the mean of
            the members stands for each.
        template: Sentence with one ``{}`` for a name.

    Returns:
        ``(S, D)`` fp32, L2-normalised.
    """
    if supers.named and clip is not None:
        return encode_prompts(clip, supers.names, supers.names, template).embeddings
    members = F.one_hot(torch.tensor(supers.of_class), len(supers.names)).to(of_classes)  # (C, S)
    return F.normalize(members.T @ of_classes, dim=1)

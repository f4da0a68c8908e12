"""Co-occurrence: what the photos of a patch's look-alikes have in common.

An image-level label does not say where its object is, but patches of the object come back in other photos of that label, and
patches of its surroundings come back in photos of all labels.
"""

from __future__ import annotations

from torch import Tensor


def neighbour_labels(patches: Tensor, bank: Tensor, present: Tensor, neighbours: int, barred: Tensor | None = None) -> Tensor:
    """How many of a patch's nearest neighbours are of photos with a label.

    Args:
        patches: ``(Q, D)``, L2-normalised.
        bank: ``(V, D)``, L2-normalised: patches of many photos.
        present: ``(V, C)`` fp32, 1 where the photo of a row of the bank has the label.
        neighbours: How many are counted; all that there are, if there are fewer.
        barred: ``(V,)`` bool, rows that are no neighbours: those of the patches' own photo, whose labels prove nothing.

    Returns:
        ``(Q, C)`` in [0, 1].
    """
    likeness = (patches @ bank.T).float()  # (Q, V)
    if barred is not None:
        likeness = likeness.masked_fill(barred, float("-inf"))
    count = min(neighbours, len(bank) if barred is None else int((~barred).sum()))
    if count == 0:
        return present.new_zeros(len(patches), present.shape[1])
    nearest = likeness.topk(count, dim=1).indices  # (Q, count)
    return present[nearest].mean(dim=1)

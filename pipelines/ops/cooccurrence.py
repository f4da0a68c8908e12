"""Co-occurrence: the labels that a patch's nearest neighbours in other images have in common.

An image-level label gives no place for its object, but similar patches of the object occur in other images of that label, while
patches of its surroundings occur in images of all labels.
"""

from __future__ import annotations

from torch import Tensor


def neighbour_labels(patches: Tensor, bank: Tensor, present: Tensor, neighbours: int, barred: Tensor | None = None) -> Tensor:
    """Return the share of each patch's nearest neighbours whose images have a label.

    Args:
        patches: ``(Q, D)``, L2-normalised.
        bank: ``(V, D)``, L2-normalised: patches of many images.
        present: ``(V, C)`` fp32, 1 where the image of a row of the bank has the label.
        neighbours: Number of neighbours; if the bank has fewer rows, all are counted.
        barred: ``(V,)`` bool, rows that do not count as neighbours: patches of the same image, whose labels prove nothing.

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

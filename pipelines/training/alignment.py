"""The training of CMPA's heads: contrast steps, refreshes of the prototypes, and a state that can be resumed exactly."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.errors import UsageError
from pipelines.models.alignment import AlignmentHeads
from pipelines.ops.prototype_loss import weighted_pool
from pipelines.ops.prototypes import class_means, kmeans_prototypes, purity, spread
from pipelines.options.align import AlignOptions
from pipelines.training.alignment_data import AlignmentData, photo_order, steps_an_epoch
from pipelines.training.alignment_loss import Prototypes, alignment_loss
from pipelines.training.curves import refuse_diverged
from pipelines.training.optimiser_state import optimiser_tensors, restore_optimiser
from pipelines.training.processes import Processes

BEST_PATCHES = 0.02
"""Share of an image's patches whose mean score decides how well the heads find a class."""


@dataclass(frozen=True)
class Quality:
    """Measures of how well the heads separate classes on the training images. They need labels and no ground truth.

    Attributes:
        iteration: Number of steps done.
        loss: Mean loss since the last measurement; None before the first step.
        temperature: Temperature of the softmax.
        purity: Share of samples whose class is the most frequent one of their k-means cluster, with as many clusters as
            classes.
        within: Mean cosine distance of samples to the mean of their class.
        between: Mean cosine distance between the means of two classes; None for one class.
    """

    iteration: int
    loss: float | None
    temperature: float
    purity: float
    within: float
    between: float | None


def step_count(options: AlignOptions, photos: int) -> int:
    """Return the number of steps of a whole training."""
    by_epochs = round(options.epochs * steps_an_epoch(photos, options.batch))
    return options.iterations or max(1, options.min_iterations, by_epochs)


class AlignmentTrainer:
    """The heads, the optimiser and the prototypes at one moment of the training.

    Args:
        data: The images.
        text: Class and background embeddings ``(C + M, E)``, L2-normalised.
        class_count: The number of classes C.
        options: Losses, schedule, batch and prototypes.
        device: Where to train.
        processes: This process and its peers; each takes its share of every batch.

    Raises:
        UsageError: There are more processes than images in a batch.
    """

    def __init__(
        self,
        data: AlignmentData,
        text: Tensor,
        class_count: int,
        options: AlignOptions,
        device: torch.device,
        processes: Processes = Processes(),  # noqa: B008 - frozen
    ) -> None:
        self.data, self.options, self.device, self.processes = data, options, device, processes
        share = min(options.batch, len(data)) // processes.count
        if share == 0:
            found = f"{processes.count} processes share batches of {min(options.batch, len(data))} images"
            raise UsageError(found, "--batch, or fewer processes")
        self.text, self.class_count = text.to(device), class_count
        torch.manual_seed(options.seed)
        heads = AlignmentHeads(
            text.shape[1], options.hidden, options.residual, options.temperature, options.learn_temperature
        ).to(device)
        if processes.count > 1 and device.type == "cuda":
            heads = nn.SyncBatchNorm.convert_sync_batchnorm(heads)  # type: ignore[no-untyped-call]
        self.heads = heads
        trained = [parameter for parameter in heads.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=options.weight_decay)
        self.iterations = step_count(options, len(data))
        self.refresh_every = options.refresh or steps_an_epoch(len(data), options.batch)
        self.iteration = 0
        self.prototypes = Prototypes(torch.empty(0))
        self._image_clusters: list[Tensor] | None = None
        self._losses: list[float] = []

    def steps(self) -> Iterator[float]:
        """Train from the present step to the end; prototypes are refreshed before the first step and in fixed intervals.

        Yields:
            The loss of each step, after the step is taken.
        """
        if not self.prototypes.image.numel():
            self.refresh()
        batches = islice(photo_order(len(self.data), self.options.batch, self.options.seed), self.iteration, None)
        while self.iteration < self.iterations:
            loss = self._step(next(batches))
            self.iteration += 1
            if self.iteration % self.refresh_every == 0 or self.iteration == self.iterations:
                self.refresh()
            yield loss

    def _step(self, photos: list[int]) -> float:
        self.heads.train()
        share = photos[self.processes.rank :: self.processes.count]
        batch = self.data.batch(share, self.device, self._image_clusters)
        noise = self._noise(batch.classes.shape)
        loss = alignment_loss(self.heads, batch, self.text, self.class_count, self.prototypes, self.options, noise)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate(self.iteration)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.processes.average_gradients(self.heads.parameters())
        self.optimiser.step()
        self._losses.append(loss.item())
        refuse_diverged({"loss": self._losses[-1]}, self.iteration)
        return self._losses[-1]

    def learning_rate(self, iteration: int) -> float:
        """Return a step's rate, which falls linearly to ``final_rate`` of itself, so that the last batches do not decide."""
        fallen = (1 - self.options.final_rate) * iteration / max(1, self.iterations - 1)
        return self.options.learning_rate * (1 - fallen)

    def _noise(self, slots: torch.Size) -> Tensor | None:
        """Draw the noise of this step and process, the same after a resume; its length is ``text_noise`` on average."""
        if not self.options.text_noise:
            return None
        draw = torch.Generator().manual_seed(
            zlib.crc32(repr((self.options.seed, self.iteration, self.processes.rank)).encode())
        )
        width = self.text.shape[1]
        noise = torch.randn(*slots, width, generator=draw).to(self.device)  # (B, K, E)
        return torch.mul(noise, self.options.text_noise / width**0.5)

    def refresh(self) -> None:
        """Make prototypes from the present image features of all samples."""
        self.processes.copy_from_first(self.heads.buffers())
        classes = self.data.classes.to(self.device)  # (S,)
        image = self.image_features()  # (S, E)
        if self.options.prototypes == "class":
            means, _ = class_means(image, classes, self.class_count)
            self.prototypes = Prototypes(means)  # a class without images is the positive of no sample: its row is zero
            return
        words = self.words()[: self.class_count]  # (C, E)
        known = torch.unique(classes)
        of_image = kmeans_prototypes(image, len(known))
        of_text = kmeans_prototypes(words[known], len(known))
        text_clusters = torch.zeros(self.class_count, dtype=torch.int64, device=self.device)
        text_clusters[known] = of_text.index
        self.prototypes = Prototypes(of_image.prototypes, of_text.prototypes, text_clusters)
        self._image_clusters = self._by_photo(of_image.index.cpu())

    def quality(self) -> Quality:
        """Measure purity and distances of the samples, and the mean loss since the last call."""
        classes = self.data.classes.to(self.device)
        image = self.image_features()
        clusters = kmeans_prototypes(image, len(torch.unique(classes)))
        within, between = spread(image, classes, self.class_count)
        losses, self._losses = self._losses, []
        loss = sum(losses) / len(losses) if losses else None
        temperature = self.heads.temperature.item()
        return Quality(self.iteration, loss, temperature, purity(clusters.index, classes), within, between)

    @torch.no_grad()
    def image_features(self) -> Tensor:
        """Return f_image of all samples, ``(S, E)`` L2-normalised, in the order of `AlignmentData.samples`."""
        self.heads.eval()
        found: list[Tensor] = []
        for start in range(0, len(self.data), self.options.batch):
            batch = self.data.batch(range(start, min(start + self.options.batch, len(self.data))), self.device)
            pooled = weighted_pool(self.heads.isa(batch.tokens), batch.cams**self.options.cam_power)  # (B, K, E)
            found.append(pooled[batch.classes >= 0])
        return torch.cat(found)

    @torch.no_grad()
    def words(self) -> Tensor:
        """Return the projected class and background embeddings, ``(C + M, E)`` L2-normalised."""
        self.heads.eval()
        return F.normalize(self.heads.tsa(self.text), dim=1)

    @torch.no_grad()
    def average_precision(self) -> Tensor:
        """Measure how well the heads find each class's images among all others, by its best patches.

        This needs labels and no ground truth.

        Returns:
            ``(C,)`` fp32 in [0, 1]; 0 for a class without images.
        """
        from sklearn.metrics import average_precision_score  # here, because its import takes a second

        self.heads.eval()
        words, temperature = self.words(), self.heads.temperature
        best = max(1, round(BEST_PATCHES * self.data.tokens.shape[1]))
        found: list[Tensor] = []
        for start in range(0, len(self.data), self.options.batch):
            batch = self.data.batch(range(start, min(start + self.options.batch, len(self.data))), self.device)
            scores = F.normalize(self.heads.isa(batch.tokens), dim=2) @ words.T / temperature  # (B, T, C + M)
            shares = scores.softmax(dim=2)[:, :, : self.class_count]  # (B, T, C)
            found.append(shares.topk(best, dim=1).values.mean(dim=1).cpu())  # (B, C)
        present = torch.zeros(len(self.data), self.class_count, dtype=torch.bool)  # (P, C)
        for photo, labels in enumerate(self.data.labels):
            present[photo, list(labels)] = True
        ranked = torch.cat(found).numpy()
        return torch.tensor(
            [
                average_precision_score(own, score) if own.any() else 0.0
                for own, score in zip(present.numpy().T, ranked.T, strict=True)
            ],
            dtype=torch.float32,
        )

    def _by_photo(self, values: Tensor) -> list[Tensor]:
        """Split one value per sample into the samples of each image."""
        return list(torch.split(values, [len(labels) for labels in self.data.labels]))

    def state(self) -> dict[str, Tensor]:
        """Return all tensors that `restore` needs, by name. They are no copies: write them before the next step."""
        tensors = {f"heads.{name}": tensor for name, tensor in self.heads.state_dict().items()}
        tensors |= optimiser_tensors(self.optimiser)
        prototypes = self.prototypes
        tensors["prototypes.image"] = prototypes.image
        if prototypes.text is not None and prototypes.text_clusters is not None and self._image_clusters is not None:
            tensors["prototypes.text"], tensors["prototypes.text_clusters"] = prototypes.text, prototypes.text_clusters
            tensors["prototypes.image_clusters"] = torch.cat(self._image_clusters)
        tensors["iteration"] = torch.tensor(self.iteration)
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore a `state` of the same data and options; the following steps are those of an uninterrupted run."""
        self.heads.load_state_dict({k.removeprefix("heads."): v for k, v in tensors.items() if k.startswith("heads.")})
        restore_optimiser(self.optimiser, tensors)
        text, text_clusters = tensors.get("prototypes.text"), tensors.get("prototypes.text_clusters")
        if text is not None and text_clusters is not None:
            text, text_clusters = text.to(self.device), text_clusters.to(self.device)
            self._image_clusters = self._by_photo(tensors["prototypes.image_clusters"])
        self.prototypes = Prototypes(tensors["prototypes.image"].to(self.device), text, text_clusters)
        self.iteration = int(tensors["iteration"])

"""Two processes over gloo train the decoder as one process with all crops does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.fixtures.together import run_together

TOGETHER = """\
import json, multiprocessing, os, sys
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from pipelines.models.alignment import AlignmentHeads
from pipelines.models.decoder import SegmentationDecoder
from pipelines.options.align import AlignOptions
from pipelines.options.train import TrainOptions
from pipelines.training.alignment_loss import Batch
from pipelines.training.losses import Targets
from pipelines.training.online_alignment import OnlineAlignment
from pipelines.training.processes import Processes, joined_processes
from pipelines.training.segmentation import SegmentationTrainer

CLASSES, GRID, EMBED, STEPS = 3, (3, 4), 5, 6


def crop(step, slot):
    draw = torch.Generator().manual_seed(100 * step + slot)
    labels = torch.randint(1, CLASSES + 1, (16, 16), generator=draw)
    labels[torch.rand(16, 16, generator=draw) > 0.1 + 0.2 * slot] = 0  # crops weigh very differently
    labels[: 3 * slot + 1] = 255
    return torch.randn(2, 12, 6, generator=draw), labels


def learn(trainer, step, slots, heads):
    if not slots:
        trainer.skip()
        return
    tokens, labels = zip(*(crop(step, slot) for slot in slots))
    draw = torch.Generator().manual_seed(step)
    features, cams = torch.randn(9, 12, EMBED, generator=draw), torch.rand(9, 1, 12, generator=draw)
    classes = torch.tensor([[(step + slot) % CLASSES] for slot in slots])
    samples = Batch(features[list(slots)], cams[list(slots)], classes, torch.zeros_like(classes))
    state = trainer.forward(torch.stack(tokens, 1), GRID, slots)
    trainer.backward(state, Targets(torch.stack(labels), samples if heads else None))


def take_step(trainer, step, rank, count, run):
    slots = [slot for slot in range(run["batch"]) if slot % count == rank and [step, slot] not in run["bad"]]
    for number in range(trainer.micro_batches):
        learn(trainer, step, tuple(s for s in slots if s // 2 % trainer.micro_batches == number), run["heads"])
    trainer.step()


def trainer_of(run, processes):
    torch.manual_seed(0)
    decoder = SegmentationDecoder(2, 6, CLASSES, hidden=8, layers=1, heads=2)
    heads = AlignmentHeads(EMBED, 6, False, 0.1, learn_temperature=False).eval().requires_grad_(False)
    words, prototypes = F.normalize(torch.randn(CLASSES + 2, EMBED), dim=1), F.normalize(torch.randn(CLASSES, EMBED), dim=1)
    alignment = OnlineAlignment(heads, prototypes, words, AlignOptions(), 4, processes) if run["heads"] else None
    options = TrainOptions(
        hidden=8, dropout=0.3, affinity_loss=0.1, affinity_radius=1, iterations=STEPS, warmup=2, learning_rate=1e-3,
        train_heads=run["heads"],
    )
    cpu = torch.device("cpu")
    return SegmentationTrainer(decoder, options, cpu, alignment, processes, micro_batches=run["accumulate"])


def trained(run, processes, stop=None):
    trainer = trainer_of(run, processes)
    while trainer.iteration < STEPS:
        take_step(trainer, trainer.iteration, processes.rank, processes.count, run)
        if trainer.iteration == stop:  # the first one writes, all go on from that
            tensors = {name: tensor.detach().clone() for name, tensor in trainer.state().items()}
            if processes.first:
                save_file(tensors, "stopped.safetensors")
            processes.wait()
            from safetensors.torch import load_file
            trainer = trainer_of(run, processes)
            trainer.restore(load_file("stopped.safetensors"))
            processes.wait()
    found = {name: tensor.detach().clone() for name, tensor in trainer.state().items()}
    gradients = {f"gradient.{name}": p.grad.clone() for name, p in trainer.decoder.named_parameters()}
    return found | gradients


def train(rank, runs):
    os.environ["RANK"] = str(rank)
    torch.set_num_threads(1)
    with joined_processes(torch.device("cpu")) as (processes, device):
        ones = torch.full((2,), 1.0 + rank)
        assert processes.sum(ones) is ones and ones.tolist() == [3, 3]
        assert processes.gather([("bad", rank)] * rank) == [("bad", 1)]
        assert processes.gather([rank]) == [0, 1]
        for name, run in runs.items():
            save_file(trained(run, processes), f"{name}-{rank}.safetensors")
            save_file(trained(run, processes, stop=2), f"{name}-{rank}-stopped.safetensors")
            if rank == 0:
                save_file(trained(run, Processes()), f"{name}-alone.safetensors")


if __name__ == "__main__":
    runs = json.loads(sys.argv[1])
    second = multiprocessing.get_context("fork").Process(target=train, args=(1, runs), daemon=True)
    second.start()
    train(0, runs)
    second.join()
    sys.exit(second.exitcode)
"""
RUNS = {
    name: {"batch": 4, "bad": [], "accumulate": 1, "heads": False, **changed}
    for name, changed in {
        "halves": {},
        "odd": {"batch": 3},
        "empty": {"bad": [[1, 1], [1, 3], [5, 0]]},  # the second process has nothing at step 1
        "nobody": {"bad": [[2, slot] for slot in range(4)]},
        "accumulated": {"accumulate": 2, "bad": [[3, 1]]},
        "heads": {"heads": True, "bad": [[1, 1], [1, 3]]},
    }.items()
}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the final state of each of two processes, and of one alone, for each of `RUNS`."""
    folder = tmp_path_factory.mktemp("together")
    run_together(folder, TOGETHER, RUNS)
    return folder


def without_rounding(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A key's bias has no gradient: Adam makes whole steps of its rounding."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith("in_proj_bias"):
            query, _, value = tensor.chunk(3)
            tensor = torch.cat([query, value])
        if not name.startswith("optimiser"):
            found[name] = tensor
    return found


@pytest.mark.parametrize("name", RUNS)
def test_both_end_with_the_same_weights(together, name):
    first, second = (load_file(together / f"{name}-{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


@pytest.mark.parametrize("name", [name for name in RUNS if name != "heads"])
def test_two_processes_equal_one_with_all_crops(together, name):
    """With heads they do not: BatchNorm sees the crops of its own process."""
    shared, alone = (without_rounding(load_file(together / f"{name}-{who}.safetensors")) for who in ("0", "alone"))
    assert shared.keys() == alone.keys()
    for key, tensor in alone.items():
        torch.testing.assert_close(shared[key], tensor, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


def test_the_comparison_bites(together):
    one, other = (load_file(together / f"{name}-alone.safetensors") for name in ("halves", "empty"))
    assert not torch.allclose(one["decoder.classifier.weight"], other["decoder.classifier.weight"], atol=1e-4)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("rank", [0, 1])
def test_stopped_and_resumed_they_end_with_the_same_bytes(together, name, rank):
    """The state is the first process's; the sums for the prototypes are of all."""
    undisturbed, resumed = (load_file(together / f"{name}-{rank}{how}.safetensors") for how in ("", "-stopped"))
    assert undisturbed.keys() == resumed.keys()
    for key, tensor in undisturbed.items():
        assert torch.equal(resumed[key], tensor), key


def test_prototypes_are_made_of_the_crops_of_both(together):
    found = load_file(together / "heads-0.safetensors")
    assert found["alignment.sums"].any()
    alone = load_file(together / "heads-alone.safetensors")
    cosine = torch.cosine_similarity(found["alignment.prototypes"], alone["alignment.prototypes"], dim=1)
    assert (cosine > 0.9).all()

"""One process alone, and two over gloo that must end with the same heads."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.options.align import AlignOptions
from pipelines.training.alignment import AlignmentTrainer
from pipelines.training.alignment_data import AlignmentData, photo_order
from pipelines.training.alignment_loss import alignment_loss
from pipelines.training.processes import Processes, joined_processes
from tests.fixtures.together import run_together, two_processes

CPU = torch.device("cpu")
CLASSES, EMBED, PATCHES = 3, 6, 5
LABELS = [(0,), (1, 2), (2,), (0, 1), (1,), (0, 2), (2,)]

TOGETHER = """\
import json, multiprocessing, os, sys
import torch
from safetensors.torch import load_file, save_file
from pipelines.options.align import AlignOptions
from pipelines.training.alignment import AlignmentTrainer
from pipelines.training.alignment_data import AlignmentData
from pipelines.training.processes import joined_processes

shares, batch = [], AlignmentData.batch


def spy(data, photos, device, clusters=None):
    if isinstance(photos, list):  # not those of a refresh
        shares.append(photos)
    return batch(data, photos, device, clusters)


def train(rank, given):
    os.environ["RANK"] = str(rank)
    torch.set_num_threads(1)
    stored = load_file("given.safetensors")
    labels = [tuple(own) for own in given["labels"]]
    data = AlignmentData(stored["tokens"].numpy(), [stored[f"cams.{i}"].numpy() for i in range(len(labels))], labels)
    AlignmentData.batch = spy
    with joined_processes(torch.device("cpu")) as (processes, device):
        assert processes.rank == rank and processes.count == 2 and processes.first == (rank == 0)
        graded, still = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.ones(2))
        graded.grad = torch.full((3,), 1.0 + 2 * rank)
        processes.average_gradients([graded, still])
        assert graded.grad.tolist() == [2, 2, 2] and still.grad is None, graded.grad
        buffers = [torch.full((2,), float(rank)), torch.tensor(rank + 7)]
        processes.copy_from_first(buffers)
        assert buffers[0].tolist() == [0, 0] and buffers[1] == 7, buffers
        for name, options in given["runs"].items():
            shares.clear()
            trainer = AlignmentTrainer(
                data, stored["text"], given["classes"], AlignOptions(**options), device, processes
            )
            for _ in trainer.steps():
                pass
            processes.wait()
            save_file({k: v.detach().clone() for k, v in trainer.state().items()}, f"{name}{rank}.safetensors")
            with open(f"{name}{rank}.json", "w") as file:
                json.dump(shares, file)
    assert not torch.distributed.is_initialized()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    # imports take longest by far: both share them
    second = multiprocessing.get_context("fork").Process(target=train, args=(1, given), daemon=True)
    second.start()
    train(0, given)
    second.join()
    sys.exit(second.exitcode)
"""
RUNS = {
    name: {
        "prototypes": name,
        "hidden": 8,
        "batch": 4,
        "iterations": 7,
        "refresh": 3,
        "learn_temperature": True,
        "learning_rate": 1e-3,
    }
    for name in ("class", "kmeans")
}


def photos() -> AlignmentData:
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(len(LABELS), PATCHES, EMBED)).astype(np.float16)
    return AlignmentData(tokens, [rng.random((len(own), PATCHES), np.float32) for own in LABELS], LABELS)


def text() -> Tensor:
    return F.normalize(torch.randn(CLASSES + 2, EMBED, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the final state and the photos of every step of each of two processes, for each of `RUNS`."""
    folder = tmp_path_factory.mktemp("together")
    data = photos()
    given = {"tokens": torch.from_numpy(data.tokens), "text": text()}
    save_file(given | {f"cams.{i}": torch.from_numpy(cams) for i, cams in enumerate(data.cams)}, folder / "given.safetensors")
    run_together(folder, TOGETHER, {"labels": LABELS, "classes": CLASSES, "runs": RUNS})
    return folder


def twin(options: AlignOptions) -> AlignmentTrainer:
    """Both processes in one: each half's gradient by itself, their mean, BatchNorm's running numbers of the first."""
    trainer = AlignmentTrainer(photos(), text(), CLASSES, options, CPU)
    trainer.refresh()
    for rows in islice(photo_order(len(LABELS), options.batch, options.seed), options.iterations):
        trainer.heads.train()
        gradients = []
        for heads, half in ((trainer.heads, rows[::2]), (copy.deepcopy(trainer.heads), rows[1::2])):
            batch = trainer.data.batch(half, CPU, trainer._image_clusters)
            loss = alignment_loss(heads, batch, trainer.text, CLASSES, trainer.prototypes, options)
            trained = [parameter for parameter in heads.parameters() if parameter.requires_grad]
            gradients.append(torch.autograd.grad(loss, trained))
        trained = [parameter for parameter in trainer.heads.parameters() if parameter.requires_grad]
        for parameter, first, second in zip(trained, *gradients, strict=True):
            parameter.grad = (first + second) / 2
        (group,) = trainer.optimiser.param_groups
        begin, end = options.learning_rate, options.learning_rate * options.final_rate
        group["lr"] = begin + (end - begin) * trainer.iteration / (options.iterations - 1)
        trainer.optimiser.step()
        trainer.iteration += 1
        if trainer.iteration % options.refresh == 0 or trainer.iteration == options.iterations:
            trainer.refresh()
    return trainer


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_one_model(together, name):
    options = AlignOptions(**RUNS[name])
    first, second = (load_file(together / f"{name}{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    expected = twin(options).state()
    assert first.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(first[key], tensor, rtol=1e-3, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")
    untrained = AlignmentTrainer(photos(), text(), CLASSES, options, CPU).state()
    assert not torch.allclose(first["heads.isa.layers.3.weight"], untrained["heads.isa.layers.3.weight"], atol=1e-3)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("rank", [0, 1])
def test_each_takes_its_share_of_every_batch(together, name, rank):
    shares = json.loads((together / f"{name}{rank}.json").read_text())
    assert shares == [rows[rank::2] for rows in islice(photo_order(len(LABELS), 4, 0), 7)]


def test_alone_by_default(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_processes(torch.device("meta")) as (processes, device):
        assert processes == Processes(0, 1)
        assert processes.first
        assert device == torch.device("meta")
        parameter = nn.Parameter(torch.ones(2))
        parameter.grad = torch.tensor([1.0, 2.0])
        processes.average_gradients([parameter])
        assert parameter.grad.tolist() == [1, 2]
        tensor = torch.ones(2)
        processes.copy_from_first([tensor])
        assert tensor.tolist() == [1, 1]
        processes.wait()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_first_one_alone_writes(rank):
    assert Processes(rank, 3).first == (rank == 0)


LEFT_ALONE = """\
import os, sys
import torch
from pipelines.errors import SsrError
from pipelines.training.processes import joined_processes
try:
    with joined_processes(torch.device("cpu")) as (processes, _):
        processes.wait()
        if not processes.first:
            os._exit(3)
        processes.wait()
except SsrError as error:
    print(error)
"""


def test_a_process_that_is_left_alone_says_so():
    launch = [sys.executable, "-c", LEFT_ALONE]
    environment = two_processes()
    first, second = (
        subprocess.Popen(launch, env=environment | {"RANK": rank}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    )
    said, errors = first.communicate(timeout=120)
    assert second.wait(timeout=60) == 3
    assert said == "another process of this training has ended (see its own messages)\n", errors

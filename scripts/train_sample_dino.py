"""Train the embedded DINO from scratch on drawn pictures, without labels or captions.

    python scripts/train_sample_dino.py --out pipelines/sample/models/dino.safetensors

Self-distillation of two crops (DINO, Caron et al. 2021) and of masked patches (iBOT, Zhou et al. 2022), targets balanced by
Sinkhorn (SwAV, Caron et al. 2020).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from drawn_images import drawn_images
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

CONFIG = json.loads((Path(__file__).parents[1] / "pipelines" / "sample" / "models" / "dino.json").read_text())
SIDE = CONFIG["model_args"]["img_size"]
WIDTH = CONFIG["model_args"]["embed_dim"]
PROTOTYPES = 1024


class Head(nn.Module):
    """Token -> logits over prototypes; prototypes are unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 128))
        self.prototypes = nn.Parameter(F.normalize(torch.randn(PROTOTYPES, 128), dim=1))

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., D)`` -> ``(..., 1024)``, cosines."""
        return F.normalize(self.mlp(tokens).float(), dim=-1) @ F.normalize(self.prototypes, dim=1).T


class Student(nn.Module):
    """A ViT with its head and the vector that stands for a masked patch."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm.create_model(CONFIG["architecture"], num_classes=0, dynamic_img_size=True, **CONFIG["model_args"])
        self.head = Head()
        self.masked = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of CLS ``(B, P)`` and of patches ``(B, N, P)``, or of the masked ones ``(M, P)``."""
        vit = self.vit
        x = vit.patch_embed(images)  # (B, h, w, D)
        if mask is not None:
            x = torch.where(mask.view(*x.shape[:3], 1), self.masked.to(x.dtype), x)
        x = vit.norm(vit.blocks(vit._pos_embed(x)))  # (B, N + 1, D)
        patches = x[:, 1:] if mask is None else x[:, 1:][mask]
        return self.head(x[:, 0]), self.head(patches)


def crops(images: np.ndarray, rng: np.random.Generator) -> Tensor:
    """One random crop of each picture, mirrored, tinted, sometimes grey: ``(B, 3, 96, 96)``, normalised."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    count = len(x)
    zoom = np.sqrt(rng.uniform(0.35, 1.0, count))
    theta = np.zeros((count, 2, 3), np.float32)
    theta[:, 0, 0] = zoom * rng.choice([-1, 1], count)
    theta[:, 1, 1] = zoom
    theta[:, :, 2] = rng.uniform(-1, 1, (count, 2)) * (1 - zoom)[:, None]
    x = F.grid_sample(x, F.affine_grid(torch.from_numpy(theta), [count, 3, SIDE, SIDE], False), "bilinear", "border", False)
    gain = torch.from_numpy(rng.uniform(0.7, 1.3, (count, 3, 1, 1)).astype(np.float32))
    x = x * gain
    grey = torch.from_numpy(rng.random(count) < 0.1)[:, None, None, None]
    x = torch.where(grey, x.mean(1, keepdim=True).expand_as(x), x)
    mean, std = (torch.tensor(CONFIG["pretrained_cfg"][key]).view(3, 1, 1) for key in ("mean", "std"))
    return (x - mean) / std


@torch.no_grad()
def balanced(logits: Tensor, temperature: float) -> Tensor:
    """Sinkhorn: every prototype is used alike, every row sums to 1. ``(M, P)``."""
    q = torch.exp((logits - logits.max()) / temperature)
    for _ in range(3):
        q = q / q.sum(0, keepdim=True).clamp_min(1e-12)
        q = q / q.sum(1, keepdim=True)
    return q


def cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """Mean over rows, student temperature 0.1."""
    return -(target * F.log_softmax(logits / 0.1, dim=-1)).sum(-1).mean()


def main() -> None:
    """Train and write fp16 safetensors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=30000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    images, _ = drawn_images(arguments.pictures)
    student = Student()
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=arguments.lr, weight_decay=0.05, betas=(0.9, 0.99))
    warmup, patches = arguments.steps // 12, (SIDE // CONFIG["model_args"]["patch_size"]) ** 2
    start = time.time()
    for step in range(arguments.steps):
        progress = step / arguments.steps
        share = min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = arguments.lr * share
        chosen = images[rng.integers(0, len(images), arguments.batch)]
        views = torch.cat([crops(chosen, rng), crops(chosen, rng)])  # (2B, 3, 96, 96)
        mask = torch.from_numpy(rng.random((len(views), patches)) < rng.uniform(0.1, 0.5, (len(views), 1)))  # (2B, N)
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                cls_teacher, patch_teacher = teacher(views)
            cls_student, patch_student = student(views, mask)
        half = arguments.batch
        swapped = torch.cat([cls_teacher[half:], cls_teacher[:half]]).float()
        loss_cls = cross_entropy(balanced(swapped, 0.05), cls_student.float())
        loss_patch = cross_entropy(balanced(patch_teacher[mask].float(), 0.05), patch_student.float())
        optimizer.zero_grad()
        (loss_cls + loss_patch).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimizer.step()
        momentum = 1 - (1 - 0.99) * (math.cos(math.pi * progress) + 1) / 2
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 1 - momentum)
        if step % 50 == 49 or step == arguments.steps - 1:
            rate = (step + 1) * arguments.batch / (time.time() - start)
            print(f"step {step + 1}  cls {loss_cls:.3f}  patch {loss_patch:.3f}  {rate:.0f} pictures/s", flush=True)
            save_file({k: v.half().contiguous() for k, v in teacher.vit.state_dict().items()}, arguments.out)


if __name__ == "__main__":
    main()

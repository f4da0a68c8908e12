"""Train the embedded DINO from scratch on drawn pictures, without labels or captions.

    python scripts/train_sample_dino.py --out pipelines/sample/models/dino.safetensors

Self-distillation of two crops (DINO, Caron et al. 2021) and of masked patches (iBOT, Zhou et al. 2022), targets balanced by
Sinkhorn (SwAV, Caron et al. 2020). A large DINO's attention comes to join the patches of one thing by itself; here the values
that it brings to a patch have to fit the patch's target too.
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
from drawn_images import SMALL, drawn_images, for_half_size
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelines.ops.attention import mean_attention

CONFIG = json.loads((Path(__file__).resolve().parents[1] / "pipelines" / "sample" / "models" / "dino.json").read_text())
SIDE, PATCH = 2 * CONFIG["model_args"]["img_size"], 2 * CONFIG["model_args"]["patch_size"]
"""In training; the file gets patches of half the size (`drawn_images.for_half_size`)."""

WIDTH = CONFIG["model_args"]["embed_dim"]
PROTOTYPES = 256


class Head(nn.Module):
    """Token -> cosine with each prototype."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 128))
        self.prototypes = nn.Parameter(F.normalize(torch.randn(PROTOTYPES, 128), dim=1))

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., D)`` -> ``(..., 256)``."""
        return F.normalize(self.mlp(tokens).float(), dim=-1) @ F.normalize(self.prototypes, dim=1).T


class Student(nn.Module):
    """A ViT with its head and the vector that stands for a masked patch."""

    def __init__(self) -> None:
        super().__init__()
        shape = CONFIG["model_args"] | {"img_size": SIDE, "patch_size": PATCH}
        self.vit = timm.create_model(CONFIG["architecture"], num_classes=0, dynamic_img_size=True, **shape)
        self.head = Head()
        self.masked = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Cosines of CLS ``(B, P)``, of patches ``(B, N, P)``, and of what the last block's attention brings to them."""
        vit = self.vit
        x = vit.patch_embed(images)  # (B, h, w, D)
        if mask is not None:
            x = torch.where(mask.view(*x.shape[:3], 1), self.masked.to(x.dtype), x)
        x = vit._pos_embed(x)  # (B, N + 1, D)
        *most, last = vit.blocks
        for block in most:
            x = block(x)
        brought = vit.norm(attended_values(last, x[:, 1:]))
        x = vit.norm(last(x))
        return self.head(x[:, 0]), self.head(x[:, 1:]), self.head(brought)


def attended_values(block: nn.Module, x: Tensor) -> Tensor:
    """Values of a block, averaged by its head-averaged attention between patches, ``(B, N, D)``."""
    attn = block.attn
    query, key, value = attn.qkv(block.norm1(x)).chunk(3, -1)
    attention = mean_attention(query, key, attn.num_heads)  # (B, N, N)
    return attn.proj(attention @ value)


def crops(images: np.ndarray, rng: np.random.Generator) -> Tensor:
    """One random crop of each picture, mirrored, tinted, sometimes grey: ``(B, 3, 128, 128)``, normalised."""
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
    parser.add_argument("--pictures", type=int, default=24000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    images = drawn_images(arguments.pictures, SMALL).images.numpy()
    student = Student()
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=arguments.lr, weight_decay=0.05, betas=(0.9, 0.99))
    warmup, patches = max(1, arguments.steps // 12), (SIDE // PATCH) ** 2
    start = time.time()
    for step in range(arguments.steps):
        progress = step / arguments.steps
        share = min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = arguments.lr * share
        chosen = images[rng.integers(0, len(images), arguments.batch)]
        views = torch.cat([crops(chosen, rng), crops(chosen, rng)])  # (2B, 3, 128, 128)
        mask = torch.from_numpy(rng.random((len(views), patches)) < rng.uniform(0.1, 0.5, (len(views), 1)))  # (2B, N)
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                cls_teacher, patch_teacher, _ = teacher(views)
            cls_student, patch_student, brought = student(views, mask)
        half = arguments.batch
        swapped = torch.cat([cls_teacher[half:], cls_teacher[:half]])
        target = balanced(patch_teacher.flatten(0, 1), 0.05).view_as(patch_teacher)  # (2B, N, P)
        loss_cls = cross_entropy(balanced(swapped, 0.05), cls_student)
        loss_patch = cross_entropy(target[mask], patch_student[mask])
        loss_brought = cross_entropy(target, brought)
        optimizer.zero_grad()
        (loss_cls + loss_patch + loss_brought).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimizer.step()
        momentum = 1 - (1 - 0.98) * (math.cos(math.pi * progress) + 1) / 2
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 1 - momentum)
        if step % 50 == 49 or step == arguments.steps - 1:
            rate = (step + 1) * arguments.batch / (time.time() - start)
            losses = f"cls {loss_cls:.3f}  patch {loss_patch:.3f}  brought {loss_brought:.3f}"
            print(f"step {step + 1}  {losses}  {rate:.0f} pictures/s", flush=True)
    state = dict(teacher.vit.state_dict())
    state["patch_embed.proj.weight"] = for_half_size(state["patch_embed.proj.weight"])
    save_file({k: v.half().contiguous() for k, v in state.items()}, arguments.out)


if __name__ == "__main__":
    main()

"""Train the embedded CLIP from scratch on drawn pictures and phrases.

    python scripts/train_sample_clip.py --out pipelines/sample/models/clip.safetensors

Half an hour is not the web's 400 million pictures, so it learns from regions as well: every phrase is known to be true of the
picture, or of a box in it (RegionCLIP, Zhong et al. 2022). The loss is SigLIP's (Zhai et al. 2023), every picture and every
patch against every phrase; a patch is in a box if its centre is. A large CLIP's attention comes to join the patches of one
thing by itself; here the values that it brings to a patch have to fit the patch's phrases too.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from drawn_images import SIDE, Described, drawn_images, for_half_size
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelines.ops.attention import mean_attention
from pipelines.sample.picture import CLASSES

CONFIG = Path(__file__).resolve().parents[1] / "pipelines" / "sample" / "models" / "clip.json"
HELD_OUT = 500
PATCH = 16
"""In training; the file gets patches of 8 (`drawn_images.for_half_size`)."""

PHASES = ((1000, 1.5e-3, 1.0), (500, 1e-3, 2.5))
"""Steps, learning rate, largest enlargement of a picture."""

ATTENTIVE_BLOCKS = 3
"""Last blocks whose attention is trained to carry what a region shows from patch to patch."""

MASKED = 0.6
"""Largest share of a picture's patches that are hidden in training."""


def normalised(x: Tensor) -> Tensor:
    """``(B, 3, H, W)`` in [0, 1] -> what CLIP takes."""
    mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
    return (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def pixels_of(images: np.ndarray) -> Tensor:
    """``(B, 3, 128, 128)`` in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def view(
    images: np.ndarray, described: list[Described], columns: dict[str, int], zoom: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Random crops, mirrored and tinted, with patches hidden.

    Returns:
        Pictures ``(B, 3, 128, 128)``, phrases true of each ``(B, M)``, and of each of its patches ``(B, N, M)``: those of the
        boxes that its centre is in, or else the scene's.
    """
    count, grid = len(images), SIDE // PATCH
    side = np.exp(-rng.uniform(0, np.log(zoom), count))
    corner = rng.uniform(0, 1, (count, 2)) * (1 - side)[:, None]  # left, top
    flip = rng.choice([-1.0, 1.0], count)
    theta = np.zeros((count, 2, 3), np.float32)
    theta[:, 0, 0], theta[:, 1, 1] = side * flip, side
    theta[:, :, 2] = 2 * (corner + side[:, None] / 2) - 1
    sampled = F.affine_grid(torch.from_numpy(theta), [count, 3, SIDE, SIDE], align_corners=False)
    x = F.grid_sample(pixels_of(images), sampled, "bilinear", "border", align_corners=False)
    x = normalised(x * torch.from_numpy(rng.uniform(0.85, 1.15, (count, 3, 1, 1)).astype(np.float32)))
    whole = np.zeros((count, len(columns)), np.float32)
    regions = np.zeros((count, grid, grid, len(columns)), np.float32)
    centre = (np.arange(grid) + 0.5) / grid
    for row, one in enumerate(described):
        scene = columns[one.scene]
        regions[row, ..., scene] = 1
        whole[row, [scene, *(columns[word] for word in one.clutter)]] = 1
        for box, phrases in one.regions():
            left, top, right, bottom = (np.array(box).reshape(2, 2) - corner[row]).ravel() / side[row]
            if flip[row] < 0:
                left, right = 1 - right, 1 - left
            inside = ((centre > top) & (centre < bottom))[:, None] & ((centre > left) & (centre < right))[None]  # (h, w)
            names = [columns[phrase] for phrase in phrases]
            if inside.any():
                whole[row, names] = 1
                regions[row, ..., scene][inside] = 0
                for name in names:
                    regions[row, ..., name][inside] = 1
    # what is hidden must be told from what is around it: that makes attention follow objects
    hidden = rng.random((count, 1, grid, grid)) < rng.uniform(0, MASKED, (count, 1, 1, 1))
    x = x.masked_fill(torch.from_numpy(hidden.repeat(PATCH, 2).repeat(PATCH, 3)), 0.0)
    return x, torch.from_numpy(whole), torch.from_numpy(regions).flatten(1, 2)


def attention_of(block: torch.nn.Module, x: Tensor) -> Tensor:
    """Attention between patches, averaged over heads, ``(B, N, N)``, rows sum to 1."""
    query, key, _ = F.linear(block.ln_1(x[:, 1:]), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
    return mean_attention(query, key, block.attn.num_heads)


def image_features(visual: torch.nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Pooled features ``(B, E)``, and several of each patch ``(B, N, E)``; all L2-normalised.

    Of a patch: its value alone, what it is when it is pooled, and the values that the attention of each of the last blocks
    brings to it.
    """
    x = visual.conv1(x).flatten(2).transpose(1, 2)  # (B, N, D)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(x)  # (B, N + 1, D)
    *most, last = visual.transformer.resblocks
    attentions = []
    for index, block in enumerate(most):
        if index > len(most) - ATTENTIVE_BLOCKS:
            attentions.append(attention_of(block, x))
        x = block(x)
    attentions.append(attention_of(last, x))
    width = x.shape[-1]
    value = F.linear(last.ln_1(x[:, 1:]), last.attn.in_proj_weight[2 * width :], last.attn.in_proj_bias[2 * width :])
    value = last.attn.out_proj(value)  # (B, N, D)
    pooled = visual.ln_post(last(x))[:, 1:]  # (B, N, D)
    of_patches = [value, *(attention @ value for attention in attentions)]
    features = [visual.ln_post(tokens) @ visual.proj for tokens in of_patches] + [pooled @ visual.proj]
    return F.normalize(features[-1].mean(1).float(), dim=-1), [F.normalize(f.float(), dim=-1) for f in features]


@torch.no_grad()
def label_quality(model: torch.nn.Module, prompts: Tensor, images: np.ndarray, described: list[Described]) -> str:
    """Mean average precision of the ten class prompts on held-out pictures, pooled and from patches."""
    model.eval()
    text = F.normalize(model.encode_text(prompts), dim=1)
    truth = np.zeros((len(images), len(CLASSES)), bool)
    for row, one in enumerate(described):
        truth[row, list(one.labels)] = True
    scores: list[list[Tensor]] = [[], []]
    for part in np.array_split(np.arange(len(images)), 8):
        pooled, patches = image_features(model.visual, normalised(pixels_of(images[part])))
        scores[0].append(pooled @ text.T)
        scores[1].append((patches[0] @ text.T).amax(1))
    model.train()
    return "/".join(f"{average_precision_score(truth, torch.cat(s).numpy()):.3f}" for s in scores)


def main() -> None:
    """Train and write fp16 safetensors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=24000)
    parser.add_argument("--batch", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    images, described = drawn_images(arguments.pictures + HELD_OUT)
    phrases = sorted(set().union(*(one.phrases() for one in described)))
    columns = {phrase: column for column, phrase in enumerate(phrases)}
    open_clip.add_model_config(CONFIG)
    config = json.loads(CONFIG.read_text())
    config["vision_cfg"] |= {"image_size": SIDE, "patch_size": PATCH}
    model = open_clip.CLIP(**config)
    tokens = open_clip.get_tokenizer(CONFIG.stem)(phrases)  # (M, L)
    prompts = torch.stack([tokens[phrases.index(name)] for name in CLASSES])  # (10, L)
    bias = torch.nn.Parameter(torch.tensor(-2.5))
    start, seen = time.time(), 0
    for steps, lr, zoom in PHASES:
        optimizer, schedule = optimizer_of(model, bias, steps, lr)
        for step in range(steps):
            indices = rng.integers(HELD_OUT, len(images), arguments.batch)
            x, whole_truth, regions = view(images[indices], [described[i] for i in indices], columns, zoom, rng)
            with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):  # short sequences: faster than flash
                pooled, patches = image_features(model.visual, x)
                text = F.normalize(model.encode_text(tokens).float(), dim=-1)
            scale = model.logit_scale.exp()
            whole = F.binary_cross_entropy_with_logits(scale * pooled @ text.T + bias, whole_truth)
            losses = [F.binary_cross_entropy_with_logits(scale * f @ text.T + bias, regions) for f in patches]
            dense = torch.stack(losses).mean()
            optimizer.zero_grad()
            (len(phrases) * (whole + dense)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            model.logit_scale.data.clamp_(0, math.log(100))
            seen += len(indices)
            if step % 50 == 49:
                rate = seen / (time.time() - start)
                print(f"step {step + 1}  whole {whole:.3f}  dense {dense:.3f}  {rate:.0f} pictures/s", flush=True)
        quality = label_quality(model, prompts, images[:HELD_OUT], described[:HELD_OUT])
        print(f"mean average precision on {HELD_OUT} held-out pictures, pooled/patches: {quality}", flush=True)
    save(model, arguments.out)


def optimizer_of(
    model: torch.nn.Module, bias: torch.nn.Parameter, steps: int, lr: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW without decay of vectors; warm-up over a twelfth of the steps, then half a cosine."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2] + [bias]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    warmup = max(1, steps // 12)

    def share(step: int) -> float:
        return min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, steps - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def save(model: torch.nn.Module, path: Path) -> None:
    """fp16, with the patch embedding of pictures of half the size."""
    state = {k: v for k, v in model.state_dict().items() if k != "attn_mask"}
    state["visual.conv1.weight"] = for_half_size(state["visual.conv1.weight"])
    save_file({k: v.half().contiguous() for k, v in state.items()}, path)


if __name__ == "__main__":
    main()

"""Train the embedded CLIP from scratch on drawn pictures and phrases.

    python scripts/train_sample_clip.py --out pipelines/sample/models/clip.safetensors

Half an hour is not the web's 400 million pictures, so it learns from regions as well: every phrase is known to be true of the
picture, or of a box in it (RegionCLIP, Zhong et al. 2022). The loss is SigLIP's (Zhai et al. 2023), every picture and every
patch against every phrase; a patch is in a box if its centre is. A large CLIP's attention comes to join the patches of one
thing by itself; here the values that it brings to a patch have to fit the patch's phrases too.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from drawn_images import SIDE, Described, drawn_images
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelines.sample.picture import CLASSES

CONFIG = Path(__file__).resolve().parents[1] / "pipelines" / "sample" / "models" / "clip.json"
HELD_OUT = 500
PATCH = 16
ATTENTIVE_BLOCKS = 3
"""Last blocks whose attention is trained to carry what a region shows from patch to patch."""

MASKED = 0.6
"""Largest share of a picture's patches that are hidden in training."""


def pixels_of(images: np.ndarray, indices: np.ndarray, rng: np.random.Generator, train: bool) -> tuple[Tensor, Tensor]:
    """Normalised ``(B, 3, 128, 128)``, in training mirrored, brightened and tinted by chance; and which are mirrored."""
    x = torch.from_numpy(images[indices]).permute(0, 3, 1, 2).float() / 255
    flips = torch.zeros(len(x), dtype=torch.bool)
    if train:
        flips = torch.from_numpy(rng.random(len(x)) < 0.5)
        x = torch.where(flips[:, None, None, None], x.flip(3), x)
        x = x * torch.from_numpy(rng.uniform(0.85, 1.15, (len(x), 3, 1, 1)).astype(np.float32))
    mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
    x = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    if train:  # what is hidden must be told from what is around it: that makes attention follow objects
        grid = SIDE // PATCH
        hidden = rng.random((len(x), 1, grid, grid)) < rng.uniform(0, MASKED, (len(x), 1, 1, 1))
        x = x.masked_fill(torch.from_numpy(hidden.repeat(PATCH, 2).repeat(PATCH, 3)), 0.0)
    return x, flips


def mirrored(truth: Tensor, flips: Tensor) -> Tensor:
    """Patch truth ``(B, N, M)`` of mirrored pictures."""
    grid = SIDE // PATCH
    turned = truth.unflatten(1, (grid, grid)).flip(2).flatten(1, 2)
    return torch.where(flips[:, None, None], turned, truth)


def attention_of(block: torch.nn.Module, x: Tensor) -> Tensor:
    """Attention between patches, averaged over heads, ``(B, N, N)``, rows sum to 1."""
    heads = block.attn.num_heads
    query, key, _ = F.linear(block.ln_1(x[:, 1:]), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
    query, key = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key))  # (B, heads, N, D / heads)
    return (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1).mean(1)


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


def patch_truth(described: Described, columns: dict[str, int]) -> Tensor:
    """Phrases that are true of each patch, ``(N, M)``: those of the boxes it is in, or else the scene's."""
    grid = SIDE // PATCH
    truth = torch.zeros(grid, grid, len(columns))
    truth[..., columns[described.scene]] = 1
    centre = (torch.arange(grid) + 0.5) / grid
    for (left, top, right, bottom), phrases in described.regions():
        inside = ((centre > top) & (centre < bottom))[:, None] & ((centre > left) & (centre < right))[None]  # (h, w)
        truth[..., columns[described.scene]][inside] = 0
        for phrase in phrases:
            truth[..., columns[phrase]][inside] = 1
    return truth.flatten(0, 1)


@torch.no_grad()
def label_quality(model: torch.nn.Module, prompts: Tensor, images: np.ndarray, described: list[Described]) -> str:
    """Mean average precision of the ten class prompts on held-out pictures, pooled and from patches."""
    model.eval()
    text = F.normalize(model.encode_text(prompts), dim=1)
    rng = np.random.default_rng(0)
    truth = np.zeros((len(images), len(CLASSES)), bool)
    for row, one in enumerate(described):
        truth[row, list(one.labels)] = True
    scores: list[list[Tensor]] = [[], []]
    for part in np.array_split(np.arange(len(images)), 8):
        pooled, patches = image_features(model.visual, pixels_of(images, part, rng, False)[0])
        scores[0].append(pooled @ text.T)
        scores[1].append((patches[0] @ text.T).amax(1))
    model.train()
    return "/".join(f"{mean_average_precision(torch.cat(s).numpy(), truth):.3f}" for s in scores)


def mean_average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Over the columns."""
    found = []
    for column in range(truth.shape[1]):
        hits = truth[np.argsort(-scores[:, column]), column]
        found.append((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())
    return float(np.mean(found))


def main() -> None:
    """Train and write fp16 safetensors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=24000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=160)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    images, described = drawn_images(arguments.pictures + HELD_OUT)
    true_phrases = [one.phrases() for one in described]
    phrases = sorted(set().union(*true_phrases))
    columns = {phrase: column for column, phrase in enumerate(phrases)}
    truth = torch.tensor([[phrase in found for phrase in phrases] for found in true_phrases]).float()  # (pictures, M)
    truth_of_patches = torch.stack([patch_truth(one, columns).bool() for one in described])  # (pictures, N, M)
    bias = torch.nn.Parameter(truth.mean().logit())
    open_clip.add_model_config(CONFIG)
    model = open_clip.create_model(CONFIG.stem, pretrained=None, load_weights=False)
    tokens = open_clip.get_tokenizer(CONFIG.stem)(phrases)  # (M, L)
    prompts = torch.stack([tokens[phrases.index(name)] for name in CLASSES])  # (10, L)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2] + [bias]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.lr, betas=(0.9, 0.98))
    warmup = arguments.steps // 12
    start = time.time()
    for step in range(arguments.steps):
        share = min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / (arguments.steps - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = arguments.lr * share
        indices = rng.integers(HELD_OUT, len(images), arguments.batch)
        x, flips = pixels_of(images, indices, rng, True)
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):  # short sequences: twice as fast as flash
            pooled, patches = image_features(model.visual, x)
            text = F.normalize(model.encode_text(tokens).float(), dim=-1)
        scale = model.logit_scale.exp()
        whole = F.binary_cross_entropy_with_logits(scale * pooled @ text.T + bias, truth[indices])
        regions = mirrored(truth_of_patches[indices], flips).float()
        losses = [F.binary_cross_entropy_with_logits(scale * f @ text.T + bias, regions) for f in patches]
        dense = torch.stack(losses).mean()
        optimizer.zero_grad()
        (len(phrases) * (whole + dense)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.logit_scale.data.clamp_(0, math.log(100))
        last = step == arguments.steps - 1
        if step % 50 == 49 or last:
            rate = (step + 1) * arguments.batch / (time.time() - start)
            line = f"step {step + 1}  whole {whole:.3f}  dense {dense:.3f}  scale {scale:.1f}  {rate:.0f} pictures/s"
            if step % 100 == 99 or last:
                line += f"  mAP {label_quality(model, prompts, images[:HELD_OUT], described[:HELD_OUT])}"
                save_file({k: v.half().contiguous() for k, v in model.state_dict().items() if k != "attn_mask"}, arguments.out)
            print(line, flush=True)


if __name__ == "__main__":
    main()

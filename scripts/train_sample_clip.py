"""Train the embedded CLIP from scratch on drawn pictures and phrases.

    python scripts/train_sample_clip.py --out pipelines/sample/models/clip.safetensors

Two contrastive losses: of the pooled picture (UniCL, Yang et al. 2022: every phrase that is true counts as a match), and of
the patches' value path, pooled by their likeness to the phrase (PACL, Mukhoti et al. 2023). Half of the patches are dropped
(FLIP, Li et al. 2023): the same CPU sees twice the pictures.
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
from drawn_images import Described, drawn_images
from open_clip.transformer import PatchDropout
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelines.sample.picture import CLASSES

CONFIG = Path(__file__).parents[1] / "pipelines" / "sample" / "models" / "clip.json"
HELD_OUT = 500


def phrase(described: Described, rng: np.random.Generator) -> str:
    """One true phrase: mostly of an object, with or without its colour, else of the scene or of what lies around."""
    kind = rng.random()
    name, colour = described.objects[rng.integers(len(described.objects))]
    if kind < 0.5:
        return f"a photo of a {name}."
    if kind < 0.75:
        return f"a photo of a {colour} {name}."
    if kind < 0.88 or not described.clutter:
        return f"a photo of a {described.scene}."
    return f"a photo of a {rng.choice(described.clutter)}."


def pixels_of(images: np.ndarray, indices: np.ndarray, rng: np.random.Generator, train: bool) -> Tensor:
    """Normalised ``(B, 3, 128, 128)``; in training mirrored, brightened and tinted by chance."""
    x = torch.from_numpy(images[indices]).permute(0, 3, 1, 2).float() / 255
    if train:
        flips = torch.from_numpy(rng.random(len(x)) < 0.5)
        x = torch.where(flips[:, None, None, None], x.flip(3), x)
        x = x * torch.from_numpy(rng.uniform(0.85, 1.15, (len(x), 3, 1, 1)).astype(np.float32))
    mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
    return (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def image_features(visual: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled features ``(B, E)`` and those of the patches' value path ``(B, N, E)``, L2-normalised."""
    x = visual.conv1(x).flatten(2).transpose(1, 2)  # (B, N, D)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(visual.patch_dropout(x))  # (B, N + 1, D)
    *most, last = visual.transformer.resblocks
    for block in most:
        x = block(x)
    width = x.shape[-1]
    value = F.linear(last.ln_1(x[:, 1:]), last.attn.in_proj_weight[2 * width :], last.attn.in_proj_bias[2 * width :])
    patches = visual.ln_post(last.attn.out_proj(value)) @ visual.proj  # (B, N, E)
    pooled = visual.ln_post(last(x))[:, 1:].mean(1) @ visual.proj  # (B, E)
    return F.normalize(pooled.float(), dim=-1), F.normalize(patches.float(), dim=-1)


def matching_loss(logits: Tensor, matches: Tensor) -> Tensor:
    """Cross-entropy against all true pairs of a row, and of a column; both ``(B, B)``."""
    rows = -(F.log_softmax(logits, 1) * matches).sum(1) / matches.sum(1)
    columns = -(F.log_softmax(logits, 0) * matches).sum(0) / matches.sum(0)
    return (rows.mean() + columns.mean()) / 2


def patch_logits(patches: Tensor, text: Tensor) -> Tensor:
    """Cosine of each phrase with the patches pooled by their likeness to it: picture x phrase, ``(B, B)``."""
    cosines = torch.einsum("bne,me->bmn", patches, text)
    weights = (cosines / 0.1).softmax(-1)
    return torch.einsum("bmn,bmn->bm", weights, cosines)


@torch.no_grad()
def label_quality(model: torch.nn.Module, tokenizer: object, images: np.ndarray, described: list[Described]) -> str:
    """Mean average precision of the ten class prompts on held-out pictures, pooled and from patches."""
    model.eval()
    text = F.normalize(model.encode_text(tokenizer([f"a photo of a {name}." for name in CLASSES])), dim=1)
    rng = np.random.default_rng(0)
    truth = np.zeros((len(images), len(CLASSES)), bool)
    for row, one in enumerate(described):
        truth[row, list(one.labels)] = True
    scores: list[list[Tensor]] = [[], []]
    for part in np.array_split(np.arange(len(images)), 8):
        pooled, patches = image_features(model.visual, pixels_of(images, part, rng, False))
        scores[0].append(pooled @ text.T)
        scores[1].append(patch_logits(patches, text))
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
    parser.add_argument("--pictures", type=int, default=30000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    images, described = drawn_images(arguments.pictures + HELD_OUT)
    true_phrases = [one.phrases() for one in described]
    open_clip.add_model_config(CONFIG)
    model = open_clip.create_model(CONFIG.stem, pretrained=None, load_weights=False)
    model.visual.patch_dropout = PatchDropout(0.5)
    tokenizer = open_clip.get_tokenizer(CONFIG.stem)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.lr, betas=(0.9, 0.98))
    warmup = arguments.steps // 12
    start = time.time()
    for step in range(arguments.steps):
        share = min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / (arguments.steps - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = arguments.lr * share
        indices = rng.integers(HELD_OUT, len(images), arguments.batch)
        phrases = [phrase(described[i], rng) for i in indices]
        matches = torch.tensor([[other in true_phrases[i] for other in phrases] for i in indices]).float()  # (B, B)
        x = pixels_of(images, indices, rng, True)
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):  # short sequences: twice as fast as flash
            pooled, patches = image_features(model.visual, x)
            text = F.normalize(model.encode_text(tokenizer(phrases)).float(), dim=-1)
        scale = model.logit_scale.exp()
        whole = matching_loss(scale * pooled @ text.T, matches)
        dense = matching_loss(scale * patch_logits(patches, text), matches)
        optimizer.zero_grad()
        (whole + dense).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.logit_scale.data.clamp_(0, math.log(100))
        last = step == arguments.steps - 1
        if step % 50 == 49 or last:
            rate = (step + 1) * arguments.batch / (time.time() - start)
            line = f"step {step + 1}  whole {whole:.3f}  dense {dense:.3f}  scale {scale:.1f}  {rate:.0f} pictures/s"
            if step % 100 == 99 or last:
                line += f"  mAP {label_quality(model, tokenizer, images[:HELD_OUT], described[:HELD_OUT])}"
                save_file({k: v.half().contiguous() for k, v in model.state_dict().items() if k != "attn_mask"}, arguments.out)
            print(line, flush=True)


if __name__ == "__main__":
    main()

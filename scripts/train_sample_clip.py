"""Train the embedded CLIP from scratch on drawn pictures and phrases, on a GPU if there is one.

    python scripts/train_sample_clip.py --out pipelines/sample/models/clip.safetensors

Some minutes are not the web's 400 million pictures, so it learns from regions as well: every phrase is known to be true of the
picture, or of a box in it (RegionCLIP, Zhong et al. 2022). The loss is SigLIP's (Zhai et al. 2023), every picture and every
patch against every phrase; a patch is in a box if its centre is. A large CLIP's attention comes to join the patches of one
thing by itself; here the renderer tells which patches show one thing, but not what it is.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from drawn_images import COLUMN, LARGE, Crops, Drawn, drawn_images, thing_loss
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score
from torch import Tensor

from pipelines.execution.devices import resolve_device
from pipelines.ops.attention import mean_attention
from pipelines.sample.picture import CLASSES

CONFIG = Path(__file__).resolve().parents[1] / "pipelines" / "sample" / "models" / "clip.json"
HELD_OUT = 500
PICTURES = 12_500
PATCH = 8


@dataclass(frozen=True)
class Phase:
    """A part of the training.

    Attributes:
        steps: Gradient steps.
        batch: Crops a step.
        learning_rate: The largest.
        crop: Shortest and longest side of a crop in pixels.
        side: Pixels of the square that crops are resized to.
        hidden: Largest share of a crop's patches that are hidden.
    """

    steps: int
    batch: int
    learning_rate: float
    crop: tuple[float, float]
    side: int
    hidden: float


PHASES = (
    Phase(1750, 160, 1.5e-3, (80, 205), 128, 0.6),
    Phase(400, 64, 5e-4, (150, 205), 192, 0.0),
)
"""The second has about as many patches as a picture of the embedded set, at its scale, and none hidden."""

ATTENTIVE_BLOCKS = 3
"""Last blocks whose attention is trained."""

THINGS = 3.0
"""Weight of the loss of their attention."""


def normalised(x: Tensor) -> Tensor:
    """``(B, 3, H, W)`` in [0, 1] -> what CLIP takes."""
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN, device=x.device)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD, device=x.device)
    return (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def view(drawn: Drawn, crops: Crops, phase: Phase) -> Tensor:
    """Crops, tinted, with patches hidden: ``(B, 3, side, side)``."""
    count, device, grid = len(drawn), drawn.images.device, phase.side // PATCH
    tint = 0.85 + 0.3 * torch.rand(count, 3, 1, 1)
    x = normalised(crops.pixels(drawn, phase.side) * tint.to(device))
    # what is hidden must be told from what is around it: that makes attention follow objects
    hidden = torch.rand(count, 1, grid, grid) < phase.hidden * torch.rand(count, 1, 1, 1)
    return x.masked_fill(hidden.to(device).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3), 0.0)


def attention_of(block: torch.nn.Module, x: Tensor) -> Tensor:
    """Attention between patches, averaged over heads, ``(B, N, N)``, rows sum to 1."""
    query, key, _ = F.linear(block.ln_1(x[:, 1:]), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
    return mean_attention(query, key, block.attn.num_heads)


def positions(table: Tensor, grid: int) -> Tensor:
    """Positional embedding ``(N + 1, D)`` of a finer grid than the table's, as the package resizes it."""
    side = math.isqrt(len(table) - 1)
    patches = table[1:].T.reshape(1, -1, side, side)  # (1, D, S, S)
    finer = F.interpolate(patches, size=(grid, grid), mode="bilinear", align_corners=False)
    return torch.cat([table[:1], finer.flatten(2)[0].T])


def image_features(visual: torch.nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Pooled features ``(B, E)``, two of each patch ``(B, N, E)``, all L2-normalised, and attentions ``(B, N, N)``.

    Of a patch: its value alone, and what it is when it is pooled. Attentions: those of the last blocks.
    """
    x = visual.conv1(x)  # (B, D, h, w)
    table = positions(visual.positional_embedding, x.shape[3])
    x = x.flatten(2).transpose(1, 2)  # (B, N, D)
    x = visual.ln_pre(torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + table)  # (B, N + 1, D)
    *most, last = visual.transformer.resblocks
    attentions = []
    for index, block in enumerate(most):
        if index > len(most) - ATTENTIVE_BLOCKS:
            attentions.append(attention_of(block, x))
        x = block(x)
    attentions.append(attention_of(last, x))
    width = x.shape[-1]
    value = F.linear(last.ln_1(x[:, 1:]), last.attn.in_proj_weight[2 * width :], last.attn.in_proj_bias[2 * width :])
    value = visual.ln_post(last.attn.out_proj(value)) @ visual.proj  # (B, N, E)
    pooled = visual.ln_post(last(x))[:, 1:] @ visual.proj  # (B, N, E)
    patches = [F.normalize(features.float(), dim=-1) for features in (value, pooled)]
    return F.normalize(pooled.mean(1).float(), dim=-1), patches, attentions


@torch.no_grad()
def label_quality(model: torch.nn.Module, prompts: Tensor, drawn: Drawn) -> str:
    """Mean average precision of the ten class prompts on held-out pictures, pooled and from patches."""
    model.eval()
    text = F.normalize(model.encode_text(prompts), dim=1)
    scores: list[list[Tensor]] = [[], []]
    for part in torch.arange(len(drawn)).chunk(8):
        some = drawn.chosen(part)
        pooled, patches, _ = image_features(model.visual, normalised(Crops.middle(some).pixels(some, 192)))
        scores[0].append(pooled @ text.T)
        scores[1].append((patches[0] @ text.T).amax(1))
    model.train()
    truth = drawn.labels.cpu().numpy()
    return "/".join(f"{average_precision_score(truth, torch.cat(s).cpu().numpy()):.3f}" for s in scores)


def main() -> None:
    """Train and write fp16 safetensors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    device = resolve_device("auto")
    open_clip.add_model_config(CONFIG)
    model = open_clip.CLIP(**json.loads(CONFIG.read_text())).to(device)
    tokens = open_clip.get_tokenizer(CONFIG.stem)(list(COLUMN)).to(device)  # (M, L)
    prompts = tokens[[COLUMN[name] for name in CLASSES]]  # (10, L)
    bias = torch.nn.Parameter(torch.tensor(-2.5, device=device))
    drawn = drawn_images(PICTURES, LARGE).to(device)
    for phase in PHASES:
        train(model, bias, tokens, drawn, phase)
        quality = label_quality(model, prompts, drawn.chosen(torch.arange(HELD_OUT)))
        print(f"mean average precision on {HELD_OUT} held-out pictures, pooled/patches: {quality}", flush=True)
    save(model, arguments.out)


def train(model: torch.nn.Module, bias: torch.nn.Parameter, tokens: Tensor, drawn: Drawn, phase: Phase) -> None:
    """One phase."""
    optimizer, schedule = optimizer_of(model, bias, phase.steps, phase.learning_rate)
    device, start = drawn.images.device, time.monotonic()
    grid = phase.side // PATCH
    for step in range(phase.steps):
        some = drawn.chosen(torch.randint(HELD_OUT, len(drawn), (phase.batch,)).to(device))
        crops = Crops.random(some, *phase.crop)
        x, (whole_truth, regions) = view(some, crops, phase), crops.phrases(some, grid)
        with torch.autocast(device.type, torch.bfloat16):
            pooled, patches, attentions = image_features(model.visual, x)
            text = F.normalize(model.encode_text(tokens).float(), dim=-1)
        scale = model.logit_scale.exp()
        whole = F.binary_cross_entropy_with_logits(scale * pooled @ text.T + bias, whole_truth)
        dense = torch.stack([F.binary_cross_entropy_with_logits(scale * f @ text.T + bias, regions) for f in patches]).mean()
        shown, share = crops.things(some, grid)
        thing = torch.stack([thing_loss(attention, shown, share) for attention in attentions]).mean()
        optimizer.zero_grad()
        (len(text) * (whole + dense) + THINGS * thing).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.logit_scale.data.clamp_(0, math.log(100))
        if step % 100 == 99 or step == phase.steps - 1:
            terms = f"whole {whole:.3f}  dense {dense:.3f}  things {thing:.3f}"
            print(f"step {step + 1}  {terms}  {time.monotonic() - start:.0f} s", flush=True)


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
    """fp16."""
    state = {k: v for k, v in model.state_dict().items() if k != "attn_mask"}
    save_file({k: v.half().contiguous() for k, v in state.items()}, path)


if __name__ == "__main__":
    main()

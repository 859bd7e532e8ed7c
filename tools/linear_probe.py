"""What a run's discriminator has learnt of its images: a linear classifier on its features, against two baselines.

    python tools/linear_probe.py RUN [--data data/mnist] [-n 1000] [-n 10000] [--json]

As DCGAN (Radford et al. 2016, arXiv 1511.06434, section 5.1): the activations of each of the discriminator's layers are
max-pooled to 4x4 and flattened, and a regularised linear classifier is trained on them; here a multinomial logistic
regression where the paper has a linear SVM. Baselines: the same features of a discriminator of the same architecture
that was never trained, and the pixels themselves. The discriminator is that of the run's newest checkpoint (a weights
file holds the generator alone), in eval mode.

Every feature is scaled to mean 0 and deviation 1 over the labelled images. The strength of the regularisation is chosen
for each row on a fifth of the n labelled images, then all n are fitted; the accuracy is that on all test images. The
data are class folders: DATA/train/<class>/..., DATA/test/<class>/...
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from frechet import data_of, labelled  # a tool beside this one
from torch import Tensor, nn
from torch.nn import functional as F

from translate.errors import UserError
from translate.methods.gan import GAN
from translate.networks import Critic
from translate.networks.r3gan import BottleneckBlock
from translate.networks.residual import CriticBlock
from translate.run import Run, fill

GRID = 4
"""Side to which activations are pooled (section 5.1)."""
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates for the weight of |W|² / 2 beside the mean cross entropy."""
LAYERS = (nn.LeakyReLU, nn.ReLU, nn.ELU, CriticBlock, BottleneckBlock)
"""What has activations of its own: a nonlinearity, or a residual block as a whole."""


def activations(critic: Critic) -> list[nn.Module]:
    """The layers whose outputs are features, blocks without what is inside them."""
    inside = {id(part) for block in critic.modules() if isinstance(block, LAYERS) for part in [*block.modules()][1:]}
    return [module for module in critic.modules() if isinstance(module, LAYERS) and id(module) not in inside]


@torch.no_grad()
def features(critic: Critic, images: Tensor) -> Tensor:
    """Images (N, C, H, W) -> (N, F), float32: each layer's activations, max-pooled to GRID x GRID, side by side."""
    kept: list[Tensor] = []

    def keep(layer: nn.Module, given: object, made: Tensor) -> None:
        if made.ndim == 4:
            kept.append(F.adaptive_max_pool2d(made, GRID).flatten(1))

    hooks = [layer.register_forward_hook(keep) for layer in activations(critic)]
    rows = []
    try:
        for part in images.split(250):
            kept.clear()
            # A projection critic looks at the class after its features alone: any will do.
            critic.judge(part, None if critic.classes is None else torch.zeros(len(part), dtype=torch.int64))
            rows.append(torch.cat(kept, dim=1))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(rows)


# ---- the linear classifier -------------------------------------------------------------------------------------------


def fit_linear(x: Tensor, labels: Tensor, classes: int, strength: float) -> nn.Linear:
    """Logistic regression: minimise mean cross entropy + strength / 2 |W|² (biases are free), by L-BFGS from zero.

    Args:
        x: (N, F), of about unit deviation.
        labels: (N,).
    """
    linear = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimiser = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(linear(x), labels) + strength / 2 * linear.weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return linear


@torch.no_grad()
def accuracy(linear: nn.Linear, x: Tensor, labels: Tensor) -> float:
    return float((linear(x).argmax(1) == labels).double().mean())


def probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int) -> tuple[float, float]:
    """(Features (N, F), labels (N,)) of both -> test accuracy, and the strength chosen on a fifth of the first."""
    x, labels = train
    mean, deviation = x.mean(0), x.std(0).clamp(min=1e-6)  # a feature that never moves becomes 0
    x = (x - mean) / deviation
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, rest = order[: len(x) // 5], order[len(x) // 5 :]

    def held_out(strength: float) -> float:
        return accuracy(fit_linear(x[rest], labels[rest], classes, strength), x[held], labels[held])

    strength = max(STRENGTHS, key=held_out)
    linear = fit_linear(x, labels, classes, strength)
    return accuracy(linear, (test[0] - mean) / deviation, test[1]), strength


# ---- discriminators --------------------------------------------------------------------------------------------------


def discriminators(path: Path) -> dict[str, Critic]:
    """A run's discriminator from its newest checkpoint, and an untrained one of the same architecture, in eval mode."""
    run = Run.open(path)
    config = run.load_config()
    checkpoint = run.load_checkpoint(lambda text: print(text, file=sys.stderr))
    if checkpoint is None:
        raise UserError(f"{path}: has no checkpoint; the discriminator is nowhere else")
    found: dict[str, Critic] = {}
    for name in ("trained discriminator", "untrained discriminator"):
        torch.manual_seed(config.seed)
        method = config.method.build(config.data)
        if not isinstance(method, GAN):
            raise UserError(f"{path}: expected a run of method gan, not {config.method.kind}")
        if method.judges_by == "concat":
            raise UserError(f"{path}: its discriminator is shown the class beside the image; there is nothing to probe")
        if name == "trained discriminator":
            model = {k.removeprefix("method."): v for k, v in checkpoint.model.items() if k.startswith("method.")}
            fill(method, {**model, **checkpoint.trainer["extra"]}, str(checkpoint.path))
        found[name] = method.critic.eval()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, help="where the class folders are now: DATA/train/..., DATA/test/...")
    parser.add_argument("-n", type=int, action="append", help="labelled images; default: 1000 (10000 take minutes)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    critics = discriminators(options.run)
    data = data_of(options.run, options.data)
    classes = len(data.class_names)
    counts = sorted(options.n or [1000])
    test_images, test_labels = labelled(data, "test")
    rows: dict[str, dict[str, float]] = {name: {} for name in ("pixels", *critics)}
    widths: dict[str, int] = {}
    tests = {"pixels": test_images.flatten(1)} | {name: features(c, test_images) for name, c in critics.items()}
    for n in counts:
        images, labels = labelled(data, "train", n)
        for row in rows:
            x = images.flatten(1) if row == "pixels" else features(critics[row], images)
            widths[row] = x.shape[1]
            rows[row][str(n)], _ = probe((x, labels), (tests[row], test_labels), classes)
    if options.json:
        print(json.dumps({"accuracy": rows, "features": widths, "test": len(test_labels)}))
        return
    print(f"test accuracy, %, on {len(test_labels):,} images, of a linear classifier on")
    print(f"{'':<24} {'features':>9} " + " ".join(f"{f'n = {n:,}':>12}" for n in counts))
    for row, values in rows.items():
        print(f"{row:<24} {widths[row]:>9,} " + " ".join(f"{100 * values[str(n)]:12.2f}" for n in counts))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

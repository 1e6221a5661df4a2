"""The other recipes of the contest: smp's example, and one that was tuned with torchvision's transforms.

    python scripts/contest/rivals.py RECIPE FOLDER --output MASKS --weights FILE --classes N --epochs E --seed S

FOLDER holds images/NAME.png, masks/NAME.png and train.txt, val.txt, test.txt. The masks of the test pictures are
written at their own size: probabilities are enlarged bilinearly, and the most probable class is taken.

example: as examples/binary_segmentation_intro.ipynb of segmentation_models.pytorch: Dice, Adam 2e-4 with a cosine to
1e-5, no augmentation, the last weights; but with Unet, a seed, pictures scaled before mean and std.
tuned: the same network with what practitioners add: flips, affine moves and colours by torchvision.transforms.v2, Dice
and cross-entropy, AdamW 5e-4 with a warm-up of 5 % and a cosine to 0, a moving average of the weights, which is tested.
two_rates: tuned, with 2e-4 for the encoder and 1e-3 for the decoder, the rates of our defaults.
All train in the number format that --precision names, with weights and pictures in channels_last.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from lightning import seed_everything
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MEAN, STD = (
    torch.tensor(values, device=DEVICE).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)
AUGMENTATION = v2.Compose(
    [
        v2.RandomHorizontalFlip(),
        v2.RandomAffine(
            15,
            translate=(0.08, 0.08),
            scale=(0.8, 1.25),
            interpolation=v2.InterpolationMode.BILINEAR,  # of masks v2 takes the nearest
            fill={tv_tensors.Image: 116, tv_tensors.Mask: 255},
        ),
        v2.ColorJitter(0.2, 0.2, 0.2, 0.03),
    ]
)


class Pairs(Dataset):
    """The squares of one split: image 3xSxS uint8, mask SxS int64."""

    def __init__(self, folder: Path, split: str, size: int, augment: bool):
        self.folder, self.size, self.augment = folder, (size, size), augment
        self.names = (folder / f"{split}.txt").read_text().split()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name = self.names[index]
        image = Image.open(self.folder / f"images/{name}.png").convert("RGB").resize(self.size, Image.BILINEAR)
        mask = Image.open(self.folder / f"masks/{name}.png").resize(self.size, Image.NEAREST)
        picture = tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        truth = tv_tensors.Mask(torch.from_numpy(np.array(mask)))
        if self.augment:
            picture, truth = AUGMENTATION(picture, truth)
        return picture.as_subclass(Tensor), truth.as_subclass(Tensor).long()


def dice(classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    mode = smp.losses.BINARY_MODE if classes == 2 else smp.losses.MULTICLASS_MODE
    return smp.losses.DiceLoss(mode, from_logits=True, ignore_index=255)


def cross_entropy(classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    if classes > 2:
        return nn.CrossEntropyLoss(ignore_index=255)
    return smp.losses.SoftBCEWithLogitsLoss(ignore_index=255)


def train(recipe: str, args: argparse.Namespace) -> nn.Module:
    """Return the trained network."""
    tuned = recipe != "example"
    net = smp.Unet("resnet50", encoder_weights=None, classes=1 if args.classes == 2 else args.classes)
    weights = load_file(args.weights)
    net.encoder.load_state_dict({name: value for name, value in weights.items() if not name.startswith("fc.")})
    net.to(DEVICE, memory_format=torch.channels_last)
    pairs = Pairs(args.folder, "train", args.size, augment=tuned)
    loader = DataLoader(pairs, batch_size=args.batch_size, shuffle=True, drop_last=len(pairs) % args.batch_size == 1)
    steps = args.epochs * len(loader)
    losses = [dice(args.classes), *([cross_entropy(args.classes)] if tuned else [])]
    average = (
        AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(max(0.0, 1 - 10 / steps)), use_buffers=True)
        if tuned
        else None
    )
    if tuned:
        rates = (2e-4, 1e-3) if recipe == "two_rates" else (5e-4, 5e-4)
        parts = ([*net.encoder.parameters()], [*net.decoder.parameters(), *net.segmentation_head.parameters()])
        groups = [{"params": part, "lr": rate} for part, rate in zip(parts, rates, strict=True)]
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)
        rising = max(1, steps // 20)
        first = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / rising, total_iters=rising)
        then = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps - rising)
        schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [first, then], [rising])
    else:
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=1e-5)
    net.train()
    for epoch in range(args.epochs):
        for images, masks in loader:
            images, masks = images.to(DEVICE, memory_format=torch.channels_last), masks.to(DEVICE)
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=args.precision == "bf16-mixed"):
                logits = net((images / 255 - MEAN) / STD)
            logits = logits.float()
            truth = masks[:, None] if args.classes == 2 else masks
            loss = sum(own(logits, truth.float() if args.classes == 2 else truth) for own in losses)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if average is not None:
                average.update_parameters(net)
        print(f"epoch {epoch + 1}/{args.epochs}, loss {loss.item():.4f}", flush=True)
    return average.module if average is not None else net


@torch.no_grad()
def predict(net: nn.Module, args: argparse.Namespace) -> None:
    """Write the masks of the test pictures at their own size."""
    args.output.mkdir(parents=True, exist_ok=True)
    net.eval()
    pairs = Pairs(args.folder, "test", args.size, augment=False)
    for number, name in enumerate(pairs.names):
        logits = net((pairs[number][0][None].to(DEVICE) / 255 - MEAN) / STD)
        probability = logits.softmax(1) if args.classes > 2 else torch.cat([1 - logits.sigmoid(), logits.sigmoid()], 1)
        width, height = Image.open(args.folder / f"images/{name}.png").size
        full = F.interpolate(probability, (height, width), mode="bilinear", align_corners=False)
        Image.fromarray(full[0].argmax(0).cpu().numpy().astype(np.uint8)).save(args.output / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=("example", "tuned", "two_rates"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--weights", required=True, help="ImageNet's resnet50 as .safetensors")
    for name, default in {"classes": 2, "epochs": 10, "seed": 0, "size": 128, "batch-size": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    args = parser.parse_args()
    seed_everything(args.seed, verbose=False)
    predict(train(args.recipe, args), args)


if __name__ == "__main__":
    main()

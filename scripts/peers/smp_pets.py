"""The peer of our own training: smp's Pets example recipe with smp.Unet, as smp's users run it (Lightning).

    python scripts/peers/smp_pets.py PETS --output FILE.json [--encoder resnet50 --weights PATH --size 128]

PETS has the official layout: images/*.jpg, annotations/{trainval,test}.txt, annotations/trimaps/*.png.
Source: examples/binary_segmentation_intro.ipynb of qubvel-org/segmentation_models.pytorch, in our own words,
but with Unet for FPN, a seed, images scaled to 0..1 before the mean and std (theirs are not: issue 1224), and masks
resized as ours are, to the class of most of each pixel's area, so that both are scored on the same truth.
The recipe is fixed: squash to a square, the boundary is pet, every 10th line of trainval.txt validates, no
augmentation, Dice, Adam 2e-4 with a cosine to 1e-5, float32; the weights of the last step are tested.
Took 13 min on two CPU cores for 347 training images (resnet50, 128 px, 10 epochs): test IoU .821 (one seed).
"""

import argparse
import json
import os
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor

from unetseg.data.transforms import resize_mask


class Pets(Dataset):
    """One split (train, validation or test) of a folder in the official Oxford-IIIT Pet layout."""

    def __init__(self, root: Path, split: str, size: int):
        listing = root / "annotations" / ("test.txt" if split == "test" else "trainval.txt")
        names = [line.split()[0] for line in listing.read_text().splitlines()]
        if split != "test":
            names = [name for i, name in enumerate(names) if (i % 10 == 0) == (split == "validation")]
        self.root, self.names, self.size = root, names, (size, size)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image 3xSxS uint8 in 0..255 and mask 1xSxS uint8, 1 where the pet is."""
        name = self.names[index]
        image = Image.open(self.root / f"images/{name}.jpg").convert("RGB").resize(self.size, Image.BILINEAR)
        trimap = np.asarray(Image.open(self.root / f"annotations/trimaps/{name}.png"))
        mask = resize_mask((trimap != 2).astype(np.uint8), *self.size)  # 1 pet, 2 background, 3 boundary
        return pil_to_tensor(image), torch.from_numpy(mask)[None]


class PetSegmenter(LightningModule):
    """The recipe's loss, metrics and optimizer around a model of normalised Bx3xSxS -> Bx1xSxS logits."""

    def __init__(self, model: nn.Module, total_steps: int):
        super().__init__()
        self.model, self.total_steps = model, total_steps
        self.loss = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))  # ImageNet's
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.counts: dict[str, list[Tensor]] = defaultdict(list)  # stage -> tp, fp, fn, tn of each batch

    def forward(self, image: Tensor) -> Tensor:
        """Bx3xSxS uint8 in 0..255 -> Bx1xSxS float32 logits."""
        return self.model((image / 255 - self.mean) / self.std)

    def shared_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        image, mask = batch
        logits = self(image)
        counts = smp.metrics.get_stats((logits > 0).long(), mask.long(), mode="binary")
        self.counts[self.trainer.state.stage.value].append(torch.stack(counts))  # 4xBx1
        return self.loss(logits, mask)

    def shared_epoch_end(self) -> None:
        stage = self.trainer.state.stage.value  # train, validate, sanity_check or test
        counts = torch.cat(self.counts.pop(stage), dim=1)  # 4xNx1: the images of the whole epoch
        for name, reduction in {"iou": "micro", "iou_per_image": "micro-imagewise"}.items():
            self.log(f"{stage}/{name}", smp.metrics.iou_score(*counts, reduction=reduction), prog_bar=True)

    training_step = validation_step = test_step = shared_step
    on_train_epoch_end = on_validation_epoch_end = on_test_epoch_end = shared_epoch_end

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-4)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.total_steps, eta_min=1e-5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


class Throughput(Callback):
    """Training images and seconds of the batch loop: loading and steps, but for the first step of the run."""

    images, seconds = 0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, model: PetSegmenter) -> None:
        self.mark = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, model: PetSegmenter, _: dict, batch: list, i: int) -> None:
        if model.device.type == "cuda" and (trainer.global_step == 1 or trainer.is_last_batch):
            torch.cuda.synchronize()
        now = time.perf_counter()
        if trainer.global_step > 1:
            self.images += len(batch[0])
            self.seconds += now - self.mark
        self.mark = now


def build_unet(encoder: str, weights: str) -> smp.Unet:
    """A one-class U-Net; weights is imagenet (smp downloads them), none, or an encoder state dict's path."""
    model = smp.Unet(encoder, encoder_weights="imagenet" if weights == "imagenet" else None, classes=1)
    if weights not in ("imagenet", "none"):
        state = load_file(weights) if weights.endswith(".safetensors") else torch.load(weights, "cpu")
        model.encoder.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    return model


def main(argv: list[str] | None = None) -> dict:
    """Train and test once; the results, as written to --output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in the official Oxford-IIIT Pet layout")
    parser.add_argument("--encoder", default="resnet34", help="an smp encoder with ImageNet's mean and std")
    parser.add_argument("--weights", default="imagenet", metavar="PATH|imagenet|none")
    parser.add_argument("--size", type=int, default=256, help="side of the square, a multiple of 32")
    for name, default in {"batch-size": 64, "epochs": 10, "seed": 0, "workers": os.cpu_count()}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    args = parser.parse_args(argv)
    if not (args.root / "annotations" / "trainval.txt").is_file():
        parser.error(f"{args.root} has no annotations/trainval.txt: give the folder above annotations/")
    args.output.parent.mkdir(parents=True, exist_ok=True)  # now, not after the training

    seed_everything(args.seed)
    train, validation, test = (Pets(args.root, split, args.size) for split in ("train", "validation", "test"))
    loading = {"batch_size": args.batch_size, "num_workers": args.workers}
    train = DataLoader(train, shuffle=True, **loading)
    module = PetSegmenter(build_unet(args.encoder, args.weights), args.epochs * len(train))
    clock = Throughput()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": os.isatty(2)}
    trainer = Trainer(max_epochs=args.epochs, devices=1, precision="32-true", callbacks=[clock], **quiet)
    start = time.time()
    trainer.fit(module, train, DataLoader(validation, **loading))
    (metrics,) = trainer.test(module, DataLoader(test, **loading), verbose=False)
    speed = {"images_per_second": clock.images / clock.seconds, "seconds": time.time() - start}
    results = {**metrics, **speed, "arguments": vars(args)}
    args.output.write_text(json.dumps(results, indent=2, default=str) + "\n")
    print(" ".join(f"{key}={value:.4f}" for key, value in (metrics | speed).items()))
    return results


if __name__ == "__main__":
    main()

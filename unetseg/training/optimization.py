"""How the weights are optimized: the optimizer, its groups of weights, and the course of the learning rate."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, ReduceLROnPlateau

from unetseg.errors import UserError, first_line
from unetseg.names import nearest_first
from unetseg.training import restored

OWN = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
ENCODER = "model.net.encoder."
"""Where the names of the encoder's weights begin."""
POLY_POWER = 0.9
"""As in DeepLab (Chen et al. 2017)."""
RISE, FIRST, LAST = 0.3, 1 / 25, 1 / 25e4
"""Of one-cycle: the share of steps in which the rate rises, and its first and last factors, as torch's OneCycleLR."""
LOWERED = 0.1
"""By which plateau multiplies the rate."""


@dataclass(frozen=True)
class Optimization:
    """The optimizer and the schedule of a training, but for the learning rate.

    Args:
        name: adamw, adam, sgd (with Nesterov's momentum of 0.9), or a name of timm.optim.
        weight_decay: the optimizer's: decoupled in AdamW, added to the gradient in Adam and SGD.
        arguments: further arguments of the optimizer's class, such as momentum or betas.
        encoder_lr_factor: what the learning rate is multiplied by for the encoder's weights.
        schedule: cosine, poly, one_cycle, constant or plateau.
        warmup_epochs: over which the rate rises linearly to its full value; with one_cycle in its way, None: 30 %.
        patience: validations without a better val/iou after which plateau lowers the rate.

    Examples:
        >>> [Optimization(schedule="poly").factor(step, steps=10, warmup=2) for step in (0, 1, 2, 10)]
        [0.3333333333333333, 0.6666666666666666, 1.0, 0.0]
    """

    name: str = "adamw"
    weight_decay: float = 0.0
    arguments: Mapping[str, Any] | None = None
    encoder_lr_factor: float = 1.0
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    patience: int = 5

    @property
    def lr_factors(self) -> list[float]:
        """What the learning rate is multiplied by for each group of weights."""
        return [1.0] if self.encoder_lr_factor == 1 else [self.encoder_lr_factor, 1.0]

    def factor(self, step: int, steps: float, warmup: int = 0) -> float:
        """Return the share of the full learning rate before a step.

        Args:
            step: from 0.
            steps: of the whole training; inf where its end is unknown: the rate stays once it has risen.
            warmup: steps over which the rate rises.
        """
        if self.schedule == "one_cycle":
            top = warmup or RISE * steps - 1
            if step <= top:
                return _between(FIRST, 1, step / max(top, 1e-9))
            return _between(1, LAST, min(1, (step - top) / max(steps - 1 - top, 1e-9)))
        if step < warmup:
            return (step + 1) / (warmup + 1)  # Goyal et al. 2017
        share = min(1.0, (step - warmup) / max(1, steps - warmup))
        match self.schedule:
            case "cosine":
                return (1 + math.cos(math.pi * share)) / 2
            case "poly":
                return float((1 - share) ** POLY_POWER)
            case _:
                return 1.0

    def make_optimizer(self, module: nn.Module, lr: float, *, fused: bool) -> Optimizer:
        """Return the optimizer of a module's weights, those of its encoder first where they have their own rate.

        Args:
            module: of training, whose encoder is model.net.encoder.
            lr: the full learning rate.
            fused: one pass over the weights, where the optimizer knows that.

        Raises:
            UserError: timm has no optimizer of this name, or it refuses the arguments.
        """
        weights = [[*module.parameters()]]
        if self.encoder_lr_factor != 1:
            named = [*module.named_parameters()]
            weights = [
                [w for n, w in named if n.startswith(ENCODER)],
                [w for n, w in named if not n.startswith(ENCODER)],
            ]
        groups = [{"params": w, "lr": lr * f} for w, f in zip(weights, self.lr_factors, strict=True)]
        arguments = {"lr": lr, "weight_decay": self.weight_decay, **(self.arguments or {})}
        if arguments.get("fused") and not fused:
            raise UserError(
                "optimizer.arguments={fused: true} with clipping in mixed precision, or on this device",
                accepted="fused steps on a CPU or CUDA device, without float16, and with bfloat16 without clipping",
                advice="optimizer.arguments without fused, which is chosen where it can be",
            )
        try:
            if self.name in OWN:
                own: dict[str, Any] = {} if "foreach" in arguments else {"fused": fused}
                if self.name == "sgd":  # torch's fused SGD fails where an encoder is let go: it has no momentum yet
                    own = {"momentum": 0.9, "nesterov": True}
                return OWN[self.name](groups, **{**own, **arguments})
            return _of_timm(self.name, groups, arguments)
        except UserError:
            raise
        except Exception as error:  # of any kind: it reads the arguments
            raise self._refused(error) from None

    def check(self, device: torch.device, *, fused: bool) -> None:
        """Take two steps with a tiny network, and look at the state that a checkpoint would hold.

        Args:
            device: of the training.
            fused: as in `make_optimizer`.

        Raises:
            UserError: as `make_optimizer`; or a step fails, or no run could be resumed with the state.
        """
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            layers = {"encoder": nn.Conv2d(3, 4, 3), "decoder": nn.Conv2d(4, 2, 1)}
            module = nn.ModuleDict({"model": nn.ModuleDict({"net": nn.ModuleDict(layers)})}).to(device)
            optimizer = self.make_optimizer(module, 1e-3, fused=fused)
            try:
                for _ in range(2):
                    for weight in module.parameters():
                        weight.grad = torch.ones_like(weight)
                    optimizer.step()
            except Exception as error:  # of any kind, by an argument that is looked at in a step
                raise self._refused(error) from None
        if any(isinstance(own, random.Random | torch.Generator) for own in vars(optimizer).values()):
            raise UserError(
                f"optimizer.name={self.name} draws random numbers of its own, which no checkpoint holds",
                accepted="an optimizer with which a run that was stopped goes on to the last bit",
                advice="optimizer.name=adamw",
            )
        restored.check_plain(optimizer.state_dict(), f"the state of optimizer.name={self.name}")

    def _refused(self, error: Exception) -> UserError:
        if not self.arguments:
            return UserError(
                f"optimizer.name={self.name} can't be used here: {first_line(error)}",
                accepted="adamw, adam, sgd, or a name of timm.optim that needs the gradients alone, on this device",
                advice="optimizer.name=adamw",
            )
        return UserError(
            f"optimizer.name={self.name} refuses optimizer.arguments={dict(self.arguments)}: {first_line(error)}",
            accepted="arguments of the optimizer's class",
            advice="optimizer.arguments=null",
        )

    def make_schedule(self, optimizer: Optimizer, steps: float, warmup: int) -> LRScheduler | ReduceLROnPlateau | None:
        """Return the schedule over all steps; None where the rate stays as it is, or their number is unknown."""
        if self.schedule == "plateau":
            return ReduceLROnPlateau(optimizer, mode="max", factor=LOWERED, patience=self.patience, threshold=0.0)
        if self.schedule == "cosine" and not warmup:
            # torch's own recursion differs from the formula in the last bits, and is that of earlier runs
            return None if math.isinf(steps) else CosineAnnealingLR(optimizer, T_max=int(steps))
        if math.isinf(steps) and self.schedule == "one_cycle":
            return None
        return LambdaLR(optimizer, lambda step: self.factor(step, steps, warmup))

    def has_made(self, state: Mapping[str, Any]) -> bool:
        """Return whether a schedule's state is that of the kind which `make_schedule` makes."""
        if self.schedule == "plateau":
            return "num_bad_epochs" in state
        return ("T_max" if self.schedule == "cosine" and not self.warmup_epochs else "lr_lambdas") in state


def can_fuse(device: torch.device, precision: str, *, clips: bool) -> bool:
    """Return whether an optimizer may take its step in one pass over the weights.

    Lightning refuses it with clipping in mixed precision: with float16, where the optimizer would unscale the gradients
    after the clipping, and also with bfloat16, which has no scaler.
    """
    return device.type in ("cpu", "cuda") and precision != "16-mixed" and not (clips and precision == "bf16-mixed")


def _of_timm(name: str, groups: list[dict[str, Any]], arguments: dict[str, Any]) -> Optimizer:
    from timm.optim import create_optimizer_v2, list_optimizers

    names = list(dict.fromkeys([*OWN, *map(str, list_optimizers())]))
    if name not in names:
        raise UserError(
            f"optimizer.name={name} is not accepted",
            accepted="adamw, adam, sgd, or a name of timm.optim",
            advice=[f"optimizer.name={near}" for near in nearest_first(name, names)[:3]],
        )
    return create_optimizer_v2(groups, opt=name, **arguments)


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

"""Gradient flow: what the long skips of a U-Net do to the gradient, measured exactly in any training loop.

    with GradientFlow(net) as flow:
        criterion(net(images), masks).backward()
        optimizer.step()
    for record in flow.read(): ...

An encoder feature e feeds two branches: its long skip s and the deep path. With g = dL/de, g_skip = dL/ds and
g_deep = g - g_skip, the skip share is <g_skip, g> / <g, g>. The decoder gets s as a view of e. Tensor hooks on both see
the two gradients, while every value, and so the training, stays the same to the last bit.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, distributed, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from unetseg.gradients.blocks import blocks_of, new_nodes
from unetseg.gradients.decay import Decay, decay_of
from unetseg.gradients.dense import DenseSkips
from unetseg.gradients.passes import BackwardPasses, Split, add_sums, products, split_metrics
from unetseg.gradients.routes import ExitRoutes, is_distributed
from unetseg.gradients.short import ShortSkips

Table = dict[str, Tensor]
ENCODER = ("stem", "encoder")  # first letters of the names of the encoder's blocks
_read_now: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_on_trunk: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # nets whose features are known to be the encoder's own path


@dataclass(frozen=True)
class Record:
    """One number of a reading; g is the gradient of a feature, or of a block's trainable weights w. 0 / 0 is nan.

    kind "skip", block level1 ... level4 (of stride 2 ... 16), finest first:
        skip_share, deep_share: <g_skip, g> / <g, g> and <g_deep, g> / <g, g>; they sum to 1. The deep path is all but
            this level's long skip; an auxiliary head on the level's features is counted with it.
        norm, skip_norm, deep_norm: ||g||, ||g_skip||, ||g_deep||; cosine: the one between g_skip and g_deep.
        vanished: 1 where g is zero in every entry.
        frozen: 1 where nothing up to this level is trained: it has no gradient, and all but vanished are nan.
        A level at which the encoder has no features (0 channels) has no records.
    kind "block", block stem, encoder1 ... encoder4, decoder4 ... decoder0, head; see `blocks_of` for other nets:
        rms: ||g|| / sqrt(entries of w).
        nan, inf: how many entries of g are; they stay in rms, which they make nan or inf.
        zero: the share of g that is exactly zero; a weight that no gradient reached counts as zeros.
        update_ratio: ||w after - w decayed|| / ||w before|| of the step taken; nan if none was. w decayed is what
            decoupled weight decay (AdamW's, say) alone would have left; w before, where there is none. Decay that an
            optimizer adds to the gradient (SGD's, Adam's) is not taken out.
        stalled: the share of w that is w decayed after the step, to the last bit; nan if none was taken.
        frozen: 1 where no weight is trained: the numbers above are nan, the counts 0.
    kind "exit" (with routes=True), block stem, encoder1 ... encoder4, and encoder for all of them. The gradient g of w
    is the sum of a term g_EXIT for each EXIT by which it came into the encoder: level1 ... level4 and bottleneck.
        With auxiliary heads `auxiliary` is another exit.
        share_EXIT: <g_EXIT, g> / <g, g>; they sum to 1 over the exits of a block.
        norm_EXIT: ||g_EXIT||; cosine_EXIT_EXIT: the one between two terms.
        fall_EXIT: -<w after - w before, g_EXIT>: how far, to first order, the loss falls by this term in the step
            taken; nan if none was. Adam weighs the exits otherwise than their shares do.
    kind "short" (with routes=True), block encoder1.0 ...: a residual block H = F(x) + x, by its stage and index; g is
    the gradient that comes from it to its input x. Where x is added after a projection, "identity" is what came by it.
        identity_share, residual_share: <g_identity, g> / <g, g> and <g_residual, g> / <g, g>; they sum to 1.
        norm, identity_norm, residual_norm, cosine: as for the long skips.
        projected: 1 where the addition goes through a projection.
    kind "dense" (with routes=True), block encoder1 ...: a dense block of n layers. Source 0 is its input, source l the
    output of layer l; g is the gradient of a source, and a sum over the later layers m that read it and the block's
    output, "out".
        reuse_l_m, reuse_l_out: <g_m, g> / <g, g>; they sum to 1 over m and out.
        weight_l_m, weight_l_out: mean |w| of the weights by which layer m, or the transition that follows, reads the
            source (Huang et al. 2017, Fig. 5). What is read is not what is learned from: it is another question.
    kind "net", block all:
        vanishing_slope: least-squares slope of log10 rms over the blocks' index, from those with finite rms > 0.
        centre_dip: log10(rms_bottleneck / sqrt(rms_first * rms_last)) of encoder4, stem and head.
    """

    kind: str
    block: str
    metric: str
    value: float


class GradientFlow:
    """Reads the gradient flow of the training step in its `with` block, from the forward pass to the optimizer's step.

    The numbers are those of the gradient of the step, however it is computed: micro-batches, several backward passes
    over one forward pass and recomputation (torch.utils.checkpoint) count together. Passes that leave nothing in the
    weights are ignored: evaluation, torch.autograd.grad (for a penalty, which counts once it is part of a loss), and
    gradients that `zero_grad()` removes before another backward pass (such as the first pass of sharpness-aware
    minimisation). Compiled modules run uncompiled inside the block. In a distributed run every rank has to `read`.

    The net's parts have to be called encoder, decoder and segmentation_head, as in segmentation-models-pytorch, and the
    decoder has to be called with the list of the encoder's features, [input, stride 2, ..., deepest]. A feature that
    the decoder leaves out has a skip share of 0. Features that are copies beside the encoder's own path have none, as
    their deep path doesn't reach them; the other kinds are read as ever, also by which exit a gradient came.

    Args:
        net: a SkipUnet, an encoder-decoder of segmentation-models-pytorch, or a module with exactly one of these inside
            (Segmenter, DistributedDataParallel, ...).
        scale: returns the factor on the loss, as `GradScaler.get_scale` does; asked once per block, when the first
            backward pass begins. Gradients of encoder features are divided by it. Those of weights are not: they are
            read when they should be unscaled, see `gradients`.
        routes: read as well by which exit of the encoder the gradient of its weights came (kind "exit"), and by which
            of its short skips the gradient of its features (kinds "short" and "dense"). The exits cost a backward pass
            through the encoder down from each long skip, and the memory of their results. Hooks that others have set on
            the encoder are called in these passes, too.
        auxiliary: heads on the encoder's features beside the net (deep supervision), a module that is called with the
            list of the features as its first argument; it uses neither the input nor the deepest features. With
            `routes` what comes back by it is an exit of its own; otherwise it would be counted with the bottleneck.

    Attributes:
        no_shares: why there are no records of kind "skip"; empty where there are.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> net = smp.Unet("resnet18", encoder_weights=None)
        >>> with GradientFlow(net) as flow:
        ...     net(torch.randn(2, 3, 64, 64)).square().mean().backward()
        >>> shares = {record.block: record.value for record in flow.read() if record.metric == "skip_share"}
        >>> list(shares)
        ['level1', 'level2', 'level3', 'level4']
    """

    def __init__(
        self,
        net: nn.Module,
        scale: Callable[[], float] | None = None,
        routes: bool = False,
        auxiliary: nn.Module | None = None,
    ):
        nets: list[Any] = [module for module in net.modules() if _is_encoder_decoder(module)]
        if len(nets) != 1:
            raise ValueError(
                f"{type(net).__name__} holds {len(nets)} encoder-decoders: give a SkipUnet, a model of "
                "segmentation-models-pytorch, or a module that holds exactly 1 of them"
            )
        self.net, self.scale, self.with_routes, self.auxiliary = nets[0], scale, routes, auxiliary
        self._routes: ExitRoutes | None = None
        self._before: list[list[Tensor]] = []  # empty outside the block
        self._decays: dict[int, list[Decay]] = {}  # of each weight, by its id
        self._gradients: Tensor | None = None
        self._short: ShortSkips | None = None
        self._dense: DenseSkips | None = None
        self.no_shares = ""
        self._passes = BackwardPasses([], [], [], self._on_first_backward)

    def __enter__(self) -> Self:
        if self.net in _read_now:
            raise RuntimeError("a GradientFlow reads this net already: leave its `with` block first")
        blocks = blocks_of(self.net)
        self._weights = {block: [w for w in weights if w.requires_grad] for block, weights in blocks.items()}
        self._before = [[w.detach().clone() for w in weights] for weights in self._weights.values()]
        device = next(self.net.parameters()).device
        precision = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        widths = self.net.encoder.out_channels[1:-1]
        self._levels = [level for level, width in enumerate(widths, start=1) if width]  # transformers have no stride 2
        levels = len(self._levels)
        self._flows = torch.zeros(levels, 4, dtype=precision, device=device)  # sums, see _metrics
        self._updates = self._flows.new_full((len(blocks), 3), math.nan)
        self._gradients, self._decays, self._scaled = None, {}, 1.0
        self._frozen, self._stepped = [False] * levels, False
        ends = {"encoder": 1, "stem": 1} | {f"encoder{number}": number + 1 for number in range(1, len(widths) + 1)}
        self._trained = [  # whether anything up to the level is
            any(weights for block, weights in self._weights.items() if ends.get(block, math.inf) <= level)
            for level in self._levels
        ]
        trained = [w for weights in self._weights.values() for w in weights]
        inside = sum(len(weights) for block, weights in self._weights.items() if block.startswith(ENCODER))
        if self.with_routes:
            encoder = {block: weights for block, weights in self._weights.items() if block.startswith(ENCODER)}
            self._routes = ExitRoutes(encoder, self._levels, precision, auxiliary=self.auxiliary is not None)
            self._short = ShortSkips(self.net.encoder, precision)
            self._dense = DenseSkips(self.net.encoder, precision)
        self._splits = [Split(sums, products, exit=row) for row, sums in enumerate(self._flows)]
        of_short_skips = [skips.sums for skips in (self._short, self._dense) if skips is not None]
        sums = [self._flows, *of_short_skips]
        self._passes = BackwardPasses(trained[:inside], trained[inside:], sums, self._on_first_backward, self._routes)
        self._read_after = 0
        # Compiled code doesn't call hooks that are set later, and keeps those that it was compiled with. A module that
        # torch.compile has wrapped around this one can't be seen from here
        self._stance = torch.compiler.set_stance("force_eager")
        self._stance.__enter__()
        self._handles = [
            self.net.decoder.register_forward_pre_hook(self._on_features),
            self.net.segmentation_head.register_forward_hook(self._on_logits),
            register_optimizer_step_pre_hook(self._on_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        if self.auxiliary is not None:
            self._handles.append(self.auxiliary.register_forward_pre_hook(self._on_auxiliary))
        for skips in (self._short, self._dense):
            if skips is not None:
                self._handles += skips.watch(self._passes)
        _read_now.add(self.net)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._stance.__exit__(None, None, None)
        _read_now.discard(self.net)
        if error is None:
            self._read_once()
        self._passes.close()
        if error is None and self._stepped:
            for sums, before, after in zip(self._updates.zero_(), self._before, self._weights.values(), strict=True):
                decayed = (self._decayed(*pair) for pair in zip(after, before, strict=True))
                add_sums(sums, _update_sums, before, after, decayed)
            if self._routes is not None and self._gradients is not None:
                self._routes.take_step(dict(zip(self._weights, self._before, strict=True)))
        self._before = []

    def gradients(self) -> None:
        """Read the gradients of the weights as they are now; of several calls in the block the last one counts.

        Call it after unscaling and the reduction over ranks and before clipping (with Lightning: in
        `on_before_optimizer_step`). Otherwise they are read when an optimizer of these weights begins its step (before
        it calls a closure) or, where a backward pass follows that, at the end of the block. They may be clipped by
        then, and with `routes` that is refused.
        """
        if not self._before:
            raise RuntimeError("gradients() belongs into the `with` block of the GradientFlow")
        self._gradients_times(1.0)

    def _gradients_times(self, factor: float | Tensor) -> None:
        """Read the gradients of the weights, which are `factor` times as large as they should be."""
        self._passes.check()
        self._read_after = self._passes.counted
        self._gradients = self._updates.new_zeros(len(self._updates), 4)
        trained = [w for weights in self._weights.values() for w in weights]
        found = [w.grad for w in trained]
        if all(gradient is None for gradient in found) and self._passes.left:
            found = self._passes.left  # zero_grad() came first, as where a GradScaler leaves the step out
        gradient_of = {id(w): gradient for w, gradient in zip(trained, found, strict=True)}
        for sums, weights in zip(self._gradients, self._weights.values(), strict=True):
            gradients = (gradient_of[id(w)] for w in weights)
            add_sums(sums, _gradient_sums, [g for g in gradients if g is not None])  # others count as zeros
        self._gradients[:, 0] /= factor**2

        def unscaled(weight: nn.Parameter) -> Tensor | None:
            gradient = gradient_of[id(weight)]
            return gradient if gradient is None or isinstance(factor, float) else gradient / factor

        if self._routes is not None:
            self._routes.compare(unscaled, self._scaled)

    def read(self) -> list[Record]:
        """Return the numbers of the last block, see `Record`. This is the only call that waits for the device.

        Raises:
            RuntimeError: no gradient was seen, or one that can't be split; the text says why.
        """
        if self._before or self._gradients is None or not self._passes.counted:
            advice = "call net(images) and loss.backward() inside the `with` block, and read() after it"
            reason = "; torch.autograd.grad leaves no gradient in the weights" if self._passes.has_ignored else ""
            raise RuntimeError(f"no gradient was seen yet{reason}: {advice}")
        if self._passes.refusal:
            raise RuntimeError(f"the gradient flow can't be read: {self._passes.refusal}")
        if bool(self._passes.inherited):
            raise RuntimeError(
                "the gradient flow can't be read: the weights had gradients before the first backward pass of the "
                "block: begin it before the first micro-batch, and call zero_grad() before that"
            )
        reason = "" if self._routes is None else self._routes.why_not()
        if reason:
            raise RuntimeError(f"the routes of the gradient can't be told: {reason}")
        flows = self._over_ranks(self._flows)
        sums = [flows, self._gradients, self._updates]
        fetched = torch.cat([table.flatten() for table in sums]).cpu().double().split([table.numel() for table in sums])
        flows, gradients, updates = (part.view_as(table) for part, table in zip(fetched, sums, strict=True))
        entries = flows.new_tensor([sum(w.numel() for w in weights) for weights in self._weights.values()])
        blocks = list(self._weights)
        deepest = f"encoder{len(self.net.encoder.out_channels) - 2}"
        centre = blocks.index(deepest) if deepest in blocks else None
        metrics = _metrics(flows, flows.new_tensor(self._frozen) > 0, gradients, updates, entries, centre)
        names = {
            "skip": [f"level{level}" for level in self._levels if not self.no_shares],
            "block": blocks,
            "net": ["all"],
        }
        records = [
            Record(kind, block, metric, float(values[i]))
            for kind in names
            for i, block in enumerate(names[kind])
            for metric, values in metrics[kind].items()
        ]
        by_kind = {} if self._routes is None else {"exit": self._routes.metrics()}
        if self._short is not None and self._dense is not None:
            by_kind["short"] = self._short.metrics(self._over_ranks(self._short.sums))
            by_kind["dense"] = self._dense.metrics(self._over_ranks(self._dense.sums))
        return records + [
            Record(kind, block, metric, value)
            for kind, routes in by_kind.items()
            for block, of_block in routes.items()
            for metric, value in of_block.items()
        ]

    def _over_ranks(self, sums: Tensor) -> Tensor:
        """Return inner products of gradients without the loss's scale, and those of the joint loss of all ranks."""
        unscaled = sums / self._scaled**2
        if is_distributed():
            distributed.all_reduce(unscaled)
            unscaled /= distributed.get_world_size() ** 2  # the joint loss is the mean of the ranks' losses
        return unscaled

    def _on_features(self, decoder: nn.Module, inputs: tuple[Sequence[Tensor], Any]) -> tuple[Any, ...] | None:
        """Hand views of the encoder's features, [input, stride 2, ..., deepest], to the decoder as its long skips."""
        if not torch.is_grad_enabled():
            return None
        features, *others = inputs
        if len(features) != len(self.net.encoder.out_channels):
            self._passes.refusal = (
                f"{type(decoder).__name__} was not given the list of the encoder's "
                f"{len(self.net.encoder.out_channels)} features, [input, stride 2, ..., deepest]"
            )
            return None
        if self.net not in _on_trunk:
            self._check_trunk(features)
        views = list(features)
        ours = {id(w) for weights in self._weights.values() for w in weights}
        if any(id(getattr(node, "variable", None)) in ours for node in new_nodes(features[0], set())):
            views[0] = features[0].view_as(features[0])
            views[0].register_hook(self._refuse_first)
        for row, level in enumerate(self._levels):
            if features[level].requires_grad and self._trained[row]:
                views[level] = self._passes.watch(self._splits[row], features[level])
            else:
                self._frozen[row] = True
        return (views, *others)

    def _refuse_first(self, gradient: Tensor) -> None:
        self._passes.refusal = (
            f"{type(self.net.decoder).__name__} reads the first feature of {type(self.net.encoder).__name__}, which is "
            "not the image: what comes back by it belongs to no level"
        )

    def _on_auxiliary(self, heads: nn.Module, inputs: tuple[Sequence[Tensor], Any]) -> tuple[Any, ...] | None:
        """Hand views of the encoder's features of their own to the auxiliary heads."""
        if not torch.is_grad_enabled():
            return None
        features, *others = inputs
        views = list(features)
        for row, level in enumerate(self._levels):
            if features[level].requires_grad and self._trained[row]:
                views[level] = self._passes.watch_auxiliary(features[level])
        return (views, *others)

    def _check_trunk(self, features: Sequence[Tensor]) -> None:
        """Tell features that the encoder's deeper stages don't use themselves: their deep path can't be seen."""
        nodes = set(new_nodes(features[-1], set()))
        seen = [features[level] for level in self._levels if features[level].grad_fn is not None]
        if any(encoded.grad_fn not in nodes for encoded in seen):
            self.no_shares = (
                f"features of {type(self.net.encoder).__name__} are copies beside the path that goes on, as in timm's "
                "Swin: what comes back by the deep path doesn't reach them"
            )
        elif len(seen) == len(self._levels):
            _on_trunk.add(self.net)

    def _on_logits(self, head: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> None:
        if logits.requires_grad:
            logits.register_hook(self._passes.on_gradient)

    def _on_first_backward(self) -> None:
        if self.scale is not None:
            self._scaled = self.scale()

    def _on_step(self, optimizer: Optimizer, *_: object) -> None:
        ours = {id(w) for weights in self._weights.values() for w in weights}
        if any(id(w) in ours for group in optimizer.param_groups for w in group["params"]):
            self._stepped = True
            # a GradScaler leaves it to fused kernels to unscale the gradients
            factor = getattr(optimizer, "grad_scale", None)
            self._read_once(1.0 if factor is None else factor)

    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        """Note the decay of the step; a weight without a gradient is left alone by optimizers, also by their decay."""
        for group in optimizer.param_groups:
            decay = decay_of(optimizer, group)
            if decay is not None:
                for w in (w for w in group["params"] if w.grad is not None):
                    self._decays.setdefault(id(w), []).append(decay)

    def _decayed(self, weight: nn.Parameter, before: Tensor) -> Tensor:
        """Return what the decay of the steps taken alone would have made of a weight."""
        for decay in self._decays.get(id(weight), ()):
            before = decay(before)
        return before

    def _read_once(self, factor: float | Tensor = 1.0) -> None:
        """Read the gradients of the weights unless they were read after the last backward pass."""
        if self._passes.counted > self._read_after:
            self._gradients_times(factor)


def _is_encoder_decoder(module: nn.Module) -> bool:
    parts = dict(module.named_children())  # not its attributes: those of a wrapper may be passed on
    return {"encoder", "decoder", "segmentation_head"} <= parts.keys() and hasattr(parts["encoder"], "out_channels")


def _gradient_sums(g: Tensor) -> tuple[Tensor, ...]:
    """Return ||g||^2 and how many entries are nan, infinite, and other than zero."""
    square, nonzero = g @ g, g.count_nonzero()
    if g.device.type == "cpu" and square.isfinite():  # nothing waits there, and most gradients are finite
        none = torch.zeros_like(square)
        return square, none, none, nonzero
    return square, g.isnan().count_nonzero(), g.isinf().count_nonzero(), nonzero


def _update_sums(before: Tensor, after: Tensor, decayed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ||after - decayed||^2, ||before||^2 and the number of entries where after and decayed are equal."""
    step = after - decayed
    return step @ step, before @ before, (after == decayed).count_nonzero()


def _metrics(
    flows: Tensor, frozen: Tensor, gradients: Tensor, updates: Tensor, entries: Tensor, centre: int | None
) -> dict[str, Table]:
    """Return each kind's metrics, see `Record`, from sums over L levels (Lx4, L) and N blocks (Nx4, Nx3, N).

    `centre` is the block that ends at the bottleneck, None if it is not known.
    """
    skips = split_metrics(flows.where(~frozen[:, None], math.nan), "skip", "deep")
    square, nans, infs, nonzero = gradients.T
    step, before, unmoved = updates.T
    rms = (square / entries).sqrt()
    ratio = (step / before).sqrt()
    stalled, zero = unmoved / entries, 1 - nonzero / entries
    logs = rms.log10()
    height = logs[logs.isfinite()]
    depth = logs.isfinite().nonzero().flatten().double()
    depth -= depth.mean()
    slope = depth @ height / (depth @ depth)
    dip = logs.new_tensor(math.nan) if centre is None else logs[centre] - (logs[0] + logs[-1]) / 2
    return {
        "skip": {**skips, "vanished": skips["norm"] == 0, "frozen": frozen},
        "block": dict(rms=rms, update_ratio=ratio, stalled=stalled, zero=zero, nan=nans, inf=infs, frozen=entries == 0),
        "net": {"vanishing_slope": slope[None], "centre_dip": dip[None]},
    }

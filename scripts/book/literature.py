"""The claims of the book: what was said of skip connections, by whom, and the difference that would show it.

A setting is a network, by its options beside those of conf/recipe/from_scratch.yaml. A contrast says which setting's
reading should be larger than which one's, or than a number, if the claim is right.
"""

from __future__ import annotations

from dataclasses import dataclass

SETTINGS: dict[str, list[str]] = {
    "concat": [],
    **{
        skip: [f"model.skip={skip}"]
        for skip in (*("add", "none", "placebo", "attention", "nested", "full", "respath", "channel", "permuted"),)
    },
    **{
        f"{skip} matched": [f"model.skip={skip}", "model.match_parameters=true"]
        for skip in ("add", "none", "attention", "nested", "full", "respath", "channel")
    },
    "plain": ["model.short_skips=false"],
    "none plain": ["model.skip=none", "model.short_skips=false"],
    "forward": ["model.skip_flow=forward"],
    "without level 1": ["model.skip=[none,concat,concat,concat]"],
    "without level 4": ["model.skip=[concat,concat,concat,none]"],
    "kappa": ["model.skip_scale=kappa"],
}


@dataclass(frozen=True)
class Contrast:
    """The reading of `more` less that of `less`, which is above 0 if the claim is right."""

    reading: str
    """A key of readings.READINGS, or iou, boundary_iou: scores by unit of the test set."""
    more: str
    less: str | float
    """A setting, or a number."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the literature, and what would show it."""

    name: str
    """Of its page."""
    title: str
    said: str
    """Who says what, in full sentences."""
    source: str
    experiment: str
    """The file in conf/experiment that trains such networks."""
    contrasts: tuple[Contrast, ...]
    remark: str = ""
    """What a reader has to know of the measurement."""


SCORES = ("iou", "boundary_iou")


def better(more: str, less: str) -> tuple[Contrast, ...]:
    """Return that one setting scores higher than another, in IoU and in Boundary IoU."""
    return tuple(Contrast(score, more, less) for score in SCORES)


CLAIMS = (
    Claim(
        "accuracy",
        "Long skips make a segmentation more accurate",
        "The U-Net copies features from its encoder to its decoder, and wins two challenges with it.",
        "Ronneberger et al. 2015, arXiv 1505.04597",
        "skip_ablation",
        (Contrast("iou", "concat", "none"), Contrast("iou", "add", "none")),
    ),
    Claim(
        "detail",
        "Long skips bring back fine detail",
        "High-resolution features from the encoder let the decoder localise: without them the edges suffer most.",
        "Ronneberger et al. 2015, arXiv 1505.04597; Drozdzal et al. 2016, arXiv 1608.04117",
        "skip_ablation",
        (Contrast("boundary_iou", "concat", "none"), Contrast("edge_gain", "concat", "none")),
        "`edge_gain` is Boundary IoU less IoU: it rises where the edges gain more than the areas.",
    ),
    Claim(
        "parameters",
        "It is the features that help, not the parameters that come with them",
        "A decoder with concatenation has more weights than one without. Placebo has the same weights and no features "
        "of the encoder; `matched` is a wider decoder with as many weights.",
        "Control of this project; comparisons in the literature often lack it",
        "controls",
        (*better("concat", "placebo"), *better("concat", "none matched"), *better("add matched", "none matched")),
    ),
    Claim(
        "gradient_share",
        "Most of an early block's gradient comes by the long skips",
        "Long skips give the gradient short ways to early layers.",
        "Drozdzal et al. 2016, arXiv 1608.04117",
        "skip_ablation",
        (Contrast("skip_exit_share", "concat", 0.5), Contrast("skip_exit_share", "add", 0.5)),
        "The share of the stem's gradient by the exits at levels 1 to 4: the median of a training's readings.",
    ),
    Claim(
        "addition",
        "Addition lets the gradient pass unchanged, so more of it arrives by the skips",
        "The derivative of a sum with respect to each of its terms is the identity; a concatenation's is a slice that "
        "the next convolution weighs.",
        "He et al. 2016, arXiv 1603.05027, of short skips; told of long ones in many textbooks",
        "skip_ablation",
        (Contrast("skip_exit_share", "add", "concat"),),
    ),
    Claim(
        "vanishing",
        "Without long skips early layers get a smaller gradient",
        "Long skips are said to cure vanishing gradients. This network has batch normalisation and He's weights, as "
        "nearly all have today. A smaller gradient is the least of the claim: one that has vanished is smaller by "
        "orders of magnitude, and the early layers stop learning.",
        "Told in many textbooks; Drozdzal et al. 2016, arXiv 1608.04117, for networks of fifty layers and more",
        "skip_ablation",
        (Contrast("stem_gradient", "concat", "none"),),
        "log10 of the rms of the stem's gradient: 1 means ten times as large.",
    ),
    Claim(
        "gradient_needed",
        "The gradient that comes back by the long skips is what helps",
        "If the skips help because they carry gradient, a network whose skips carry features alone has to lose.",
        "A test of the textbooks' reason; no such test is known to us",
        "flow",
        better("concat", "forward"),
    ),
    Claim(
        "easier",
        "Long skips ease training",
        "With long skips a network learns faster: it is ahead early.",
        "Drozdzal et al. 2016, arXiv 1608.04117",
        "skip_ablation",
        (Contrast("early_iou", "concat", "none"),),
        "`early_iou` is the validation's IoU after a fifth of the epochs.",
    ),
    Claim(
        "reuse",
        "Concatenation reuses the encoder's features",
        "A trained decoder relies on what the long skips bring: cut at test time, the score falls.",
        "Huang et al. 2017, arXiv 1608.06993, of DenseNets",
        "skip_ablation",
        (Contrast("lesion_loss", "concat", 0.0),),
        "IoU lost where the features of all long skips are replaced by their mean over the test pictures.",
    ),
    Claim(
        "short_and_long",
        "Short and long skips are best together",
        "Networks with both kinds train best.",
        "Drozdzal et al. 2016, arXiv 1608.04117",
        "drozdzal",
        (*better("concat", "plain"), *better("concat", "none"), Contrast("iou", "plain", "none plain")),
    ),
    Claim(
        "shallow",
        "A residual network learns by its short paths",
        "The gradient comes by paths that pass few of the residual branches.",
        "Veit et al. 2016, arXiv 1605.06431",
        "skip_ablation",
        (Contrast("short_path_share", "none", 0.0),),
        "Half less the mean number of branches that the gradient has passed, as a share of all: above 0 short paths "
        "prevail.",
    ),
    Claim(
        "flatter",
        "Skips make the loss flatter around the solution",
        "Without skips the surface of the loss turns chaotic as networks get deep.",
        "Li et al. 2018, arXiv 1712.09913, of short skips",
        "drozdzal",
        (Contrast("loss_rise", "none", "concat"), Contrast("loss_rise", "plain", "concat")),
        "`loss_rise` is log10 of how far the loss rises half the weights' length along filter-normalised random "
        "directions: 1 means ten times as far. A training whose loss falls there on average, as where "
        "it has hardly learned, has no such number and is left out.",
    ),
    Claim(
        "shattered",
        "Short skips keep neighbouring inputs' gradients alike",
        "In networks without skips the gradient changes like white noise from input to input.",
        "Balduzzi et al. 2017, arXiv 1702.08591",
        "drozdzal",
        (Contrast("alike_gradients", "concat", "plain"), Contrast("alike_gradients", "none", "none plain")),
        "The autocorrelation of the stem's gradient between neighbouring points of a line from picture to picture.",
    ),
    Claim(
        "nested",
        "U-Net++ is more accurate than the U-Net",
        "On average 3.9 points of IoU more than a U-Net.",
        "Zhou et al. 2018, arXiv 1807.10165",
        "designs",
        (*better("nested", "concat"), *better("nested matched", "concat")),
    ),
    Claim(
        "semantic_gap",
        "What meets at a fine skip is less alike than at a coarse one",
        "The semantic gap between encoder and decoder is wide at the fine levels: the reason for nested skips.",
        "Zhou et al. 2018, arXiv 1807.10165",
        "designs",
        (Contrast("cka_coarse_less_fine", "concat", 0.0),),
        "CKA of deep and skip features at level 4 less that at level 1.",
    ),
    Claim(
        "full",
        "U-Net 3+ is more accurate than the U-Net",
        "Each decoder level sees all scales, with fewer parameters.",
        "Huang et al. 2020, arXiv 2004.08790",
        "designs",
        (*better("full", "concat"), *better("full matched", "concat")),
    ),
    Claim(
        "attention",
        "Attention gates make long skips better",
        "A gate lets pass what the deep path asks for.",
        "Oktay et al. 2018, arXiv 1804.03999",
        "designs",
        (*better("attention", "concat"), *better("attention matched", "concat")),
    ),
    Claim(
        "respath",
        "Convolutions on the long skips make them better",
        "A chain of residual convolutions narrows the gap between what meets.",
        "Ibtehaz and Rahman 2020, arXiv 1902.04049",
        "designs",
        (*better("respath", "concat"), *better("respath matched", "concat")),
    ),
    Claim(
        "channel",
        "Attention between the levels' channels beats plain skips",
        "Skips are exchanged between levels by a transformer over channels.",
        "Wang et al. 2022, arXiv 2109.04335",
        "designs",
        (*better("channel", "concat"), *better("channel matched", "concat")),
    ),
    Claim(
        "harmful",
        "Some plain skips are harmful",
        "Not each level's skip helps; without a bad one the score is higher.",
        "Wang et al. 2022, arXiv 2109.04335",
        "levels",
        (Contrast("iou", "without level 1", "concat"), Contrast("iou", "without level 4", "concat")),
    ),
    Claim(
        "shift",
        "Under a shift of the pictures networks with long skips lose more",
        "Skips lose their worth on pictures unlike those of the training, and the order may reverse. An erratum "
        "retracts cells of the paper's table.",
        "Kamath et al. 2023, doi 10.1007/978-3-031-43901-8_29",
        "shift",
        (Contrast("shift_loss", "concat", "none"), Contrast("shift_loss", "attention", "none")),
        "`shift_loss` is the IoU that six kinds of shift at their strongest take, their mean.",
    ),
    Claim(
        "uppermost",
        "Without the uppermost skip a network bears shifts better",
        "The finest skip carries what differs between domains.",
        "Wilm et al. 2024, Rethinking U-net Skip Connections for Biomedical Image Segmentation, arXiv 2402.08276",
        "levels",
        (Contrast("shift_loss", "concat", "without level 1"),),
        "Level 1 has stride 2 here; their uppermost skip has stride 1, which is `model.stem_skip=true`.",
    ),
    Claim(
        "scaled",
        "Long skips scaled down by kappa to the level train better",
        "Scaled skips keep the features' size steady, and training stable.",
        "Huang et al. 2023 (ScaleLong), arXiv 2310.13545, of diffusion models",
        "designs",
        better("kappa", "concat"),
    ),
    Claim(
        "freeu",
        "FreeU's factors improve a trained network without training",
        "Stronger deep features and weaker low frequencies of the skips give better pictures.",
        "Si et al. 2024, arXiv 2309.11497, of diffusion models",
        "skip_ablation",
        (Contrast("freeu_gain", "concat", 0.0),),
        "IoU with b = 1.2 and s = 0.9 at all levels less IoU without, of the same model.",
    ),
    Claim(
        "own_level",
        "It matters that each level gets its own level's features",
        "With the levels' features exchanged between them the score is lower.",
        "A control beside placebo",
        "designs",
        better("concat", "permuted"),
    ),
    Claim(
        "rank",
        "Long skips keep the deep features from degenerating",
        "Skips break symmetries and keep units from dying: the features span more directions.",
        "Orhan and Pitkow 2018, arXiv 1701.09175, of short skips",
        "skip_ablation",
        (Contrast("deep_rank", "concat", "none"),),
        "The effective rank of the decoder's deep features as a share of their channels, the mean over the levels.",
    ),
)


def wanted(setting: str) -> set[str]:
    """Return the readings that some claim wants of a setting, beside its scores."""
    contrasts = (contrast for claim in CLAIMS for contrast in claim.contrasts)
    return {own.reading for own in contrasts if setting in (own.more, own.less)} - {*SCORES}

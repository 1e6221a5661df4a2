"""The claims of the book: what was said of skip connections, by whom, and the difference that would show it.

A setting is a network, by its options beside those of conf/recipe/from_scratch.yaml. A contrast says which setting's
reading should be larger than which one's, or than a number, if the claim is right.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    "without level 2": ["model.skip=[concat,none,concat,concat]"],
    "without level 3": ["model.skip=[concat,concat,none,concat]"],
    "without level 4": ["model.skip=[concat,concat,concat,none]"],
    "kappa": ["model.skip_scale=kappa"],
}


ABOUT = {
    "concat": "the encoder's features beside the decoder's own: the U-Net",
    "add": "the encoder's features are added, by a 1x1 convolution where the widths differ",
    "none": "no long skips",
    "placebo": "concat's size, and nothing of the encoder",
    "attention": "concat, with attention gates",
    "nested": "U-Net++, without deep supervision",
    "full": "U-Net 3+, without deep supervision",
    "respath": "concat, with residual convolutions on each skip",
    "channel": "concat, with attention between the levels' channels",
    "permuted": "concat's size, and another level's features",
    "plain": "concat; the encoder has no short skips",
    "none plain": "neither long nor short skips",
    "forward": "concat; no gradient comes back by the long skips",
    "without level 1": "concat, without the finest long skip",
    "without level 2": "concat, without level 2's long skip",
    "without level 3": "concat, without level 3's long skip",
    "without level 4": "concat, without the coarsest long skip",
    "kappa": "concat; the skips are scaled down by kappa to the level",
}
"""What the settings are, but for those that are `matched`."""
MATCHED = (
    "the decoder's widths, and those of its nodes, paths or tokens, are such that it has concat's number of weights"
)


def about(setting: str) -> str:
    """Return what a setting is.

    Examples:
        >>> about("none matched")
        "no long skips; the decoder is as wide as gives concat's number of weights"
    """
    own = setting.removesuffix(" matched")
    return ABOUT[own] if own == setting else f"{ABOUT[own]}; {MATCHED}"


@dataclass(frozen=True)
class Contrast:
    """The reading of `more` less that of `less`, which is above 0 if the claim is right."""

    reading: str
    """A key of readings.READINGS, or one of BY_UNIT."""
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
    """Options of `python -m unetseg.ablate` that train such networks."""
    contrasts: tuple[Contrast, ...]
    remark: str = ""
    """What a reader has to know of the measurement."""


SCORES = ("iou", "boundary_iou")
BY_UNIT = (*SCORES, "edge_gain")
"""What is known of each unit of the test set; edge_gain is Boundary IoU less IoU."""


def better(more: str, less: str) -> tuple[Contrast, ...]:
    """Return that one setting scores higher than another, in IoU and in Boundary IoU."""
    return tuple(Contrast(score, more, less) for score in SCORES)


CLAIMS = (
    Claim(
        "accuracy",
        "Long skips make a segmentation more accurate",
        "The U-Net copies features from its encoder to its decoder, and wins two challenges with it.",
        "Ronneberger et al. 2015, arXiv 1505.04597",
        "experiment=skip_ablation",
        (Contrast("iou", "concat", "none"), Contrast("iou", "add", "none")),
    ),
    Claim(
        "detail",
        "Long skips bring back fine detail",
        "High-resolution features from the encoder let the decoder localise: without them the edges suffer most.",
        "Ronneberger et al. 2015, arXiv 1505.04597; Drozdzal et al. 2016, arXiv 1608.04117",
        "experiment=skip_ablation",
        (Contrast("boundary_iou", "concat", "none"), Contrast("edge_gain", "concat", "none")),
        "`edge_gain` is Boundary IoU less IoU: it rises where the edges gain more than the areas.",
    ),
    Claim(
        "parameters",
        "It is the features that help, not the parameters that come with them",
        "A decoder with concatenation has more weights than one without. Placebo has the same weights and no features "
        "of the encoder; `matched` is a wider decoder with as many weights.",
        "Control of this project; comparisons in the literature often lack it",
        "experiment=controls",
        (*better("concat", "placebo"), *better("concat", "none matched"), *better("add matched", "none matched")),
    ),
    Claim(
        "gradient_share",
        "Most of an early block's gradient comes by the long skips",
        "Long skips give the gradient short ways to early layers.",
        "Drozdzal et al. 2016, arXiv 1608.04117",
        "experiment=skip_ablation",
        (Contrast("skip_exit_share", "concat", 0.5), Contrast("skip_exit_share", "add", 0.5)),
        "The share of the stem's gradient by the exits at levels 1 to 4: the median of a training's readings.",
    ),
    Claim(
        "addition",
        "Addition lets the gradient pass unchanged, so more of it arrives by the skips",
        "The derivative of a sum with respect to each of its terms is the identity; a concatenation's is a slice that "
        "the next convolution weighs.",
        "He et al. 2016, arXiv 1603.05027, of short skips; told of long ones in many textbooks",
        "experiment=skip_ablation",
        (Contrast("skip_exit_share", "add", "concat"),),
        "The share of the stem's gradient by the exits at levels 1 to 4. Here addition is the identity at level 1 "
        "alone: at the others the widths differ, and a 1x1 convolution comes first. A share near 1 has little room to "
        "rise.",
    ),
    Claim(
        "vanishing",
        "Without long skips early layers get a smaller gradient",
        "Long skips are said to cure vanishing gradients. This network has batch normalisation and He's weights, as "
        "nearly all have today. A smaller gradient is the least of the claim: one that has vanished is smaller by "
        "orders of magnitude, and the early layers stop learning.",
        "Told in many textbooks; Drozdzal et al. 2016, arXiv 1608.04117, for networks of fifty layers and more",
        "experiment=skip_ablation",
        (Contrast("stem_gradient", "concat", "none"),),
        "`stem_gradient` is log10 of the rms of the stem's gradient, of its median over a training: 1 means ten times "
        "as large.",
    ),
    Claim(
        "gradient_needed",
        "The gradient that comes back by the long skips is what helps",
        "If the skips help because they carry gradient, a network whose skips carry features alone has to lose.",
        "A test of the textbooks' reason; no such test is known to us",
        "experiment=flow",
        better("concat", "forward"),
    ),
    Claim(
        "easier",
        "Long skips ease training",
        "With long skips a network learns faster: it is ahead early.",
        "Drozdzal et al. 2016, arXiv 1608.04117",
        "experiment=skip_ablation",
        (Contrast("early_iou", "concat", "none"),),
        "`early_iou` is the validation's IoU after a fifth of the epochs.",
    ),
    Claim(
        "reuse",
        "Concatenation reuses the encoder's features",
        "A trained decoder relies on what the long skips bring: cut at test time, the score falls.",
        "Huang et al. 2017, arXiv 1608.06993, of DenseNets",
        "experiment=skip_ablation",
        (Contrast("lesion_loss", "concat", 0.0),),
        "`lesion_loss` is the IoU over the set that is lost where the features of all long skips are replaced by "
        "their mean over the test pictures. A network that was trained with skips can hardly do without them: the "
        "number says how little.",
    ),
    Claim(
        "short_and_long",
        "Short and long skips are best together",
        "Networks with both kinds train best.",
        "Drozdzal et al. 2016, arXiv 1608.04117",
        "experiment=drozdzal",
        (*better("concat", "plain"), *better("concat", "none")),
        "The claim is both: short skips help beside long ones (concat − plain), and long ones beside short ones "
        "(concat − none).",
    ),
    Claim(
        "shallow",
        "A residual network learns by its short paths",
        "The gradient comes by paths that pass few of the residual branches.",
        "Veit et al. 2016, arXiv 1605.06431",
        "experiment=skip_ablation",
        (Contrast("short_path_share", "none", 0.0),),
        "Half less the mean number of branches that the gradient has passed, as a share of the eight: above 0 short "
        "paths prevail. 0.0625 would be a mean of 3.5 branches in place of 4.",
    ),
    Claim(
        "flatter",
        "Skips make the loss flatter around the solution",
        "Without skips the surface of the loss turns chaotic as networks get deep.",
        "Li et al. 2018, arXiv 1712.09913, of short skips",
        "experiment=drozdzal",
        (Contrast("rise", "none", "concat"), Contrast("rise", "plain", "concat")),
        "`rise` is how far the loss rises half the weights' length along filter-normalised random directions; below 0 "
        "it falls. A network that has hardly learned has little to lose, and its loss is flat.",
    ),
    Claim(
        "shattered",
        "Short skips keep neighbouring inputs' gradients alike",
        "In networks without skips the gradient changes like white noise from input to input.",
        "Balduzzi et al. 2017, arXiv 1702.08591",
        "experiment=drozdzal",
        (Contrast("alike_gradients", "concat", "plain"), Contrast("alike_gradients", "none", "none plain")),
        "The autocorrelation of the stem's gradient between neighbouring points of a line from picture to picture, of "
        "trained networks of 18 layers; the paper's are at their start, and most are deeper.",
    ),
    Claim(
        "nested",
        "U-Net++ is more accurate than the U-Net",
        "With deep supervision, on average 3.9 points of IoU more than a U-Net.",
        "Zhou et al. 2018, arXiv 1807.10165",
        "experiment=designs",
        (*better("nested", "concat"), *better("nested matched", "concat")),
        "Trained here without deep supervision, which `model.deep_supervision=true` would add: the nested skips alone. "
        "A gain of 0.039 is less than any row would have shown in 4 of 5 trials, so that it isn't shown does not say "
        "that it isn't there.",
    ),
    Claim(
        "semantic_gap",
        "What meets at a fine skip is less alike than at a coarse one",
        "The semantic gap between encoder and decoder is wide at the fine levels: the reason for nested skips.",
        "Zhou et al. 2018, arXiv 1807.10165",
        "experiment=designs",
        (Contrast("coarse_less_fine", "concat", 0.0),),
        "`coarse_less_fine` is CKA of deep and skip features at level 4 less that at level 1, of what is left without "
        "each position's mean over the pictures (`cka_at_places`). On Pets the difference is larger with it, as coarse "
        "features of any two pictures are alike that show an animal in the middle.",
    ),
    Claim(
        "full",
        "U-Net 3+ is more accurate than the U-Net",
        "Each decoder level sees all scales, with fewer parameters.",
        "Huang et al. 2020, arXiv 2004.08790",
        "experiment=designs",
        (*better("full", "concat"), *better("full matched", "concat")),
        "Trained here without deep supervision, and without the classification that guides theirs.",
    ),
    Claim(
        "attention",
        "Attention gates make long skips better",
        "A gate lets pass what the deep path asks for.",
        "Oktay et al. 2018, arXiv 1804.03999",
        "experiment=designs",
        (*better("attention", "concat"), *better("attention matched", "concat")),
    ),
    Claim(
        "respath",
        "Convolutions on the long skips make them better",
        "A chain of residual convolutions narrows the gap between what meets.",
        "Ibtehaz and Rahman 2020, arXiv 1902.04049",
        "experiment=designs",
        (*better("respath", "concat"), *better("respath matched", "concat")),
    ),
    Claim(
        "channel",
        "Attention between the levels' channels beats plain skips",
        "Skips are exchanged between levels by a transformer over channels.",
        "Wang et al. 2022, arXiv 2109.04335",
        "experiment=designs",
        (*better("channel", "concat"), *better("channel matched", "concat")),
    ),
    Claim(
        "harmful",
        "Some plain skips are harmful",
        "Not each level's skip helps; without a bad one the score is higher.",
        "Wang et al. 2022, arXiv 2109.04335",
        "experiment=levels",
        tuple(Contrast("iou", f"without level {level}", "concat") for level in (1, 2, 3, 4)),
        "Each skip is left out by itself; level 1 is the finest.",
    ),
    Claim(
        "shift",
        "Under a shift of the pictures networks with long skips lose more",
        "Skips lose their worth on pictures unlike those of the training. Of the paper's table 1 the column of easier "
        "pictures of the spleen is superseded, as the authors' repository (amithjkamath/to_skip_or_not) says.",
        "Kamath et al. 2023, doi 10.1007/978-3-031-43901-8_29",
        "experiment=shift",
        (Contrast("shift_loss", "concat", "none"), Contrast("shift_loss", "attention", "none")),
        "`shift_loss` is the IoU over the set that six kinds of shift at their strongest take, their mean. Who has "
        "more can lose more.",
    ),
    Claim(
        "shift_share",
        "Under a shift of the pictures networks with long skips lose a larger share",
        "Skips lose their worth on pictures unlike those of the training.",
        "Kamath et al. 2023, doi 10.1007/978-3-031-43901-8_29",
        "experiment=shift",
        (Contrast("shift_share", "concat", "none"), Contrast("shift_share", "attention", "none")),
        "`shift_share` is the IoU over the set that six kinds of shift at their strongest take, their mean, as a "
        "share of that without a shift.",
    ),
    Claim(
        "shift_order",
        "Under a shift of the pictures a network without long skips is ahead",
        "Skips may do harm on pictures unlike those of the training: the order reverses.",
        "Kamath et al. 2023, doi 10.1007/978-3-031-43901-8_29",
        "experiment=shift",
        (Contrast("shifted_iou", "none", "concat"), Contrast("shifted_iou", "none", "attention")),
        "`shifted_iou` is the IoU over the set under six kinds of shift at their strongest, their mean.",
    ),
    Claim(
        "uppermost",
        "Without the uppermost skip a network bears shifts better",
        "The finest skip carries what differs between domains.",
        "Wilm et al. 2024, Rethinking U-net Skip Connections for Biomedical Image Segmentation, arXiv 2402.08276",
        "experiment=levels",
        (Contrast("shift_loss", "concat", "without level 1"), Contrast("shifted_iou", "without level 1", "concat")),
        "`shift_loss` is the IoU over the set that six kinds of shift at their strongest take, their mean, and "
        "`shifted_iou` what is left. Level 1 has stride 2 here; their uppermost skip has stride 1, which is "
        "`model.stem_skip=true`.",
    ),
    Claim(
        "scaled",
        "Long skips scaled down by kappa to the level train better",
        "Scaled skips keep the features' size steady, and training stable.",
        "Huang et al. 2023 (ScaleLong), arXiv 2310.13545, of diffusion models",
        "experiment=skip_ablation model.skip=concat model.skip_scale=1.0,kappa",
        better("kappa", "concat"),
        "The scores alone: nothing here says how steady the features' size is.",
    ),
    Claim(
        "freeu",
        "FreeU's factors improve a trained network without training",
        "Stronger deep features and weaker low frequencies of the skips give better pictures.",
        "Si et al. 2024, arXiv 2309.11497, of diffusion models",
        "experiment=skip_ablation",
        (Contrast("freeu_gain", "concat", 0.0),),
        "`freeu_gain` is the IoU over the set with b = 1.2 and s = 0.9 at all levels less IoU without, of the same "
        "model.",
    ),
    Claim(
        "own_level",
        "It matters that each level gets its own level's features",
        "With the levels' features exchanged between them the score is lower.",
        "A control beside placebo. Of UTANet (AAAI 2025) it is told that other orders often do better",
        "experiment=skip_ablation model.skip=concat,permuted",
        better("concat", "permuted"),
    ),
    Claim(
        "rank",
        "Long skips keep the deep features from degenerating",
        "Skips break symmetries and keep units from dying: the features span more directions.",
        "Orhan and Pitkow 2018, arXiv 1701.09175, of short skips",
        "experiment=skip_ablation",
        (
            *(Contrast(f"deep_rank_{level}", "concat", "none") for level in (1, 2, 3, 4)),
            Contrast("dead_share", "none", "concat"),
        ),
        "`deep_rank_1` is the effective rank of the decoder's deep features at level 1, the finest, as a share of the "
        "most that it could be; `dead_share` is the share of channels with one value everywhere.",
    ),
)


LESIONS = ("lesion_loss", *(f"lesion_loss_{level}" for level in (1, 2, 3, 4)))
"""What the laboratory's table says of concat."""


def wanted(setting: str, claims: Sequence[Claim] = CLAIMS) -> set[str]:
    """Return the readings that some claim, or a table of the laboratory beside it, wants of a setting, but scores."""
    contrasts = (contrast for claim in claims for contrast in claim.contrasts)
    of_claims = {own.reading for own in contrasts if setting in (own.more, own.less)} - {*BY_UNIT}
    return of_claims | ({*LESIONS} if {*LESIONS} & of_claims else set())

"""The sections of params.yaml that `model` owns."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from model.presets import PRESET_SIZES, Cnn3dSizes, ConformerSizes, Sizes
from shards.errors import ConfigError
from shards.settings import DataPack, Section

SIZE_FAMILIES = ("sizes of cnn3d", "sizes of conformer")
"""Names of the two kinds of `model.sizes` in pydantic's errors; not keys of params.yaml."""

MIN_RESNET_PX = 16
"""From an input of 16 × 16 px the ResNet's third stage leaves 1 pixel. The gradient of a convolution of 1 pixel with a
stride and padding is wrong in bfloat16 on AVX-512 (oneDNN 3.12 leaves memory unwritten, and writes out of bounds)."""

Head = Literal["ctc", "decoder", "reverse_decoder", "syllables"]
"""The heads on the encoder: CTC and attention decoders over characters, CTC over syllables."""

HEAD_OF_MODULE: Mapping[str, Head] = {
    "ctc_head": "ctc",
    "syllable_head": "syllables",
    "decoder": "decoder",
    "reverse_decoder": "reverse_decoder",
}
"""The head of each network module; the module's name starts its tensors' names, and is used in train.freeze."""


UnitKind = Literal["characters", "bpe", "words", "pinyin"]


class TextParams(Section):
    """How a transcript becomes a label (model/text.py), and a label becomes the units that the model writes."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset(
        ("apostrophes", "arabic", "cyrillic", "phrase_spaces", "units", "bpe_size", "latin", "hangul")
    )
    UNIT_KEYS: ClassVar[frozenset[str]] = frozenset(("units", "bpe_size", "latin", "hangul"))
    """Keys that change no label, only its units (model/units.py)."""

    case_fold: bool = Field(True, description="A and a are one character")
    drop_punctuation: bool = Field(True, description="remove punctuation and symbols from labels")
    apostrophes: Literal["drop", "keep"] = Field(
        "drop", description="between letters: drop writes don't as dont; others are punctuation"
    )
    digits: Literal["keep", "ascii", "chinese"] = Field(
        "keep",
        description="ascii: digits of all scripts become 0-9; chinese: 2024 is 二零二四, as it may be spoken",
    )
    simplify: bool = Field(False, description="traditional characters become simplified ones")
    drop_annotations: bool = Field(
        False, description="remove [noise], <unk>, (笑) from labels (model/annotations.py)"
    )
    arabic: Literal["keep", "unmarked", "plain"] = Field(
        "keep", description="unmarked: without tashkeel and tatweel; plain: also أ إ آ ٱ become ا"
    )
    cyrillic: Literal["keep", "plain"] = Field("keep", description="plain: ё becomes е")
    phrase_spaces: Literal["keep", "drop"] = Field(
        "keep", description="spaces next to Thai, Lao, Khmer and Burmese letters, which separate no words"
    )
    units: UnitKind = Field("characters", description="what the model writes; CER and WER are of the text")
    bpe_size: int = Field(
        1000, ge=1, le=100_000, description="units of bpe, learnt from the training labels; characters count"
    )
    latin: Literal["keep", "spell"] = Field(
        "keep",
        description="Latin words next to Han characters as units: spell writes them letter by letter, in pinyin by the "
        "letters' names",
    )
    hangul: Literal["syllables", "letters"] = Field(
        "syllables", description="letters: a Hangul syllable is two or three units, its letters (jamo)"
    )

    def refuse_other_heads(self, heads: Sequence[Head]) -> None:
        """Raises ConfigError if a network with these heads cannot write these units.

        Only the syllable head writes pinyin. The decoder pinyin turns it into text, for which it needs characters.
        """
        if self.units == "pinyin" and tuple(heads) != ("syllables",):
            raise ConfigError("text.units: pinyin learns syllables alone; set train.syllable_weight to 1")
        if self.units in ("bpe", "words") and "syllables" in heads:
            raise ConfigError(
                f"text.units: {self.units} has no syllable head; set train.syllable_weight to 0, or text.units to "
                "characters"
            )


class _SizesOfPreset(dict[str, Any]):
    """A preset's sizes, updated with the given ones; not validated yet."""

    def __init__(self, preset: Sizes, given: Mapping[str, Any]) -> None:
        super().__init__({**preset.model_dump(), **given})
        self.preset = preset


class ModelParams(Section):
    """The architecture and sizes of the network; a checkpoint with other values is refused."""

    preset: Literal[
        "cnn3d_bilstm_attention", "conformer_tiny", "conformer_small", "conformer_base", "conformer_large"
    ] = Field("cnn3d_bilstm_attention", description="architecture and its sizes (model/presets.py)")
    sizes: Annotated[
        Annotated[Cnn3dSizes, Tag(SIZE_FAMILIES[0])] | Annotated[ConformerSizes, Tag(SIZE_FAMILIES[1])],
        Discriminator(lambda sizes: _family(sizes)),
    ] = Field(PRESET_SIZES["cnn3d_bilstm_attention"], description="sizes that differ from the preset's")
    window_px: int = Field(
        96,
        ge=16,
        le=512,
        description="side of the central window of the crop that the network sees, at most crop.size_px, px",
    )
    frame_height: int = Field(
        96, ge=16, le=512, description="input height to which the window is resized on the device, px"
    )
    frame_width: int = Field(
        96, ge=16, le=512, description="input width to which the window is resized on the device, px"
    )
    subtract_mean: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the clip's mean frame subtracted from each frame: 1 leaves only motion",
    )
    standardise: Literal["given", "clip", "shards"] = Field(
        "given",
        description="normalise gray levels by input_mean and input_std, by each clip's, or by the training shards'",
    )
    input_mean: float = Field(0.421, ge=0, le=1, description="of gray levels 0..1; public lip readers' crops")
    input_std: float = Field(0.165, gt=0, le=1, description="of gray levels 0..1; public lip readers' crops")
    temporal_stride: Literal[1, 2] = Field(1, description="input frames for one encoder step")
    dropout: float = Field(0.3, ge=0, lt=1, description="between layers")

    @model_validator(mode="after")
    def _leaves_pixels(self) -> "ModelParams":
        if (
            isinstance(self.sizes, ConformerSizes)
            and max(self.frame_height, self.frame_width) <= MIN_RESNET_PX
        ):
            raise ValueError(
                f"frame_height and frame_width must not both be {MIN_RESNET_PX} with {self.preset}, since the ResNet's "
                f"last stage would see 1 pixel; set one of them to {MIN_RESNET_PX + 1} or more"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _sizes_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        preset = PRESET_SIZES.get(str(values.get("preset", "cnn3d_bilstm_attention")))
        given = values.get("sizes", {})
        if preset is None or not isinstance(given, Mapping):
            return values
        return {**values, "sizes": _SizesOfPreset(preset, given)}


def _family(sizes: Any) -> str:
    """Returns the tag of the class that validates these sizes."""
    preset = sizes.preset if isinstance(sizes, _SizesOfPreset) else sizes
    return SIZE_FAMILIES[0] if isinstance(preset, Cnn3dSizes) else SIZE_FAMILIES[1]


class AugmentParams(Section):
    """Augmentation of training clips on the device; not used for validation and scoring. 0 turns one off."""

    flip: bool = Field(True, description="mirror half of the clips")
    zoom_sigma: float = Field(0.0, ge=0, le=0.5, description="height and width, each by exp(N(0, sigma))")
    rotation_deg: float = Field(0.0, ge=0, le=45, description="largest rotation of the picture, degrees")
    shift_px: float = Field(0.0, ge=0, le=32, description="largest shift of the picture, whole crop px")
    speed_change: float = Field(0.0, ge=0, le=0.5, description="0.1: 0.9 to 1.1 of the original speed")
    gain_sigma: float = Field(0.0, ge=0, le=0.5, description="contrast and brightness")
    time_masks_per_s: float = Field(0.0, ge=0, le=5, description="masks that hold the clip's mean frame, 1/s")
    time_mask_s: float = Field(0.4, ge=0, le=2, description="longest mask, s")


DecoderName = Literal[
    "auto", "ctc", "ctc_beam", "attention", "attention_beam", "joint_beam", "syllables", "pinyin"
]


View = Literal["flip", "scale", "shift"]


class SelfTrainingParams(Section):
    """Pseudo labels: the model reads the clips of split unlabelled, and trains on the readings it is sure of."""

    start_epoch: int | None = Field(
        None, ge=0, description="first epoch that trains on pseudo labels; null: no self-training"
    )
    every_epochs: int = Field(5, ge=1, description="epochs after which the clips are labelled again")
    decoder: DecoderName = Field(
        "auto",
        description="writes the labels, with the other values of section decode and the language model of paths.lm",
    )
    keep: float = Field(
        0.3,
        gt=0,
        le=1,
        description="share of the clips, the surest of each length, kept by the first labelling",
    )
    keep_end: float = Field(0.8, gt=0, le=1, description="by the last labelling; linear between")
    min_confidence: float = Field(0.0, ge=0, le=1, description="less sure readings are never kept")
    views: int = Field(
        2, ge=1, le=16, description="readings of a clip: as it is, mirrored, then changed as by train.augment"
    )
    max_disagreement: float = Field(
        0.1, ge=0, description="a clip is kept only if the CER between its readings is at most this"
    )
    min_character_confidence: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="less sure characters of a kept label, and those that not all views confirm, stand for any "
        "character; 0: all characters are learnt",
    )
    weight: float = Field(1.0, gt=0, le=1, description="of a pseudo label in the loss; a label's is 1")
    weigh_by_confidence: bool = Field(False, description="multiply that weight by the confidence")

    @property
    def is_on(self) -> bool:
        return self.start_epoch is not None

    def round_of(self, epoch: int) -> int:
        """Returns the number of the labelling whose labels `epoch` trains on, from 0; -1 if it trains on none."""
        if self.start_epoch is None or epoch < self.start_epoch:
            return -1
        return (epoch - self.start_epoch) // self.every_epochs

    def kept_share(self, epoch: int, num_epochs: int) -> float:
        """Returns the share of the clips that a labelling at the start of `epoch` keeps."""
        last = self.round_of(num_epochs - 1)
        return self.keep + (self.keep_end - self.keep) * self.round_of(epoch) / max(last, 1)


class TrainParams(Section):
    """Settings of optimiser and training loop."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset(
        ("data", "where", "self_training", "audio_weight", "audio_tokens")
    )

    batch_size: int = Field(8, ge=1, description="clips in a batch, at most")
    accumulation_steps: int = Field(4, ge=1, description="batches for one optimiser step")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="peak, after the warm-up")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW; not used for biases and normalisations")
    num_epochs: int = Field(100, ge=1)
    warmup_epochs: float = Field(5, ge=0, description="linear rise of the learning rate, epochs")
    scheduler: Literal["cosine", "constant"] = Field("cosine", description="after the warm-up, by step")
    gradient_clip: float = Field(5.0, gt=0, description="largest norm of the gradient")
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="of the attention decoders' loss; no effect with ctc_weight 1"
    )
    ctc_weight: float = Field(0.3, ge=0, le=1, description="share of the CTC loss; 1: no attention decoder")
    reverse_weight: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the reverse decoder in the attention loss; 0: none",
    )
    syllable_weight: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of a CTC loss over toneless pinyin; 0: none, 1: only syllables are learnt and read",
    )
    audio_weight: float = Field(
        0.0,
        ge=0,
        le=100,
        description="weight of the loss of a head that predicts the sound, in training only (pack.audio); 0: off",
    )
    audio_tokens: int = Field(
        200, ge=2, le=10_000, description="sound tokens, by k-means; no effect with audio_weight 0"
    )
    teacher_forcing: float = Field(
        1.0,
        ge=0,
        le=1,
        description="of the baseline's LSTM decoder: share of true characters fed in the first epoch; no effect with "
        "ctc_weight 1",
    )
    teacher_forcing_end: float = Field(0.5, ge=0, le=1, description="in the last epoch; linear between")
    mixed_precision: bool = Field(True, description="bfloat16 (float16 where a GPU lacks it)")
    compile: bool = Field(
        False,
        description="fuse the network's kernels with torch.compile: minutes at the start, then faster on a GPU; clips "
        "are padded to few lengths",
    )
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="of the average of the weights, which is validated and saved; 0: none"
    )
    patience: int = Field(
        0, ge=0, description="validations without a better CER after which training ends; 0: never"
    )
    init_from: str = Field("", description="checkpoint whose weights training starts with; empty: none")
    freeze: tuple[
        Literal["frontend", "encoder", "ctc_head", "syllable_head", "decoder", "reverse_decoder"], ...
    ] = Field((), description="parts of the network that are not trained")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate of each layer as a share of the one above it"
    )
    seed: int = Field(0, ge=0, description="initial weights, dropout, teacher forcing")
    data: tuple[DataPack, ...] = Field((), description="packs to train on together; empty: the pack of paths")
    where: str = Field(
        "",
        description="DuckDB condition on the training clips over the columns of samples, crops, clips and audit; "
        "empty: all",
    )
    valid_every: int = Field(1, ge=1, description="epochs from one validation to the next")
    checkpoint_every: int = Field(10, ge=1, description="epochs from one checkpoint_epoch_N.pt to the next")
    augment: AugmentParams = AugmentParams()
    self_training: SelfTrainingParams = SelfTrainingParams()

    @property
    def heads(self) -> tuple[Head, ...]:
        """Returns the heads that the loss trains."""
        heads: list[Head] = []
        if self.syllable_weight < 1:
            heads += ["ctc"] if self.ctc_weight > 0 else []
            heads += ["decoder"] if self.ctc_weight < 1 else []
            heads += ["reverse_decoder"] if self.ctc_weight < 1 and self.reverse_weight > 0 else []
        return (*heads, "syllables") if self.syllable_weight > 0 else tuple(heads)

    @model_validator(mode="after")
    def _reverse_needs_forward(self) -> "TrainParams":
        if self.reverse_weight > 0 and "decoder" not in self.heads:
            raise ValueError(
                "reverse_weight needs the attention decoder: set ctc_weight and syllable_weight below 1"
            )
        return self

    @model_validator(mode="after")
    def _labels_in_time(self) -> "TrainParams":
        start = self.self_training.start_epoch
        if start is not None and start >= self.num_epochs:
            raise ValueError(
                f"self_training.start_epoch {start} must be below num_epochs {self.num_epochs}, since epochs are "
                "counted from 0; null switches self-training off"
            )
        if (
            start is not None
            and self.self_training.min_character_confidence
            and not ({"ctc", "syllables"} & set(self.heads))
        ):
            raise ValueError(
                "self_training.min_character_confidence needs a CTC head: set ctc_weight above 0, or it to 0"
            )
        return self


class DecodeParams(Section):
    """Settings of the decoders, which turn the network's output into text."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset(("views",))

    decoder: DecoderName = Field(
        "auto",
        description="greedy: ctc, attention, syllables (its text is pinyin), auto: the first of attention, ctc, "
        "syllables that was trained; beam search: ctc_beam, attention_beam, joint_beam (CTC and attention together), "
        "pinyin (characters from the syllable head and the language model)",
    )
    beam: int = Field(10, ge=1, le=500, description="hypotheses that a beam search keeps")
    num_candidates: int = Field(5, ge=1, le=100, description="hypotheses that are reported, best first")
    ctc_share: float = Field(
        0.3, ge=0, le=1, description="joint_beam: share of CTC in the score, the rest attention"
    )
    syllable_weight: float = Field(
        0.0,
        ge=0,
        le=2,
        description="beam searches: weight of the syllable head's log-probability, where there is one",
    )
    lm_weight: float = Field(
        0.0,
        ge=0,
        le=2,
        description="beam searches: weight of the language model's log-probability (paths.lm)",
    )
    length_bonus: float = Field(0.0, ge=-5, le=5, description="beam searches: added for each character, nats")
    max_chars_per_s: float = Field(
        12.0,
        gt=0,
        description="where an attention decoder stops, characters/s; no effect with train.ctc_weight 1",
    )
    views: tuple[View, ...] = Field(
        (),
        description="further views of each clip that are read too: flip (mirrored), scale (larger and smaller), shift "
        "(a frame earlier); no effect in training",
    )

    @field_validator("views")
    @classmethod
    def _views_once(cls, views: tuple[View, ...]) -> tuple[View, ...]:
        if len(set(views)) < len(views):
            raise ValueError(f"views names {max(views, key=views.count)} twice; name each view once")
        return views

    def for_validation(self) -> "DecodeParams":
        """Returns greedy settings for validation: a beam would slow epochs, and changing it would start a new run."""
        return DecodeParams(max_chars_per_s=self.max_chars_per_s)


class LmParams(Section):
    """The character language model for beam searches (model/decoding/ngram.py)."""

    order: int = Field(4, ge=1, le=6, description="characters of its longest n-grams")
    text_file: str = Field(
        "", description="text to learn from, one sentence per line, instead of the training split's labels"
    )

"""The losses compared with their definitions, and the targets: labels, reversed labels, syllables."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from model.decoding.reader import LipReader
from model.losses import (
    LossParams,
    ctc_steps_needed,
    joint_loss_B,
    label_steps_needed,
    refuse_unspellable,
)
from model.networks.network import LipNetwork, Outputs
from model.networks.network_input import Targets, targets_of
from model.pinyin import syllables_of
from model.settings import DecodeParams, ModelParams, TrainParams
from model.text import BLANK_ID, DOUBTFUL, END_ID, UNKNOWN_ID, Tokenizer
from model.vocabulary import Vocabulary
from shards.errors import ConfigError, TrainingError
from shards.samples import read_samples
from stages.train import train
from tests.support.networks import SMALL, SMALL_CONFORMER
from tests.support.packed import pack_clips, toy_clips
from tests.support.trainings import job_in, read_test_clips, with_sizes

LABELS = ["一二三四", "二二", "四是十"]
VOCABULARY = Vocabulary.of_labels(LABELS, with_syllables=True)
HEADS = ("ctc", "decoder", "reverse_decoder", "syllables")
CPU = torch.device("cpu")
MODELS = pytest.mark.parametrize("model", [SMALL, SMALL_CONFORMER], ids=["cnn3d", "conformer"])


def network_of(model: ModelParams) -> LipNetwork:
    torch.manual_seed(0)
    return LipNetwork(model, VOCABULARY, HEADS).eval()


def encoded_by(network: LipNetwork, num_clips: int = 3, num_steps: int = 20) -> torch.Tensor:
    return torch.randn(
        num_clips, num_steps, network.encoder.width, generator=torch.Generator().manual_seed(1)
    )


def synthetic_outputs(labels: list[str], num_steps_B: list[int], num_tokens: int | None = None) -> Outputs:
    """Returns random logits of every head."""
    generator = torch.Generator().manual_seed(2)
    V, W = num_tokens or VOCABULARY.characters.num_tokens, VOCABULARY.num_syllables
    B, S, L = len(labels), max(num_steps_B), max(map(len, labels)) + 1

    def logits(*shape: int) -> torch.Tensor:
        return 2 * torch.randn(*shape, generator=generator)

    return Outputs(
        torch.tensor(num_steps_B), logits(B, S, V), logits(B, L, V), logits(B, L, V), logits(B, S, W)
    )


# -- CTC -----------------------------------------------------------------------------------------------------


def ctc_by_all_paths(logits_SV: torch.Tensor, target: list[int]) -> float:
    """Returns -log of the summed probability of every path that collapses to `target`: Graves et al. 2006, eq. 3."""
    log_probs = logits_SV.double().log_softmax(1)
    total = 0.0
    for path in itertools.product(range(logits_SV.shape[1]), repeat=len(logits_SV)):
        if [token for token, _ in itertools.groupby(path) if token != BLANK_ID] == target:
            total += math.exp(sum(float(log_probs[step, token]) for step, token in enumerate(path)))
    return -math.log(total)


@pytest.mark.parametrize("target", [[4], [4, 4], [4, 5], [4, 5, 4]])
@pytest.mark.parametrize("num_steps", [3, 5])
def test_ctc_agrees_with_the_sum_over_all_paths(target: list[int], num_steps: int) -> None:
    logits_1SV = torch.randn(1, num_steps, 6, generator=torch.Generator().manual_seed(num_steps))
    outputs = Outputs(torch.tensor([num_steps]), logits_1SV, None, None, None)
    characters = torch.tensor([target])
    targets = Targets(characters, torch.tensor([len(target)]), characters, None, None)
    loss = joint_loss_B(outputs, targets, LossParams(ctc_weight=1, label_smoothing=0))
    assert float(loss) == pytest.approx(ctc_by_all_paths(logits_1SV[0], target), rel=1e-5)


@pytest.mark.parametrize("target", [[3], [4, 3], [3, 3], [3, 4, 3], [4, 3, 3]])
def test_a_doubtful_unit_is_any_unit(target: list[int]) -> None:
    """Against the sum over all paths of all texts with a unit there; neighbours that differ need no blank."""
    num_steps, units = 4, [4, 5]
    logits_1SV = torch.randn(1, num_steps, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def loss_of(logits_1SV: torch.Tensor) -> torch.Tensor:
        outputs = Outputs(torch.tensor([num_steps]), logits_1SV, None, None, None)
        characters = torch.tensor([target])
        targets = Targets(characters, torch.tensor([len(target)]), characters, None, None, has_doubtful=True)
        return joint_loss_B(outputs, targets, LossParams(ctc_weight=1, label_smoothing=0))

    # paths over the tokens and the two columns "any unit": their sum over the units, step by step
    probs_SV = logits_1SV[0].softmax(1)
    any_S1 = probs_SV[:, units].sum(1, keepdim=True)
    extended_SV = torch.cat([probs_SV, any_S1, any_S1], dim=1)
    wanted = [6 + place % 2 if token == 3 else token for place, token in enumerate(target)]
    total = sum(
        math.prod(float(extended_SV[step, token]) for step, token in enumerate(path))
        for path in itertools.product(sorted({BLANK_ID, *wanted}), repeat=num_steps)
        if [token for token, _ in itertools.groupby(path) if token != BLANK_ID] == wanted
    )
    assert float(loss_of(logits_1SV)) == pytest.approx(-math.log(total), rel=1e-5)
    logits_1SV = logits_1SV.float().requires_grad_()
    (gradient_1SV,) = torch.autograd.grad(loss_of(logits_1SV).sum(), logits_1SV)
    for step, token in itertools.product(range(num_steps), range(6)):
        moved = torch.zeros_like(logits_1SV)
        moved[0, step, token] = 1e-2
        slope = (loss_of(logits_1SV + moved) - loss_of(logits_1SV - moved)).item() / 2e-2
        assert float(gradient_1SV[0, step, token]) == pytest.approx(slope, abs=2e-3)


def test_a_decoder_learns_nothing_from_a_doubtful_character() -> None:
    outputs = synthetic_outputs(LABELS, [6, 6, 6])
    assert outputs.decoder_logits_BLV is not None
    doubtful = targets_of(["一" + DOUBTFUL, "二", "四"], VOCABULARY, CPU)
    known = targets_of(["一" + "二", "二", "四"], VOCABULARY, CPU)
    params = LossParams(ctc_weight=0, label_smoothing=0)
    logits_BLV = outputs.decoder_logits_BLV[:, :3]
    cut = outputs._replace(decoder_logits_BLV=logits_BLV)
    difference_B = joint_loss_B(cut, known, params) - joint_loss_B(cut, doubtful, params)
    (two,) = VOCABULARY.characters.encode("二")
    assert float(difference_B[0]) == pytest.approx(-float(logits_BLV[0, 1].log_softmax(0)[two]), rel=1e-5)
    assert difference_B[1:].tolist() == [0.0, 0.0]


def test_the_syllable_loss_is_ctc_over_the_pinyin_of_labels() -> None:
    outputs, targets = synthetic_outputs(LABELS, [4, 4, 4]), targets_of(LABELS, VOCABULARY, CPU)
    loss_B = joint_loss_B(outputs, targets, LossParams(0.3, 0.1, syllable_weight=1))
    for clip, label in ((1, "er er"), (2, "si shi shi")):
        ids = VOCABULARY.syllables.encode(label.split())
        # a path has only the clip's tokens and the blank: other tokens are left out
        used = [BLANK_ID, *dict.fromkeys(ids)]
        log_probs_SV = outputs.syllable_logits_BSW[clip].double().log_softmax(1)[:, used]
        paths = [
            path
            for path in itertools.product(range(len(used)), repeat=4)
            if [token for token, _ in itertools.groupby(path) if token] == [used.index(i) for i in ids]
        ]
        total = sum(math.exp(sum(float(log_probs_SV[s, t]) for s, t in enumerate(path))) for path in paths)
        assert float(loss_B[clip]) == pytest.approx(-math.log(total), rel=1e-5)


def test_ctc_loss_is_finite_from_the_steps_that_ctc_needs() -> None:
    for target in ([4], [4, 4], [4, 5, 4], [4, 4, 4, 5]):
        needed = ctc_steps_needed(target)
        for steps, finite in ((needed, True), (needed - 1, False)):
            if steps == 0:
                continue
            loss = torch.nn.functional.ctc_loss(
                torch.zeros(steps, 1, 8).log_softmax(2),
                torch.tensor([target]),
                torch.tensor([steps]),
                torch.tensor([len(target)]),
            )
            assert bool(torch.isfinite(loss)) is finite


def table_of(clips: list[tuple[str, int]]) -> pa.Table:
    """Returns a table of (label, number of frames)."""
    rows = [{"clip_id": f"{label}_{frames}", "label": label, "num_frames": frames} for label, frames in clips]
    return pa.Table.from_pylist(rows)


def test_clips_whose_syllables_ctc_cannot_spell_are_refused_too() -> None:
    """四是十 has three different characters, but its syllables si shi shi need a fourth step."""
    samples = table_of([("四是十", 4), ("四是十", 3), ("二二", 3), ("二二", 2), ("一二三四", 4)])
    characters_alone = Vocabulary(VOCABULARY.characters)
    with pytest.raises(TrainingError, match=r"^1 clips .*: 二二_2;"):
        refuse_unspellable(samples, characters_alone, temporal_stride=1)
    with pytest.raises(TrainingError, match=r"^2 clips .*: 四是十_3, 二二_2;"):
        refuse_unspellable(samples, VOCABULARY, temporal_stride=1)
    refuse_unspellable(table_of([("四是十", 7), ("二二", 5)]), VOCABULARY, temporal_stride=2)
    with pytest.raises(TrainingError, match=r"^2 clips .* model\.temporal_stride"):
        refuse_unspellable(table_of([("四是十", 6), ("二二", 4)]), VOCABULARY, temporal_stride=2)
    assert label_steps_needed("四是十", VOCABULARY) == 4


# -- the attention decoders ----------------------------------------------------------------------------------


def loss_of(
    network: LipNetwork, encoded: torch.Tensor, steps: torch.Tensor, labels: list[str], params: LossParams
) -> torch.Tensor:
    targets = targets_of(labels, VOCABULARY, CPU)
    with torch.no_grad():
        return joint_loss_B(network.outputs(encoded, steps, targets), targets, params)


def test_attention_loss_agrees_with_the_decoder_step_by_step() -> None:
    network = network_of(SMALL)
    encoded = encoded_by(network, 1, 9)
    loss = loss_of(network, encoded, torch.tensor([9]), ["一三四"], LossParams(0.0, 0.0))
    tokens, state, context = network.decoder.start(encoded)
    expected = 0.0
    for wanted in [*VOCABULARY.characters.encode("一三四"), END_ID]:
        logits, state, context = network.decoder.step(
            tokens, state, context, encoded, torch.zeros(1, 9, dtype=torch.bool)
        )
        expected -= float(torch.log_softmax(logits[0].detach(), 0)[wanted])
        tokens = torch.tensor([wanted])
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_label_smoothing_agrees_with_its_closed_form(smoothing: float) -> None:
    """Cross-entropy with (1 - e) of the mass on the character and e spread over all tokens (Szegedy et al. 2016)."""
    outputs, targets = synthetic_outputs(LABELS, [5, 5, 5]), targets_of(LABELS, VOCABULARY, CPU)
    loss_B = joint_loss_B(outputs, targets, LossParams(0, smoothing))
    for clip, label in enumerate(LABELS):
        wanted = [*VOCABULARY.characters.encode(label), END_ID]
        log_probs = outputs.decoder_logits_BLV[clip, : len(wanted)].double().log_softmax(1)
        true = torch.full_like(log_probs, smoothing / log_probs.shape[1])
        true[range(len(wanted)), wanted] += 1 - smoothing
        assert float(loss_B[clip]) == pytest.approx(-float((true * log_probs).sum()), rel=1e-5)


@MODELS
def test_the_reverse_decoder_is_the_forward_one_of_the_reversed_label(model: ModelParams) -> None:
    """With the same weights, it reads the reversed label forwards."""
    network = network_of(model)
    network.reverse_decoder = network.decoder
    encoded, steps = encoded_by(network), torch.tensor([20, 12, 9])
    only_reverse = LossParams(0, 0.1, reverse_weight=1)
    backwards = loss_of(network, encoded, steps, LABELS, only_reverse)
    forwards = loss_of(network, encoded, steps, [label[::-1] for label in LABELS], LossParams(0, 0.1))
    torch.testing.assert_close(backwards, forwards)
    as_written = loss_of(network, encoded, steps, LABELS, LossParams(0, 0.1))
    assert not torch.isclose(backwards[0], as_written[0], rtol=1e-3)
    torch.testing.assert_close(backwards[1], as_written[1])  # 二二 is the same from both ends


# -- together ------------------------------------------------------------------------------------------------


def test_the_losses_are_combined_by_their_shares() -> None:
    outputs, targets = synthetic_outputs(LABELS, [9, 7, 8]), targets_of(LABELS, VOCABULARY, CPU)

    def loss(**weights: float) -> torch.Tensor:
        values = {"ctc_weight": 0.0, "label_smoothing": 0.1} | weights
        return joint_loss_B(outputs, targets, LossParams(**values))

    ctc, forward = loss(ctc_weight=1.0), loss()
    reverse, syllables = loss(reverse_weight=1.0), loss(syllable_weight=1.0)
    for s, c, r in ((0.0, 0.3, 0.0), (0.2, 0.3, 0.4), (0.9, 0.1, 0.5), (0.25, 1.0, 0.0)):
        expected = s * syllables + (1 - s) * (c * ctc + (1 - c) * ((1 - r) * forward + r * reverse))
        torch.testing.assert_close(loss(syllable_weight=s, ctc_weight=c, reverse_weight=r), expected)


@pytest.mark.parametrize(
    ("weights", "heads"),
    [
        ({}, ("ctc", "decoder")),
        ({"ctc_weight": 0}, ("decoder",)),
        ({"ctc_weight": 1}, ("ctc",)),
        ({"reverse_weight": 0.3}, ("ctc", "decoder", "reverse_decoder")),
        ({"syllable_weight": 0.3, "ctc_weight": 1}, ("ctc", "syllables")),
        ({"syllable_weight": 1}, ("syllables",)),
    ],
)
def test_the_network_has_exactly_the_heads_that_the_loss_needs(
    weights: dict[str, float], heads: tuple[str, ...]
) -> None:
    """Another head would never learn; without one of them the loss would fail."""
    params = TrainParams(**weights)
    assert params.heads == heads
    network = LipNetwork(SMALL, VOCABULARY, heads)
    video, targets = torch.randn(3, 1, 9, 32, 32), targets_of(LABELS, VOCABULARY, CPU)
    outputs = network(video, torch.tensor([9, 9, 9]), targets)
    joint_loss_B(outputs, targets, LossParams.of(params)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@MODELS
def test_the_loss_of_a_clip_does_not_depend_on_its_batch(model: ModelParams) -> None:
    network = network_of(model)
    encoded, steps = encoded_by(network), [20, 12, 9]
    params = LossParams(ctc_weight=0.4, label_smoothing=0.1, reverse_weight=0.3, syllable_weight=0.2)
    together = loss_of(network, encoded, torch.tensor(steps), LABELS, params)
    for clip, (num_steps, label) in enumerate(zip(steps, LABELS, strict=True)):
        alone = loss_of(
            network, encoded[clip : clip + 1, :num_steps], torch.tensor([num_steps]), [label], params
        )
        torch.testing.assert_close(together[clip : clip + 1], alone, rtol=1e-5, atol=1e-5)


def test_labels_are_padded_after_their_ends() -> None:
    targets = targets_of(["一二三", "二"], VOCABULARY, CPU)
    one, two, three = VOCABULARY.characters.encode("一二三")
    assert targets.characters_BL.tolist() == [[one, two, three], [two, END_ID, END_ID]]
    assert targets.reversed_BL.tolist() == [[three, two, one], [two, END_ID, END_ID]]
    assert targets.num_characters_B.tolist() == targets.num_syllables_B.tolist() == [3, 1]
    without = targets_of(["一二三"], Vocabulary(VOCABULARY.characters), CPU)
    assert without.syllables_BK is None and without.num_syllables_B is None


# -- syllables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "syllables"),
    [
        ("银行行走", "yin hang xing zou"),  # one character, two readings, by the phrase
        ("长江长大了", "chang jiang zhang da le"),
        ("重庆很重要", "chong qing hen zhong yao"),
        ("音乐快乐", "yin yue kuai le"),
        ("女绿略", "nv lv lve"),  # ü
        ("鱼去", "yu qu"),  # pinyin writes this ü as u
        ("a股涨了35点", "a gu zhang le 3 5 dian"),
        ("hello world", "h e l l o w o r l d"),
        ("", ""),
    ],
)
def test_labels_as_toneless_pinyin(label: str, syllables: str) -> None:
    assert list(syllables_of(label)) == syllables.split()


def test_homophones_share_a_syllable_without_tone() -> None:
    assert len({syllables_of(label) for label in ("妈", "马", "骂", "麻")}) == 1
    labels = ["妈骂马", "a 麻"]
    vocabulary = Vocabulary.of_labels(labels, with_syllables=True)
    assert vocabulary.syllables == Tokenizer(("a", "ma"), joiner=" ")
    assert vocabulary.characters.units == tuple(sorted(" a妈骂马麻"))
    assert vocabulary.num_syllables == 6
    assert vocabulary.syllables.decode(vocabulary.encode_syllables("a妈麻")) == "a ma ma"
    assert vocabulary.encode_syllables("狗") == [UNKNOWN_ID]
    assert vocabulary.ctc_targets("妈a") == [
        vocabulary.characters.encode("妈a"),
        vocabulary.encode_syllables("妈a"),
    ]


def test_the_tables_do_not_depend_on_the_order_of_the_labels() -> None:
    assert Vocabulary.of_labels(LABELS[::-1] * 2, with_syllables=True) == VOCABULARY
    assert Vocabulary.of_labels(LABELS, with_syllables=False).num_syllables == 0


def test_a_model_that_learns_only_syllables_writes_spaced_pinyin(tmp_path: Path) -> None:
    packed = pack_clips(tmp_path, toy_clips(40, 6, frames_a_char=4))
    job = job_in(
        tmp_path,
        packed,
        num_epochs=20,
        accumulation_steps=1,
        learning_rate=5e-3,
        valid_every=10,
        syllable_weight=1.0,
    )
    summary = train(replace(job, model=with_sizes(hidden_dim=32), decode=DecodeParams()))
    assert summary.best_val_cer is not None and summary.best_val_cer <= 0.1
    reader = LipReader.from_checkpoint(tmp_path / "checkpoints/best_model.pt", CPU)
    assert reader.network.decoder is None and reader.network.ctc_head is None
    samples = read_samples(packed.samples, "test")
    scored = read_test_clips(reader, packed)
    pinyin = {"一": "yi", "二": "er", "三": "san", "四": "si"}
    references = [" ".join(pinyin[c] for c in label) for label in samples["label"].to_pylist()]
    assert [clip.reference for clip in scored] == references
    assert all(set(clip.hypothesis.split(" ")) <= set(pinyin.values()) for clip in scored)
    assert sum(clip.hypothesis == clip.reference for clip in scored) >= 5
    with pytest.raises(ConfigError, match="has not learnt ctc; set it to syllables"):
        reader.reference("一", DecodeParams(decoder="ctc"))

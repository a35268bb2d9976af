"""Training that starts from other weights: which weights are copied, which learn, and how fast."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.checkpoints import CHECKPOINT_VERSION, KEYS, load_checkpoint, save_checkpoint
from model.decoding.reader import LipReader
from model.networks.network import LipNetwork
from model.networks.network_input import targets_of
from model.pretrained.table import NEVER_LOGIT
from model.pretrained.weights import import_weights
from model.settings import DecodeParams, ModelParams, TextParams, TrainParams
from model.text import END_ID, NORMALISER_VERSION, START_ID, Tokenizer
from model.training.fine_tuning import parameter_groups, start_from, to_training_mode
from model.training.run_choice import run_of
from model.training.training_data import TrainingData, TrainingJob
from model.vocabulary import Vocabulary
from shards.errors import CheckpointError, TrainingError
from shards.packs import Packs
from shards.settings import LoaderParams, MachineParams
from stages.train import train
from tests.support.packed import pack_clips, toy_clips
from tests.support.public_weights import saved, synthetic_weights, table_file

CONFORMER: dict[str, Any] = {
    "preset": "conformer_tiny",
    "sizes": {
        "channels": (4, 6, 8, 10),
        "pool_grid": 1,
        "hidden_dim": 16,
        "num_heads": 2,
        "feed_forward_dim": 24,
        "num_encoder_layers": 3,
        "conv_kernel": 7,
    },
    "frame_height": 32,
    "frame_width": 32,
    "dropout": 0.2,
}
BASELINE: dict[str, Any] = {
    "sizes": {"channels": (4, 6, 8, 10), "hidden_dim": 8, "num_lstm_layers": 2, "num_heads": 2},
    "frame_height": 32,
    "frame_width": 32,
}
HEADS = ("ctc", "decoder", "reverse_decoder", "syllables")
CLIPS = {"fps": 25.0, "crop_px": 96}
VOCABULARY = Vocabulary(Tokenizer(tuple("一丁七下")), Tokenizer(("ding", "qi", "xia", "yi"), " "))


def network_of(
    values: Mapping[str, Any] = CONFORMER, vocabulary: Vocabulary = VOCABULARY, seed: int = 0, **sizes: object
) -> tuple[LipNetwork, ModelParams]:
    torch.manual_seed(seed)
    model = ModelParams.model_validate({**values, "sizes": {**values["sizes"], **sizes}})
    return LipNetwork(model, vocabulary, HEADS), model


# -- groups ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [CONFORMER, BASELINE], ids=["conformer", "baseline"])
def test_every_parameter_is_in_one_group(values: Mapping[str, Any]) -> None:
    network, _ = network_of(values)
    groups = parameter_groups(network, TrainParams(layer_decay=0.5, weight_decay=0.02))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, network.parameters()))
    of_weights = {id(p) for g in groups if g["weight_decay"] == 0.02 for p in g["params"]}
    assert {g["weight_decay"] for g in groups} == {0.0, 0.02}
    for name, module in network.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            is_norm = isinstance(module, nn.LayerNorm | nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
            assert (id(parameter) in of_weights) == (not is_norm and "bias" not in kind), f"{name}.{kind}"


RATES = {
    "ctc_head.bias": 1,
    "syllable_head.weight": 1,
    "decoder.embedding.weight": 1,
    "decoder.blocks.0.norm_feed_forward.weight": 1,
    "reverse_decoder.output.weight": 1,
    "encoder.norm.weight": 0.8,
    "encoder.blocks.2.attention.content_bias": 0.8,
    "encoder.blocks.1.convolution.norm.bias": 0.64,
    "encoder.blocks.0.first_feed_forward.expand.weight": 0.512,
    "encoder.project.weight": 0.4096,
    "frontend.stem.convolution.weight": 0.32768,
    "frontend.stages.3.0.norm2.weight": 0.32768,
}
"""For three blocks and a decay of 0.8."""


def test_each_layer_learns_at_a_share_of_the_rate_above_it() -> None:
    network, _ = network_of()
    groups = parameter_groups(network, TrainParams(layer_decay=0.8))
    share_of = {id(parameter): group["rate_share"] for group in groups for parameter in group["params"]}
    parameters = dict(network.named_parameters())
    for name, share in RATES.items():
        assert share_of[id(parameters[name])] == pytest.approx(share, rel=1e-12), name
    assert len({group["rate_share"] for group in groups}) == 6
    # the optimiser uses the rates: SGD without momentum moves each weight by rate times gradient
    optimizer = torch.optim.SGD(groups, lr=1.0)
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 0.1 * group["rate_share"], 0.0
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, share in RATES.items():
        moved = before[name] - parameters[name].detach()
        torch.testing.assert_close(moved, torch.full_like(moved, 0.1 * share), rtol=0, atol=1e-6)


def test_the_baseline_has_two_layers_below_its_heads() -> None:
    network, _ = network_of(BASELINE)
    groups = parameter_groups(network, TrainParams(layer_decay=0.5))
    share_of = {id(parameter): group["rate_share"] for group in groups for parameter in group["params"]}
    shares = {
        part: {share_of[id(p)] for p in module.parameters()} for part, module in network.named_children()
    }
    assert shares.pop("frontend") == {0.25} and shares.pop("encoder") == {0.5}
    assert list(shares.values()) == [{1.0}] * 4


def test_without_layer_decay_there_are_two_groups() -> None:
    groups = parameter_groups(network_of()[0], TrainParams())
    assert [(group["rate_share"], group["weight_decay"]) for group in groups] == [(1.0, 0.01), (1.0, 0.0)]


# -- frozen parts --------------------------------------------------------------------------------------------


def some_steps(network: LipNetwork, train: TrainParams) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(network, train), lr=1e-2)
    targets = targets_of(["一丁", "下"], VOCABULARY, torch.device("cpu"))
    for _ in range(3):
        to_training_mode(network, train)
        outputs = network(torch.randn(2, 1, 9, 32, 32), torch.tensor([9, 6]), targets)
        logits = [value for value in outputs[1:] if value is not None]
        assert len(logits) == 4
        torch.stack([value.square().mean() for value in logits]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        network.eval()  # like a validation


@pytest.mark.parametrize(
    "freeze",
    [("frontend",), ("frontend", "encoder"), ("decoder",), ("encoder", "ctc_head"), ("syllable_head",)],
)
def test_frozen_parts_stay_bit_identical(freeze: tuple[Any, ...]) -> None:
    network, _ = network_of()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    train = TrainParams(freeze=freeze, layer_decay=0.9)
    grouped = {id(p) for group in parameter_groups(network, train) for p in group["params"]}
    assert len(grouped) == sum(p.requires_grad for p in network.parameters())
    some_steps(network, train)
    for name, tensor in network.state_dict().items():
        if name.partition(".")[0] in freeze:
            assert torch.equal(tensor, before[name]), name
    moved = {n.partition(".")[0] for n, t in network.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {name for name, _ in network.named_children()} - set(freeze)


def test_freezing_a_missing_part_or_everything_is_rejected() -> None:
    network = LipNetwork(network_of()[1], VOCABULARY, ("ctc",))
    with pytest.raises(TrainingError, match=r"no decoder .*it has frontend, encoder, ctc_head"):
        parameter_groups(network, TrainParams(freeze=("decoder",)))
    with pytest.raises(TrainingError, match=r"train.freeze .*freezes the whole network"):
        parameter_groups(network, TrainParams(freeze=("frontend", "encoder", "ctc_head")))


# -- which weights are copied----------------------------------------------------------------------------------


def checkpoint_of(folder: Path, network: LipNetwork, model: ModelParams) -> Path:
    """Writes a checkpoint with these weights."""
    assert VOCABULARY.syllables
    of_training = {f"{name}_params": {} for name in ("text", "train", "decode")}
    state = (
        dict.fromkeys(KEYS) | {"epoch": 0, "averaged_steps": 0, "threads": 0, "progress": {}} | of_training
    )
    state |= {
        "version": CHECKPOINT_VERSION,
        "normaliser_version": NORMALISER_VERSION,
        "model_state_dict": network.state_dict(),
        "model_params": model.model_dump(mode="json"),
        "tokenizer": VOCABULARY.characters.to_json(),
        "syllables": VOCABULARY.syllables.to_json(),
        "heads": list(HEADS),
        **CLIPS,
    }
    save_checkpoint(folder / "other.pt", state)
    return folder / "other.pt"


@pytest.mark.parametrize("values", [CONFORMER, BASELINE], ids=["conformer", "baseline"])
def test_the_same_network_is_copied_completely(tmp_path: Path, values: Mapping[str, Any]) -> None:
    theirs, model = network_of(values, seed=1)
    ours, _ = network_of(values, seed=2)
    source, random = checkpoint_of(tmp_path, theirs, model), torch.get_rng_state()
    lines = start_from(ours, VOCABULARY, model, source, seed=0, clips=CLIPS)
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
    assert len(lines) == 6
    assert all("tensors copied" in line for line in lines)
    assert sum("4 kept, 0 new, 0 dropped" in line for line in lines) == 4


def test_rows_are_copied_by_character(tmp_path: Path) -> None:
    theirs, model = network_of(seed=1)
    other = Vocabulary(Tokenizer(tuple("丁七三四")), Tokenizer(("qi", "san", "si", "ding"), " "))
    ours, _ = network_of(vocabulary=other, seed=2)
    source = checkpoint_of(tmp_path, theirs, model)
    lines = start_from(ours, other, model, source, seed=5, clips=CLIPS)
    assert any("decoder: " in line and "2 kept, 2 new (三四), 2 dropped" in line for line in lines)
    before, after = theirs.state_dict(), ours.state_dict()
    for table in (
        "decoder.embedding.weight",
        "decoder.output.weight",
        "decoder.output.bias",
        "reverse_decoder.embedding.weight",
        "reverse_decoder.output.bias",
        "ctc_head.weight",
        "ctc_head.bias",
    ):
        there, here = before[table], after[table]
        assert torch.equal(here[:4], there[:4]), table  # blank, start, end, unknown
        assert torch.equal(here[4:6], there[5:7]), table  # 丁 and 七
        known = there[5:7]
        spread = 0.1 * known.std(dim=0, correction=0)
        away = (here[6:] - known.mean(dim=0)).abs()
        assert bool((away <= 5 * spread + 1e-7).all()) and not torch.equal(here[6], here[7]), table
    assert torch.equal(after["syllable_head.weight"][[4, 7]], before["syllable_head.weight"][[5, 4]])
    again, _ = network_of(vocabulary=other, seed=3)
    start_from(again, other, model, source, seed=5, clips=CLIPS)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in after.items())


def test_parts_of_other_sizes_are_logged_or_rejected(tmp_path: Path) -> None:
    theirs, their_model = network_of(seed=1)
    source = checkpoint_of(tmp_path, theirs, their_model)
    fresh, model = network_of(seed=2, num_decoder_layers=3)
    decoder = {name: tensor.clone() for name, tensor in fresh.decoder.state_dict().items()}  # type: ignore[union-attr]
    lines = start_from(fresh, VOCABULARY, model, source, seed=0, clips=CLIPS)
    assert any(
        "decoder: fresh weights, the sizes differ (31 tensors there, 83 here)" in line for line in lines
    )
    assert all(torch.equal(t, decoder[n]) for n, t in fresh.decoder.state_dict().items())  # type: ignore[union-attr]
    assert torch.equal(fresh.encoder.state_dict()["norm.weight"], theirs.encoder.state_dict()["norm.weight"])
    for sizes, part, difference in (
        ({"hidden_dim": 32}, "encoder", "model.sizes.hidden_dim: 16 there, 32 here"),
        ({"num_heads": 4}, "encoder", "content_bias is 2 × 8 there, 4 × 4 here"),
        ({"num_encoder_layers": 2}, "encoder", "model.sizes.num_encoder_layers: 3 there, 2 here"),
        ({"channels": (4, 6, 8, 12)}, "frontend", r"model.sizes.channels: \[4, 6, 8, 10\] there"),
    ):
        wrong, model = network_of(**sizes)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match=f"(?s)the {part} of .* has other sizes: .*{difference}"):
            start_from(wrong, VOCABULARY, model, source, seed=0, clips=CLIPS)
    # no tensor of an LSTM decoder shows the number of its attention heads
    theirs, their_model = network_of(BASELINE)
    ours, model = network_of(BASELINE, num_heads=4)
    lines = start_from(
        ours, VOCABULARY, model, checkpoint_of(tmp_path, theirs, their_model), seed=0, clips=CLIPS
    )
    assert any("decoder: fresh weights, the sizes differ (2 heads there, 4 here)" in line for line in lines)


def test_another_input_and_unused_parts_are_logged(tmp_path: Path) -> None:
    theirs, model = network_of(seed=1)
    source = checkpoint_of(tmp_path, theirs, model)
    other = ModelParams.model_validate({**CONFORMER, "window_px": 64, "temporal_stride": 2})
    reader = LipNetwork(other, Vocabulary(VOCABULARY.characters), ("ctc",))
    log = "\n".join(start_from(reader, Vocabulary(VOCABULARY.characters), other, source, seed=0, clips=CLIPS))
    assert "trained with another input: model.temporal_stride: 1 there, 2 here" in log
    assert "model.window_px: 96 there, 64 here" in log
    assert "trained on other clips" not in log
    assert "not copied, this network does not have them: decoder, reverse_decoder, syllable_head" in log
    clips = {"fps": 30.0, "crop_px": 64}
    log = "\n".join(start_from(reader, Vocabulary(VOCABULARY.characters), other, source, seed=0, clips=clips))
    assert "trained on other clips: fps (crop.target_fps): 25.0 there, 30.0 here" in log
    assert "trained on other clips: crop_px (crop.size_px): 96 there, 64 here" in log
    with pytest.raises(CheckpointError, match=r"nowhere.pt is missing"):
        start_from(
            reader, Vocabulary(VOCABULARY.characters), other, tmp_path / "nowhere.pt", seed=0, clips=CLIPS
        )


def test_a_training_of_other_characters_starts_from_an_import(tmp_path: Path) -> None:
    file = saved(tmp_path, synthetic_weights("auto_avsr"))
    table = table_file(tmp_path, "一丁丂七丄丅丆")
    state, _ = import_weights(file, "auto_avsr", "whole", table)
    save_checkpoint(tmp_path / "whole.pt", state)
    reader = LipReader.from_checkpoint(tmp_path / "whole.pt", torch.device("cpu"))
    vocabulary = Vocabulary(Tokenizer(tuple("一七三")))
    torch.manual_seed(0)
    network = LipNetwork(reader.model, vocabulary, ("ctc", "decoder"))
    lines = start_from(network, vocabulary, reader.model, tmp_path / "whole.pt", seed=0, clips=CLIPS)
    assert any("2 kept, 1 new (三), 5 dropped" in line for line in lines)
    assert network.ctc_head is not None and reader.network.ctc_head is not None
    # probability 0 in the import, so label smoothing would give a loss of thousands; not in training
    assert reader.network.ctc_head.bias[START_ID].item() == NEVER_LOGIT
    assert abs(network.ctc_head.bias[START_ID].item()) < 2
    assert torch.equal(network.ctc_head.weight[END_ID], reader.network.ctc_head.weight[END_ID])
    # if only the frontend is imported, the encoder has fresh weights and may have any size
    state, _ = import_weights(file, "auto_avsr", "frontend", corpus=vocabulary.characters)
    save_checkpoint(tmp_path / "eyes.pt", state)
    fresh = {name: tensor.clone() for name, tensor in network.encoder.state_dict().items()}
    lines = start_from(network, vocabulary, reader.model, tmp_path / "eyes.pt", seed=0, clips=CLIPS)
    assert sum("fresh weights, " in line for line in lines) == 3
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in network.encoder.state_dict().items())


# -- a complete training -------------------------------------------------------------------------------------


def test_a_training_starts_from_an_import_and_logs_it(tmp_path: Path) -> None:
    packed = pack_clips(tmp_path, toy_clips(6, 2))
    file, table = saved(tmp_path, synthetic_weights("auto_avsr")), table_file(tmp_path, "一丁三七丄丅丆")
    state, _ = import_weights(file, "auto_avsr", "whole", table)
    save_checkpoint(tmp_path / "public.pt", state)
    init_from = tmp_path / "public.pt"
    job = TrainingJob(
        packs=Packs.single(packed.samples, packed.store),
        runs=tmp_path / "runs",
        checkpoints=tmp_path / "checkpoints",
        logs=tmp_path / "logs",
        text=TextParams(),
        model=ModelParams.model_validate(state["model_params"]),
        train=TrainParams(
            batch_size=3,
            accumulation_steps=1,
            num_epochs=1,
            warmup_epochs=0,
            ctc_weight=0.5,
            mixed_precision=False,
            init_from=str(init_from),
            freeze=("frontend",),
            layer_decay=0.9,
            ema_decay=0.9,
        ),
        loader=LoaderParams(frame_budget=200),
        decode=DecodeParams(decoder="ctc"),
        machine=MachineParams(threads=1, device="cpu"),
        config_text="made: by a test\n",
    )
    train(job)
    log = (tmp_path / "logs" / "training.log").read_text("utf-8")
    assert "public.pt: frontend: 120 tensors copied" in log
    assert "decoder: 31 tensors copied; rows of characters: 2 kept, 2 new (二四), 5 dropped" in log
    best = load_checkpoint(tmp_path / "checkpoints" / "best_model.pt")
    theirs, learnt = state["model_state_dict"], best["training_state_dict"]
    for name, tensor in theirs.items():
        if name.startswith("frontend."):
            assert torch.equal(learnt[name], tensor) and torch.equal(best["model_state_dict"][name], tensor)
    # a step of AdamW moves a weight by about its rate at most: so training started from the import
    moved = (learnt["encoder.norm.weight"] - theirs["encoder.norm.weight"]).abs()
    assert 0 < float(moved.max()) < 3e-4
    with pytest.raises(
        CheckpointError, match=r"public.pt has only weights and no training .*train.init_from"
    ):
        train(replace(job, resume=init_from))
    # other weights under the same file name give another run
    run = run_of(job, TrainingData(job)).folder
    assert run.exists()
    state["model_state_dict"]["encoder.norm.bias"] += 1
    save_checkpoint(init_from, state)
    assert run_of(job, TrainingData(job)).folder != run

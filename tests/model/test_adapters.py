"""Adapter files: what they add to the weights, their size, and what is refused."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model import adapters
from model.adapters import MAX_BYTES, Changes, Layout, load_adapted, save_adapter, weights_hash
from model.checkpoints import load_checkpoint, save_checkpoint
from model.decoding.reader import LipReader
from model.networks.network import LipNetwork
from model.presets import PRESET_SIZES
from model.settings import ModelParams
from model.text import Tokenizer
from model.vocabulary import Vocabulary
from shards.errors import CheckpointError
from tests.support.exported import MODELS
from tests.support.forked import started
from tests.support.packed import pack_clips, toy_clips
from tests.support.resuming import state_of
from tests.support.trainings import job_in

CPU = torch.device("cpu")
HAN = "".join(chr(0x4E00 + number) for number in range(4_400))


def random_changes(weights: dict[str, torch.Tensor], rank: int | None = None, seed: int = 1) -> Changes:
    """Returns changes of every kind: small, but of a size that every output shows."""
    random = torch.Generator().manual_seed(seed)
    changes = Changes.none_of(weights, random, rank)
    for tensor in (*changes.learnt, *changes.statistics.values()):
        tensor.copy_(0.05 * torch.rand(tensor.shape, generator=random))
    return changes


@pytest.fixture(scope="module", params=["conformer", "lstm"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of each kind, with a CTC head and a decoder."""
    folder = tmp_path_factory.mktemp("model")
    job = job_in(folder, pack_clips(folder, toy_clips(6, 1)))
    model = MODELS["conformer"] if request.param == "conformer" else job.model
    save_checkpoint(folder / "model.pt", state_of(replace(job, model=model)).as_checkpoint(None))
    return folder / "model.pt"


def outputs_of(reader: LipReader) -> torch.Tensor:
    video_BTHW = torch.randint(0, 256, (2, 12, 96, 96), generator=torch.Generator().manual_seed(3)).byte()
    with torch.no_grad():
        encoded_BSE, _ = reader.encode(video_BTHW, torch.tensor([12, 9]))
        logits_BSV = reader.network.ctc_logits(encoded_BSE)
    return encoded_BSE if logits_BSV is None else torch.cat([encoded_BSE, logits_BSV], dim=2)


def test_an_adapter_without_changes_gives_exactly_the_outputs_of_the_model(
    checkpoint: Path, tmp_path: Path
) -> None:
    reader = LipReader.from_checkpoint(checkpoint, CPU)
    for rank in (0, 2):
        changes = Changes.none_of(reader.network.state_dict(), torch.Generator().manual_seed(0), rank)
        save_adapter(tmp_path / "none.pt", reader.network.state_dict(), changes, {})
        adapted = LipReader.from_checkpoint(checkpoint, CPU, tmp_path / "none.pt")
        assert torch.equal(outputs_of(adapted), outputs_of(reader))


def test_the_file_holds_what_training_computed_with(checkpoint: Path, tmp_path: Path) -> None:
    """The referee adds the products module by module, as the forward pass of LoRA does, in float64."""
    weights = load_checkpoint(checkpoint)["model_state_dict"]
    changes = random_changes(weights, rank=2)
    save_adapter(tmp_path / "p.pt", weights, changes, {"num_clips": 7})
    loaded = load_adapted(checkpoint, tmp_path / "p.pt")["model_state_dict"]
    changed = {name for name in weights if not torch.equal(weights[name], loaded[name])}
    assert changed == {*changes.products, *changes.norms, *changes.statistics}
    for name, (left, right) in changes.products.items():
        expected = weights[name].double() + left.double() @ right.double()
        torch.testing.assert_close(loaded[name].double(), expected, rtol=0, atol=2e-4)
    for name, shift in changes.norms.items():
        torch.testing.assert_close(loaded[name], weights[name] + shift, rtol=0, atol=1e-4)
    for name, shift in changes.statistics.items():
        assert torch.equal(loaded[name], weights[name] + shift)
    assert any(name.startswith("frontend") for name in changes.norms)
    assert not any("decoder" in name for name in changed), "decoders stay as they are"


def test_a_merged_checkpoint_reads_like_model_and_adapter(checkpoint: Path, tmp_path: Path) -> None:
    reader = LipReader.from_checkpoint(checkpoint, CPU)
    save_adapter(
        tmp_path / "p.pt", reader.network.state_dict(), random_changes(reader.network.state_dict()), {}
    )
    save_checkpoint(tmp_path / "merged.pt", load_adapted(checkpoint, tmp_path / "p.pt"))
    merged = outputs_of(LipReader.from_checkpoint(tmp_path / "merged.pt", CPU))
    adapted = outputs_of(LipReader.from_checkpoint(checkpoint, CPU, tmp_path / "p.pt"))
    torch.testing.assert_close(merged, adapted, rtol=0, atol=1e-6)
    assert not torch.allclose(merged, outputs_of(reader), atol=1e-3)


@pytest.mark.parametrize("preset", sorted(PRESET_SIZES))
def test_files_have_at_most_a_megabyte(preset: str, tmp_path: Path) -> None:
    params = ModelParams.model_validate(
        {"preset": preset, "sizes": {}, "frame_height": 88, "frame_width": 88}
    )
    with torch.device("meta"):
        network = LipNetwork(params, Vocabulary(Tokenizer(tuple(HAN))), ("ctc", "decoder"))
    weights = {
        name: torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in network.state_dict().items()
        if not name.startswith("decoder")
    }
    # the largest preset has room only for normalisations, which gain most
    assert (Layout.of(weights).rank_for(weights) > 0) == (preset != "conformer_large")
    assert save_adapter(tmp_path / "p.pt", weights, random_changes(weights), {"n": 1}) <= MAX_BYTES


def test_other_models_versions_and_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    state = load_checkpoint(checkpoint)
    weights = state["model_state_dict"]
    good, other = tmp_path / "good.pt", tmp_path / "other.pt"
    save_adapter(good, weights, random_changes(weights), {"checkpoint": "best_model.pt"})
    name = next(iter(weights))
    moved = {**weights, name: weights[name] + 1e-3}
    save_checkpoint(other, state | {"model_state_dict": moved})
    with pytest.raises(
        CheckpointError, match=r"good.pt belongs to another model than .*other.pt .*best_model.pt"
    ):
        load_adapted(other, good)
    with pytest.raises(CheckpointError, match="pipeline adapt"):
        load_adapted(checkpoint, tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match="is not an adapter"):
        load_adapted(checkpoint, checkpoint)
    content: dict[str, Any] = torch.load(good, weights_only=True)
    for changes, message in (
        ({"adapter_version": 2}, "version 2, this program reads 1"),
        ({"rank": 99}, "rank"),
        ({"learnt": content["learnt"][:-1]}, "was modified"),
        ({"statistics": content["statistics"] * float("nan")}, "not finite"),
    ):
        torch.save(content | changes, tmp_path / "bad.pt")
        with pytest.raises(CheckpointError, match=message):
            load_adapted(checkpoint, tmp_path / "bad.pt")
    damaged = bytearray(good.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "bad.pt").write_bytes(damaged)
    with pytest.raises(CheckpointError, match="damaged"):
        load_adapted(checkpoint, tmp_path / "bad.pt")


def test_the_hash_depends_on_every_weight_and_not_on_the_file(checkpoint: Path, tmp_path: Path) -> None:
    state = load_checkpoint(checkpoint)
    weights = state["model_state_dict"]
    assert weights_hash(dict(reversed(weights.items()))) == weights_hash(weights)
    for name, tensor in weights.items():
        changed = tensor.clone().flatten()
        changed[-1] += 1
        assert weights_hash({**weights, name: changed.view_as(tensor)}) != weights_hash(weights), name
    save_checkpoint(tmp_path / "again.pt", state | {"epoch": 5})
    assert weights_hash(load_checkpoint(tmp_path / "again.pt")["model_state_dict"]) == weights_hash(weights)


def _killed_while_writing(path: Path, checkpoint: Path) -> None:
    def half(_: object, file: Any) -> None:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    adapters.torch.save = half
    weights = load_checkpoint(checkpoint)["model_state_dict"]
    save_adapter(path, weights, random_changes(weights), {})


def test_a_kill_while_writing_leaves_the_older_adapter(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.pt"
    weights = load_checkpoint(checkpoint)["model_state_dict"]
    save_adapter(path, weights, random_changes(weights), {})
    before = path.read_bytes()
    process = started(_killed_while_writing, path, checkpoint)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert path.read_bytes() == before

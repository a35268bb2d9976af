"""Public checkpoints through `pipeline import-weights`: what they compute, what is told, what is refused."""

import contextlib
import json
import os
import pickle
import subprocess
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoints import KEYS, load_checkpoint, save_checkpoint, vocabulary_of
from model.networks.masks import step_mask
from model.networks.network import LipNetwork
from model.public.files import open_weights
from model.public.names import PublicFormat, our_name
from model.public.table import read_table
from model.public.weights import import_weights
from model.reader import LipReader
from model.scoring import score_split
from model.settings import DecodeParams, ModelParams, TextParams
from model.text import BLANK_ID, END_ID, START_ID, UNKNOWN_ID, Tokenizer
from model.vocabulary import Vocabulary
from pipeline.weights_verbs import import_weights as verb_of_people
from shards.errors import CheckpointError, ConfigError
from shards.plan import read_samples
from shards.settings import LoaderParams, MachineParams
from tests.packed import pack_clips, toy_clips

ROOT = Path(__file__).parent.parent
PIPELINE = Path(sysconfig.get_path("scripts")) / "pipeline"
FORMATS: tuple[PublicFormat, ...] = get_args(PublicFormat)
CPU = torch.device("cpu")
CHARACTERS = [chr(ord("一") + number) for number in range(57)]
"""Of the referees: 60 tokens less blank, `<unk>`, and start and end in one."""
SMALL = CHARACTERS[:7]
SIZES = {
    "channels": (4, 6, 8, 10),
    "blocks_per_stage": 2,
    "pool_grid": 1,
    "hidden_dim": 16,
    "num_heads": 2,
    "feed_forward_dim": 24,
    "num_encoder_layers": 2,
    "conv_kernel": 7,
    "num_decoder_layers": 1,
    "num_reverse_layers": 2,
}
Weights = dict[str, torch.Tensor]


def table_file(folder: Path, characters: Sequence[str], first: Sequence[str] = ("<unk>",)) -> Path:
    path = folder / "char_units.txt"
    units = [*first, *characters]
    path.write_text("".join(f"{unit} {index}\n" for index, unit in enumerate(units, start=1)), "utf-8")
    return path


def made_up_weights(format: PublicFormat) -> Weights:
    """Random ones of a small network, by the public names, tables in the public order.

    Every public name comes from the key lists' pattern by trying it out: `our_name` is the referee's business.
    """
    heads = ("ctc", "decoder", *(("reverse_decoder",) if format == "cnvsrc2025" else ()))
    model = ModelParams.model_validate({"preset": "conformer_large", "sizes": SIZES})
    torch.manual_seed(3)
    # blank, <unk>, 7 characters, start and end: as many tokens as a tokenizer of 6 units has
    network = LipNetwork(model, Vocabulary(Tokenizer(tuple(SMALL[:6]))), heads)
    weights = {}
    for ours, tensor in network.state_dict().items():
        if tensor.is_floating_point():  # statistics too, far from 0 and 1
            tensor = 0.1 * torch.randn(tensor.shape) + (0.8 if tensor.ndim == 1 and "bias" not in ours else 0)
        weights[public_name(format, ours)] = tensor
    return weights


def public_name(format: PublicFormat, ours: str) -> str:
    """By hand, the other way round than model/public/names.py."""
    renames = {
        "frontend.stem.convolution": "frontend.frontend3D.0",
        "frontend.stem.norm": "frontend.frontend3D.1",
        **{f"frontend.stages.{stage}.": f"frontend.trunk.layer{stage + 1}." for stage in range(4)},
        ".norm1.": ".bn1.",
        ".norm2.": ".bn2.",
        ".shortcut.": ".downsample.",
        "encoder.project": "proj_encoder",
        "encoder.norm": "encoder.after_norm",
        "encoder.blocks": "encoder.encoders",
        "decoder.blocks": "decoder.decoders",
        "decoder.norm.": "decoder.after_norm.",
        "decoder.embedding": "decoder.embed.0",
        "decoder.output": "decoder.output_layer",
        ".norm_first_feed_forward.": ".norm_ff_macaron.",
        ".norm_second_feed_forward.": ".norm_ff.",
        ".first_feed_forward.": ".feed_forward_macaron.",
        ".second_feed_forward.": ".feed_forward.",
        ".norm_attention.": ".norm_mha.",
        ".norm_convolution.": ".norm_conv.",
        ".norm_output.": ".norm_final.",
        ".convolution.expand.": ".conv_module.pointwise_cov1.",
        ".convolution.contract.": ".conv_module.pointwise_cov2.",
        ".convolution.depthwise.": ".conv_module.depthwise_conv.",
        ".convolution.norm.": ".conv_module.norm.",
        ".norm_self_attention.": ".norm1.",
        ".norm_cross_attention.": ".norm2.",
        ".norm_feed_forward.": ".norm3.",
        ".self_attention.": ".self_attn.",
        ".cross_attention.": ".src_attn.",
        ".attention.content_bias": ".self_attn.pos_bias_u",
        ".attention.position_bias": ".self_attn.pos_bias_v",
        ".attention.": ".self_attn.",
        ".position.": ".linear_pos.",
        ".query.": ".linear_q.",
        ".key.": ".linear_k.",
        ".value.": ".linear_v.",
        "attn.output.": "attn.linear_out.",
        ".expand.": ".w_1.",
        ".contract.": ".w_2.",
        "ctc_head": "ctc.ctc_lo",
        "reverse_decoder": "r_decoder",
    }
    name = ours
    for our_part, public_part in renames.items():
        name = name.replace(our_part, public_part)
    if format == "cnvsrc2025":
        name = name.replace("proj_encoder", "encoder.embed.0")
        name = f"encoder.{name}" if name.startswith("frontend.") else name
    assert our_name(format, name) == ours, (ours, name)
    return name


@pytest.fixture(scope="module")
def reference(realdata: Path) -> Path:
    return realdata.parent / "reference"


def referee_weights(reference: Path, format: PublicFormat) -> Weights:
    weights = load_file(reference / f"{format}_tiny.weights.safetensors")
    if format == "cnvsrc2025":  # its file leaves the frontend out: it is auto_avsr's
        shared = load_file(reference / "auto_avsr_tiny.weights.safetensors")
        weights |= {
            f"encoder.{name}": value for name, value in shared.items() if name.startswith("frontend.")
        }
    return weights


def verb(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: Any, **options: Any) -> str:
    """What `pipeline import-weights` prints in `folder`, in this process."""
    with contextlib.chdir(folder):
        verb_of_people(*arguments, **options)
    return " ".join(capsys.readouterr().out.split())


def in_their_order(values: torch.Tensor, num_characters: int) -> torch.Tensor:
    """Our columns in the public order: blank, `<unk>`, characters, start and end in one."""
    characters = range(UNKNOWN_ID + 1, UNKNOWN_ID + 1 + num_characters)
    return values[..., [BLANK_ID, UNKNOWN_ID, *characters, END_ID]]


# -- the referees ----------------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.parametrize("format", FORMATS)
def test_the_verb_makes_a_checkpoint_that_computes_what_the_referee_does(
    reference: Path, format: PublicFormat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if format == "auto_avsr":
        file = reference / "auto_avsr_tiny.weights.safetensors"
    else:
        file = tmp_path / "public.pth"
        prefixed = {f"module.{name}": value for name, value in referee_weights(reference, format).items()}
        torch.save({"epoch": 7, "state_dict": prefixed}, file)
    table = table_file(tmp_path, CHARACTERS)
    report = json.loads(verb(tmp_path, capsys, file, format, table, json_=True))
    assert all(part["matched"] and not part["left"] and not part["new"] for part in report["parts"])
    assert sum(part["matched"] for part in report["parts"]) == len(referee_weights(reference, format))
    assert (report["left"], report["num_characters"], report["rows_kept"]) == ([], 57, 60)
    reader = LipReader.from_checkpoint(tmp_path / "imported.pt", CPU)
    assert (reader.fps, reader.crop_px, reader.epoch) == (25.0, 96, -1)
    assert_outputs_agree(reader, load_file(reference / f"{format}_tiny.io.safetensors"))


@torch.no_grad()
def assert_outputs_agree(reader: LipReader, io: Mapping[str, torch.Tensor]) -> None:
    """Alone and both in one padded batch; columns in the referee's order."""
    network = reader.network
    assert network.ctc_head is not None and network.decoder is not None
    video = io["input.video"].float().transpose(1, 2)
    num_frames, num_fed = io["input.lengths"], (7, 5)
    # what the referee calls 1 is <unk>, 59 start and end, and k is a character: our k + 2
    fed = io["input.decoder_tokens"]
    ours = torch.where(fed == 59, START_ID, torch.where(fed == 1, UNKNOWN_ID, fed + 2))
    compared = set()
    for together in (True, False):
        for clip, frames in enumerate(num_frames.tolist()):
            rows = slice(0, 2) if together else slice(clip, clip + 1)
            frames, tokens = (23, 7) if together else (frames, num_fed[clip])
            encoded, steps = network.encode(video[rows, :, :frames], num_frames[rows])
            padding = ~step_mask(steps, encoded.shape[1])
            features, _ = network.frontend(video[rows, :, :frames], num_frames[rows])
            logits = network.ctc_logits(encoded)
            assert logits is not None
            found = {
                "frontend": features,
                "encoder": encoded,
                "ctc_log_probs": in_their_order(logits.log_softmax(2), 57),
                "decoder_logits": in_their_order(
                    network.decoder.logits(encoded, padding, ours[rows, :tokens]), 57
                ),
            }
            if network.reverse_decoder is not None:
                reverse = network.reverse_decoder.logits(encoded, padding, ours[rows, :tokens])
                found["r_decoder_logits"] = in_their_order(reverse, 57)
            for name, values in found.items():
                expected = io[f"output.{name}.clip{clip}"]
                compared.add(f"output.{name}.clip{clip}")
                inside = values[clip if together else 0, None, : expected.shape[1]]
                torch.testing.assert_close(inside, expected, rtol=0, atol=1e-4)
    assert compared == {name for name in io if name.startswith("output.")}


# -- made-up weights ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FORMATS)
def format(request: pytest.FixtureRequest) -> PublicFormat:
    return request.param


@pytest.fixture(scope="module")
def public(format: PublicFormat) -> Weights:
    return made_up_weights(format)


def saved(folder: Path, weights: Mapping[str, Any], name: str = "public.pth") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    else:
        torch.save(weights, path)
    return path


def imported(folder: Path, *arguments: Any) -> tuple[LipReader, Any]:
    checkpoint, report = import_weights(*arguments)
    save_checkpoint(folder / "imported.pt", checkpoint)
    return LipReader.from_checkpoint(folder / "imported.pt", CPU), report


@torch.no_grad()
def test_heads_read_as_theirs_and_never_what_they_have_not(
    public: Weights, format: PublicFormat, tmp_path: Path
) -> None:
    reader, report = imported(tmp_path, saved(tmp_path, public), format, "whole", table_file(tmp_path, SMALL))
    assert reader.model.sizes.model_dump() | {"channels": SIZES["channels"]} == SIZES | (
        {} if format == "cnvsrc2025" else {"num_reverse_layers": 3}  # the preset's: it has none
    )
    assert report.heads == (
        ("ctc", "decoder") if format == "auto_avsr" else ("ctc", "decoder", "reverse_decoder")
    )
    network = reader.network
    assert network.ctc_head is not None and isinstance(network.decoder, torch.nn.Module)
    encoded = torch.randn(1, 5, 16)
    theirs = encoded @ public["ctc.ctc_lo.weight"].T + public["ctc.ctc_lo.bias"]
    ours = network.ctc_head(encoded).softmax(2)
    torch.testing.assert_close(in_their_order(ours, 7), theirs.softmax(2))
    assert float(ours[..., START_ID].max()) == 0.0
    embedding = network.decoder.embedding.weight
    assert torch.equal(embedding[START_ID], public["decoder.embed.0.weight"][9])
    assert torch.equal(embedding[UNKNOWN_ID], public["decoder.embed.0.weight"][1])
    assert torch.equal(embedding[UNKNOWN_ID + 3], public["decoder.embed.0.weight"][4])
    statistics = "frontend.trunk.layer2.0.downsample.1.running_var"
    statistics = f"encoder.{statistics}" if format == "cnvsrc2025" else statistics
    assert torch.equal(network.frontend.state_dict()["stages.1.0.shortcut.1.running_var"], public[statistics])
    assert reader.vocabulary.characters.units == tuple(SMALL)


def test_an_imported_checkpoint_reads_clips_and_is_whole(
    public: Weights, format: PublicFormat, tmp_path: Path
) -> None:
    half = {name: t.half() if t.is_floating_point() else t for name, t in public.items()}
    for name in ("public.safetensors", "public.ckpt"):
        reader, _ = imported(
            tmp_path, saved(tmp_path, half, name), format, "whole", table_file(tmp_path, SMALL)
        )
        clip = np.random.default_rng(0).integers(0, 256, (9, 96, 96), dtype=np.uint8)
        for decoder in ("attention", "ctc"):
            reading = reader.read_clip(clip, DecodeParams(decoder=decoder))
            assert set(reading.text) <= set(SMALL) and np.isfinite(reading.score)
    state = load_checkpoint(tmp_path / "imported.pt")
    assert set(KEYS) <= state.keys() and state["optimizer_state_dict"] is None
    assert all(t.dtype == torch.float32 for t in state["model_state_dict"].values() if t.is_floating_point())


@pytest.mark.parametrize(
    ("key", "prefix"),
    [(None, "model."), ("state_dict", "model."), ("model", "module.model."), ("model_state_dict", "")],
)
def test_wrapped_weights_are_found_and_told(
    public: Weights, format: PublicFormat, tmp_path: Path, key: str | None, prefix: str
) -> None:
    weights: dict[str, Any] = {prefix + name: tensor for name, tensor in public.items()}
    weights["loss.weight"] = torch.ones(3)
    weights["note"] = "said"
    far = f"{prefix}encoder.encoders.{'9' * 5_000}.norm_ff.bias"  # no number for int()
    weights[far] = torch.ones(16)
    file = saved(tmp_path, {key: weights, "epoch": 3} if key else weights)
    found = open_weights(file, format)
    assert (found.nested_under, found.prefix) == (key or "", prefix)
    assert sorted(found.strange) == sorted([far, "loss.weight", "note"])
    assert len(found.named) == len(public)


def test_files_of_before_the_zip_format_are_read(
    tmp_path: Path, public: Weights, format: PublicFormat
) -> None:
    torch.save(public, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert len(open_weights(tmp_path / "old.pth", format).named) == len(public)


def test_lower_parts_need_no_public_table(tmp_path: Path, public: Weights, format: PublicFormat) -> None:
    file, corpus = saved(tmp_path, public), Tokenizer(("a", "b"))
    named = open_weights(file, format).named
    for part, learnt in (("encoder", ["frontend", "encoder"]), ("frontend", ["frontend"])):
        with pytest.raises(ConfigError, match="--vocabulary"):
            import_weights(file, format, part)
        checkpoint, report = import_weights(file, format, part, corpus=corpus)
        torch.manual_seed(9)
        again, _ = import_weights(file, format, part, corpus=corpus)
        ours = checkpoint["model_state_dict"]
        for name, tensor in ours.items():
            taken = name.partition(".")[0] in learnt
            assert torch.equal(tensor, again["model_state_dict"][name])
            assert taken == (
                name in named and torch.equal(tensor.reshape(-1), named[name].float().reshape(-1))
            ) or name.endswith("num_batches_tracked")
        assert (checkpoint["learnt_parts"], checkpoint["heads"]) == (learnt, ["ctc"])
        by_part = {told.part: told for told in report.parts}
        assert by_part["ctc_head"].new == 2 and by_part["decoder"].left > 20
        assert (by_part["encoder"].new > 0) == (part == "frontend")
        assert sum(told.matched + told.left for told in report.parts) == len(public)
        save_checkpoint(tmp_path / "part.pt", checkpoint)
        assert vocabulary_of(load_checkpoint(tmp_path / "part.pt"), tmp_path).characters == corpus
        alone, fresh = " and ".join(learnt), "every head" if part == "encoder" else "encoder and every head"
        told = f"taken over {alone} alone .*, {fresh} in it is fresh .* train.init_from=.*part.pt first"
        with pytest.raises(CheckpointError, match=told):
            LipReader.from_checkpoint(tmp_path / "part.pt", CPU)
    # several characters a unit are no hindrance below the heads
    pieces = table_file(tmp_path, ["ing", *SMALL[1:]])
    with pytest.raises(CheckpointError, match=r"single characters \(ing\).*--part encoder without"):
        import_weights(file, format, "whole", pieces)


def test_the_verb_tells_people_and_takes_characters_from_the_packed_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = made_up_weights("auto_avsr")
    file = saved(tmp_path, weights | {"lm.weight": torch.ones(2)})
    with pytest.raises(ConfigError, match=r"--vocabulary FILE is wanted, or a params.yaml"):
        verb(tmp_path, capsys, file, "auto_avsr", part="encoder")
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    packed = pack_clips(tmp_path / "data", toy_clips(6, 2))
    told = verb(tmp_path, capsys, file, "auto_avsr", part="encoder")
    assert "not of the format and left, 1: lm.weight" in told
    assert "characters: 4, from the labels of the packed train clips" in told
    assert "ctc_head fresh: this checkpoint is for train.init_from" in told
    told = verb(tmp_path, capsys, file, "auto_avsr", table_file(tmp_path, SMALL))
    assert "packed train clips that it cannot read, 3: 三 二 四" in told
    scored = score_split(
        LipReader.from_checkpoint(tmp_path / "imported.pt", CPU),
        read_samples(packed.samples, "test"),
        packed.store,
        batch_size=2,
        loader=LoaderParams(),
        machine=MachineParams(),
        decode=DecodeParams(),
    )
    assert [clip.clip_id for clip in scored] == ["test_000", "test_001"]
    for assignment in ("model.window_px=64", "paths.shards=elsewhere", "text"):
        with pytest.raises(ConfigError, match=f"--set {assignment}: .* text and paths.samples alone"):
            verb(tmp_path, capsys, file, "auto_avsr", part="encoder", assignments=[assignment])
    told = verb(
        tmp_path,
        capsys,
        file,
        "auto_avsr",
        table_file(tmp_path, ["B", *SMALL[1:]]),
        assignments=["text.case_fold=false"],
    )
    assert "written as labels are" not in told
    with pytest.raises(ConfigError, match="is the file that is read"):
        verb(tmp_path, capsys, file, "auto_avsr", out=file)


def test_the_command_line_takes_it(tmp_path: Path) -> None:
    file = saved(tmp_path, made_up_weights("cnvsrc2025"), "public.safetensors")
    arguments = ["import-weights", file, "--format", "cnvsrc2025", "--part=frontend", "--out", "eyes.pt"]
    arguments += ["--vocabulary", table_file(tmp_path, SMALL)]
    done = subprocess.run([PIPELINE, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "eyes.pt: heads ctc" in done.stdout
    assert load_checkpoint(tmp_path / "eyes.pt")["learnt_parts"] == ["frontend"]


# -- tables ------------------------------------------------------------------------------------------------


def written(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "units.txt"
    path.write_bytes(text.encode(encoding))
    return path


def test_tables_as_people_save_them(tmp_path: Path) -> None:
    for text, encoding in (
        ("<unk> 1\n我 2\n你 3\n", "utf-8"),
        ("<unk> 1\r\n我 2\r\n你 3\r\n\r\n", "utf-8-sig"),
        ("你\t3\n<unk>\t1\n我\t2", "utf-8"),
    ):
        table = read_table(written(tmp_path, text, encoding), TextParams())
        assert (table.tokenizer.units, table.public_ids, table.unknown_id) == (("我", "你"), (2, 3), 1)
        assert table.rows() == ([0, 4, 4, 1, 2, 3], [0, None, 4, 1, 2, 3])


def test_a_table_without_unknown_makes_it_mute(tmp_path: Path, public: Weights, format: PublicFormat) -> None:
    table = table_file(tmp_path, CHARACTERS[:8], first=())
    reader, report = imported(tmp_path, saved(tmp_path, public), format, "whole", table)
    assert reader.network.ctc_head is not None and report.rows_new == ("start, as an output", "unknown")
    probabilities = reader.network.ctc_head(torch.randn(20, 16)).softmax(1).detach()
    assert float(probabilities[:, [START_ID, UNKNOWN_ID]].max()) == 0.0


def test_characters_stand_as_labels_hold_them(tmp_path: Path) -> None:
    # full-width A, both cases of b, a space by name, one by itself where it is alone, punctuation, a ligature
    text = "<unk> 1\nＡ 2\nb 3\nB 4\n<space> 5\n， 6\nﬁ 7\n7 8\n\u2028 9x\n"
    with pytest.raises(CheckpointError, match="line 9"):
        read_table(written(tmp_path, text), TextParams())
    table = read_table(written(tmp_path, text.replace("\u2028 9x\n", "")), TextParams())
    assert table.tokenizer.units == ("a", "b", "B", " ", "，", "ﬁ", "7")
    assert table.rewritten == (("Ａ", "a"), ("<space>", " "))
    assert table.not_in_labels == ("B", "，", "ﬁ")
    kept = read_table(written(tmp_path, text.replace("\u2028 9x\n", "")), TextParams(case_fold=False))
    assert kept.tokenizer.units == ("A", "b", "B", " ", "，", "ﬁ", "7")
    assert read_table(written(tmp_path, "  1\n我 2\n"), TextParams()).tokenizer.units == (" ", "我")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<unk> 1\n我 2\n你 2\n", "2 stands twice, in lines 2 and 3"),
        ("<unk> 1\n我 2\n我 3\n", "'我' stands twice, in lines 2 and 3"),
        ("<unk> 1\n我 2\n你 4\n", "must be 1 to 3 .* index 3 is missing"),
        ("<unk> 0\n我 1\n", "must be 1 to 2"),
        ("<unk> 1\n我\n", "line 2: '我' is no 'character index'"),
        ("<unk> 1\n\n我 2\n", "line 2: '' is no"),
        ("我 2٣\n", "line 1"),
        ("<space> 1\n▁ 2\n", "the space stands twice"),
        ("<unk> 1\n", "no characters"),
        ("", "line 1"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        read_table(written(tmp_path, text), TextParams())


def test_tables_of_other_encodings_sizes_and_lengths(
    tmp_path: Path, public: Weights, format: PublicFormat
) -> None:
    with pytest.raises(CheckpointError, match="no UTF-8 text"):
        read_table(written(tmp_path, "<unk> 1\n我 2\n", "gbk"), TextParams())
    with pytest.raises(CheckpointError, match="more than 4 MiB"):
        read_table(written(tmp_path, "x" * (5 << 20)), TextParams())
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_table(tmp_path / "nowhere.txt", TextParams())
    for characters in (CHARACTERS[:6], CHARACTERS[:8]):
        num_tokens = len(characters) + 3
        with pytest.raises(CheckpointError, match=f"rows for 10 tokens .* the vocabulary has {num_tokens}"):
            table = table_file(tmp_path, characters)
            import_weights(saved(tmp_path, public), format, "whole", table)


# -- files that are none --------------------------------------------------------------------------------------


class RunsCode:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("ran_code",)


def test_a_pickle_with_code_is_refused_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, public: Weights, format: PublicFormat
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": public, "hyper_parameters": RunsCode()}, tmp_path / "a.ckpt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(RunsCode(), protocol=2))
    for name in ("a.ckpt", "b.pt"):
        with pytest.raises(
            CheckpointError, match=r"(?s)holds more than tensors.*mkdir.*import torch"
        ) as caught:
            open_weights(tmp_path / name, format)
        assert "weights_only" in str(caught.value)
    assert not (tmp_path / "ran_code").exists()


@pytest.mark.parametrize("name", ["public.pth", "public.safetensors"])
def test_truncated_and_flipped_files_are_told(
    tmp_path: Path, public: Weights, format: PublicFormat, name: str
) -> None:
    whole = saved(tmp_path, public, name).read_bytes()
    damaged = tmp_path / f"damaged{Path(name).suffix}"
    for size in (0, 5, 9, 100, len(whole) // 2, len(whole) - 1):
        damaged.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"damaged|holds"):
            open_weights(damaged, format)
    if name.endswith(".pth"):  # in a number: torch would read it
        flipped = bytearray(whole)
        flipped[whole.index(public["ctc.ctc_lo.bias"].numpy().tobytes())] ^= 4
        damaged.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="checksum"):
            open_weights(damaged, format)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(30):  # in the header or the pickle of names; either it is refused, or it is read
        flipped = bytearray(whole)
        flipped[int(rng.integers(0, 4000))] ^= 1 << int(rng.integers(0, 8))
        damaged.write_bytes(flipped)
        try:
            open_weights(damaged, format)
        except CheckpointError:
            refused += 1
    assert refused > 5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.clear(), "no tensors"),
        (lambda w: w.update({"decoder.after_norm.weight": torch.ones(17)}), r"decoder.norm.weight is \[17\]"),
        (lambda w: w.pop("decoder.after_norm.weight"), "lacks decoder.norm.weight"),
        (
            lambda w: w.pop("encoder.encoders.0.self_attn.pos_bias_u"),
            "lacks encoder.blocks.0.attention.content",
        ),
        (
            lambda w: w.update({"encoder.encoders.9999.norm_ff.bias": torch.ones(16)}),
            "num_encoder_layers: Input should be less than",
        ),
        (
            lambda w: w.update({"encoder.encoders.2.norm_ff.bias": torch.ones(16)}),
            "lacks encoder.blocks.2.attention.content_bias, .* more",
        ),
        (lambda w: w["ctc.ctc_lo.weight"].fill_(float("nan")), "ctc_head.weight .* damaged"),
        (
            lambda w: w.update({"ctc.ctc_lo.weight": torch.ones(1).expand(1_000_000_000, 16)}),
            "repeats its numbers",
        ),
        (lambda w: w.update({"extra": torch.ones(3).to_sparse()}), "no plain tensor"),
        (lambda w: w.update({"extra": torch.ones(3, dtype=torch.complex64)}), "no plain tensor"),
        (lambda w: w.update({"extra": torch.ones(3, device="meta")}), "no plain tensor"),
        (
            lambda w: [w.pop(name) for name in list(w) if name.startswith(("ctc", "decoder", "r_decoder"))],
            "no head",
        ),
        (
            lambda w: [w.pop(n) for n in list(w) if n.startswith(("encoder.e", "encoder.a", "proj"))],
            "has no encoder",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, public: Weights, format: PublicFormat, change: Callable[[Weights], object], told: str
) -> None:
    weights = {name: tensor.clone() for name, tensor in public.items()}
    change(weights)
    with pytest.raises(CheckpointError, match=told):
        import_weights(saved(tmp_path, weights), format, "whole", table_file(tmp_path, SMALL))


def test_the_other_format_is_named(tmp_path: Path, public: Weights, format: PublicFormat) -> None:
    other = FORMATS[1 - FORMATS.index(format)]
    with pytest.raises(CheckpointError, match=f"give --format {format}"):
        open_weights(saved(tmp_path, public), other)
    with pytest.raises(CheckpointError, match=r"no name of .* such as a, b"):
        open_weights(saved(tmp_path, {"a": torch.ones(1), "b": torch.ones(1)}), format)
    with pytest.raises(CheckpointError, match="no weights by name but list"):
        open_weights(saved(tmp_path, [torch.ones(1)]), format)  # type: ignore[arg-type]


def test_a_file_without_a_frontend_is_taken_and_told(
    tmp_path: Path, public: Weights, format: PublicFormat
) -> None:
    without = {name: tensor for name, tensor in public.items() if "frontend" not in name}
    # a fresh frontend has 512 features
    project = "proj_encoder.weight" if format == "auto_avsr" else "encoder.embed.0.weight"
    without[project] = torch.randn(16, 512)
    checkpoint, report = import_weights(
        saved(tmp_path, without), format, "whole", table_file(tmp_path, SMALL)
    )
    frontend = next(told for told in report.parts if told.part == "frontend")
    assert (frontend.matched, frontend.left) == (0, 0) and frontend.new > 100
    assert "frontend" not in checkpoint["learnt_parts"]
    save_checkpoint(tmp_path / "blind.pt", checkpoint)
    with pytest.raises(CheckpointError, match=r"alone .*, frontend in it is fresh"):
        LipReader.from_checkpoint(tmp_path / "blind.pt", CPU)

"""Files as people save them: which tables and weights are read or rejected, and the messages."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoints import save_checkpoint
from model.decoding.reader import LipReader
from model.pretrained.files import PublicFormat, open_weights
from model.pretrained.table import read_table
from model.pretrained.weights import import_weights
from model.settings import TextParams
from model.text import START_ID, UNKNOWN_ID
from shards.errors import CheckpointError
from tests.support.public_weights import (  # noqa: F401
    CHARACTERS,
    CPU,
    FORMATS,
    SMALL,
    Weights,
    format_fixture,
    imported,
    public_fixture,
    saved,
    table_file,
)

# -- tables ----------------------------------------------------------------------------------------------


def written(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "units.txt"
    path.write_bytes(text.encode(encoding))
    return path


def test_common_forms_of_tables_are_read(tmp_path: Path) -> None:
    for text, encoding in (
        ("<unk> 1\n我 2\n你 3\n", "utf-8"),
        ("<unk> 1\r\n我 2\r\n你 3\r\n\r\n", "utf-8-sig"),
        ("你\t3\n<unk>\t1\n我\t2", "utf-8"),
    ):
        table = read_table(written(tmp_path, text, encoding), TextParams())
        assert (table.tokenizer.units, table.public_ids, table.unknown_id) == (("我", "你"), (2, 3), 1)
        assert table.rows() == ([0, 4, 4, 1, 2, 3], [0, None, 4, 1, 2, 3])


def test_without_unknown_in_the_table_it_gets_probability_0(
    tmp_path: Path, public: Weights, format: PublicFormat
) -> None:
    table = table_file(tmp_path, CHARACTERS[:8], first=())
    reader, report = imported(tmp_path, saved(tmp_path, public), format, "whole", table)
    assert reader.network.ctc_head is not None and report.rows_new == ("start, as an output", "unknown")
    probabilities = reader.network.ctc_head(torch.randn(20, 16)).softmax(1).detach()
    assert float(probabilities[:, [START_ID, UNKNOWN_ID]].max()) == 0.0


def test_characters_are_normalised_like_labels(tmp_path: Path) -> None:
    # full-width A, both cases of b, a named space, punctuation, a ligature, a line separator
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
    ("text", "message"),
    [
        ("<unk> 1\n我 2\n你 2\n", "2 appears twice, in lines 2 and 3"),
        ("<unk> 1\n我 2\n我 3\n", "'我' appears twice, in lines 2 and 3"),
        ("<unk> 1\n我 2\n你 4\n", "must be 1 to 3 .* index 3 is missing"),
        ("<unk> 0\n我 1\n", "must be 1 to 2"),
        ("<unk> 1\n我\n", "line 2: '我' is not 'character index'"),
        ("<unk> 1\n\n我 2\n", "line 2: '' is not"),
        ("我 2٣\n", "line 1"),
        ("<space> 1\n▁ 2\n", "appears twice, under two names of the space"),
        ("<unk> 1\n", "no characters"),
        ("", "line 1"),
    ],
)
def test_invalid_tables_are_rejected(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_table(written(tmp_path, text), TextParams())


def test_tables_of_other_encodings_sizes_and_lengths(
    tmp_path: Path, public: Weights, format: PublicFormat
) -> None:
    with pytest.raises(CheckpointError, match="not UTF-8 text"):
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


# -- weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "prefix"),
    [(None, "model."), ("state_dict", "model."), ("model", "module.model."), ("model_state_dict", "")],
)
def test_nested_and_prefixed_weights_are_found(
    public: Weights, format: PublicFormat, tmp_path: Path, key: str | None, prefix: str
) -> None:
    weights: dict[str, Any] = {prefix + name: tensor for name, tensor in public.items()}
    weights["loss.weight"] = torch.ones(3)
    weights["note"] = "said"
    far = f"{prefix}encoder.encoders.{'9' * 5_000}.norm_ff.bias"  # too long for int()
    weights[far] = torch.ones(16)
    file = saved(tmp_path, {key: weights, "epoch": 3} if key else weights)
    found = open_weights(file, format)
    assert (found.nested_under, found.prefix) == (key or "", prefix)
    assert sorted(found.unknown_names) == sorted([far, "loss.weight", "note"])
    assert len(found.named) == len(public)


def test_files_from_before_the_zip_format_are_read(
    tmp_path: Path, public: Weights, format: PublicFormat
) -> None:
    torch.save(public, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert len(open_weights(tmp_path / "old.pth", format).named) == len(public)


def test_a_file_without_a_frontend_is_imported_and_reported(
    tmp_path: Path, public: Weights, format: PublicFormat
) -> None:
    without = {name: tensor for name, tensor in public.items() if "frontend" not in name}
    # a fresh frontend has 512 features
    project = "proj_encoder.weight" if format == "auto_avsr" else "encoder.embed.0.weight"
    without[project] = torch.randn(16, 512)
    checkpoint, report = import_weights(
        saved(tmp_path, without), format, "whole", table_file(tmp_path, SMALL)
    )
    frontend = next(part for part in report.parts if part.part == "frontend")
    assert (frontend.matched, frontend.left) == (0, 0) and frontend.new > 100
    assert "frontend" not in checkpoint["learnt_parts"]
    save_checkpoint(tmp_path / "blind.pt", checkpoint)
    with pytest.raises(CheckpointError, match=r"only imported weights .*frontend is not trained"):
        LipReader.from_checkpoint(tmp_path / "blind.pt", CPU)


class RunsCode:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("ran_code",)


def test_a_pickle_with_code_is_rejected_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, public: Weights, format: PublicFormat
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": public, "hyper_parameters": RunsCode()}, tmp_path / "a.ckpt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(RunsCode(), protocol=2))
    for name in ("a.ckpt", "b.pt"):
        with pytest.raises(
            CheckpointError, match=r"(?s)has objects other than tensors.*mkdir.*import torch"
        ) as caught:
            open_weights(tmp_path / name, format)
        assert "weights_only" in str(caught.value)
    assert not (tmp_path / "ran_code").exists()


@pytest.mark.parametrize("name", ["public.pth", "public.safetensors"])
def test_truncated_and_flipped_files_are_reported(
    tmp_path: Path, public: Weights, format: PublicFormat, name: str
) -> None:
    whole = saved(tmp_path, public, name).read_bytes()
    damaged = tmp_path / f"damaged{Path(name).suffix}"
    for size in (0, 5, 9, 100, len(whole) // 2, len(whole) - 1):
        damaged.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"damaged|holds"):
            open_weights(damaged, format)
    if name.endswith(".pth"):  # a flipped bit in a number, which torch would read
        flipped = bytearray(whole)
        flipped[whole.index(public["ctc.ctc_lo.bias"].numpy().tobytes())] ^= 4
        damaged.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="checksum"):
            open_weights(damaged, format)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(30):  # in the header or the pickle of names: the file is rejected or read
        flipped = bytearray(whole)
        flipped[int(rng.integers(0, 4000))] ^= 1 << int(rng.integers(0, 8))
        damaged.write_bytes(flipped)
        try:
            open_weights(damaged, format)
        except CheckpointError:
            refused += 1
    assert refused > 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.clear(), "holds no tensors"),
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
            "fewer numbers in the file",
        ),
        (lambda w: w.update({"extra": torch.ones(3).to_sparse()}), "extra is not a plain tensor"),
        (lambda w: w.update({"extra": torch.ones(3, dtype=torch.complex64)}), "extra is not a plain tensor"),
        (lambda w: w.update({"extra": torch.ones(3, device="meta")}), "extra is not a plain tensor"),
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
def test_weights_that_do_not_fit_are_rejected(
    tmp_path: Path, public: Weights, format: PublicFormat, change: Callable[[Weights], object], message: str
) -> None:
    weights = {name: tensor.clone() for name, tensor in public.items()}
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        import_weights(saved(tmp_path, weights), format, "whole", table_file(tmp_path, SMALL))


def test_the_other_format_is_named(tmp_path: Path, public: Weights, format: PublicFormat) -> None:
    other = FORMATS[1 - FORMATS.index(format)]
    with pytest.raises(CheckpointError, match=f"use --format {format}"):
        open_weights(saved(tmp_path, public), other)
    with pytest.raises(CheckpointError, match=rf"such as a, b, belongs to --format {format}"):
        open_weights(saved(tmp_path, {"a": torch.ones(1), "b": torch.ones(1)}), format)
    with pytest.raises(CheckpointError, match="holds list, not weights by name"):
        open_weights(saved(tmp_path, [torch.ones(1)]), format)  # type: ignore[arg-type]

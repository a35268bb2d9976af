"""Several packs as one table and one store; conditions on clips."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import samples as samples_module
from shards.errors import ConfigError, ShardError
from shards.files import table_from_rows, write_table
from shards.packs import Pack, Packs
from shards.plan import plan_epoch
from shards.plan_identity import PlanIdentity
from shards.samples import read_samples, samples_hash
from shards.schema import AUDIT
from shards.settings import DataPack, LoaderParams, MachineParams
from shards.stream import ShardStream
from tests.support.packed import Packed, pack_clips, toy_clips


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Packed, Packed]:
    """Two packs with different clips of the same names."""
    folder = tmp_path_factory.mktemp("packs")
    return pack_clips(folder / "a", toy_clips(12, 3)), pack_clips(folder / "b", toy_clips(7, 2, seed=5))


def packs_of(two: tuple[Packed, Packed], where: str = "", **changes: dict) -> Packs:
    return Packs(
        [
            Pack(name, packed.samples, packed.store, **changes.get(name, {}))
            for name, packed in zip("ab", two, strict=True)
        ],
        where,
    )


def test_one_pack_is_read_as_it_is(two: tuple[Packed, Packed]) -> None:
    packs = Packs.single(two[0].samples, two[0].store)
    assert packs.read("train").equals(read_samples(two[0].samples, "train"))
    assert packs.store is two[0].store and packs.blend is None and packs.weights == {}
    identity = packs.plan_identity(LoaderParams(), 4)
    assert identity.samples == samples_hash(read_samples(two[0].samples, "train"))
    assert identity.as_dict().keys() == {"plan_version", "samples", "loader", "batch_size", "world_size"}
    assert not {"mix", "epoch_clips", "temperature"} & identity.loader.keys()


def test_clips_of_several_packs_are_read_with_their_own_pixels_and_labels(two: tuple[Packed, Packed]) -> None:
    packs = packs_of(two)
    samples = packs.read("train")
    assert samples["corpus"].to_pylist() == ["a"] * 12 + ["b"] * 7
    assert len(set(samples["clip_id"].to_pylist())) == 19
    stream = ShardStream(packs.store, samples, MachineParams(num_workers=0))
    (batch,) = stream.batches([np.array([0, 12, 18, 19 + 12])])
    assert batch.clip_ids == ("a/train_000", "b/train_000", "b/train_006", "b/train_000")
    clips = [clips[0][2] for clips in (toy_clips(12, 3), toy_clips(7, 2, seed=5))]
    for place, clip_THW in enumerate(clips):
        assert np.array_equal(batch.video_BTHW[place, : len(clip_THW)].numpy(), clip_THW)
    assert batch.labels[1] == batch.labels[3] == toy_clips(7, 2, seed=5)[0][3], (
        "a second visit reads the same clip"
    )


def test_the_columns_of_the_plan_are_read_alone_with_the_same_rows(two: tuple[Packed, Packed]) -> None:
    packs = packs_of(two)
    light = packs.read_plan_columns("train")
    assert light.to_pylist() == packs.read("train").select(light.column_names).to_pylist()
    whole_plan, light_plan = (
        plan_epoch(rows, LoaderParams(frame_budget=200), 4, 1, weights={"a": 1, "b": 2})
        for rows in (packs.read("train"), light)
    )
    assert [batch.tolist() for batch in whole_plan.batches] == [
        batch.tolist() for batch in light_plan.batches
    ]


def test_splits_may_have_other_names_or_be_joined(two: tuple[Packed, Packed]) -> None:
    packs = packs_of(two, b={"splits": {"train": ("test", "train"), "valid": ()}})
    assert packs.read("train")["clip_id"].to_pylist()[12:15] == ["b/test_000", "b/test_001", "b/train_000"]
    assert set(packs.read("valid")["corpus"].to_pylist()) == {"a"}
    assert packs.splits >= {"train", "valid", "test"}
    misspelt = packs_of(two, b={"splits": {"valid": ("vaild",)}})
    with pytest.raises(ConfigError, match=r"train\.data, pack b: .* no samples of split 'vaild'"):
        misspelt.read("valid")
    with pytest.raises(ConfigError, match="none of the packs a, b has a split 'dev'"):
        packs.read("dev")


def test_params_name_the_packs(two: tuple[Packed, Packed]) -> None:
    entries = [
        DataPack(name=name, samples=str(packed.samples), shards=str(packed.shards), weight=weight)
        for name, packed, weight in zip("ab", two, (1, 2), strict=True)
    ]
    packs = Packs.of(entries, Pack("", Path("none"), two[0].store), MachineParams())
    assert packs.weights == {"a": 1, "b": 2}
    assert packs.read("train").equals(packs_of(two).read("train"))
    with pytest.raises(ConfigError, match="two packs of the name a"):
        Packs.of([entries[0], entries[0]], Pack("", Path("none"), two[0].store), MachineParams())
    with pytest.raises(ConfigError, match=r"pack b has no weight, but others have"):
        _ = Packs.of(
            [entries[0], entries[1].model_copy(update={"weight": 0})], packs.packs[0], MachineParams()
        ).weights


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"valid": ("train",)}, "split train has two of the uses"),
        ({"samples": "http://host/samples.parquet"}, "must be a local file; only shards may be a URL"),
        ({"name": "a/b"}, "String should match pattern"),
    ],
)
def test_wrong_entries_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataPack(**({"name": "a", "samples": "s.parquet", "shards": "shards"} | values))  # type: ignore[arg-type]


def test_the_differences_of_two_blends_are_named(two: tuple[Packed, Packed], tmp_path: Path) -> None:
    def identity(packs: Packs) -> PlanIdentity:
        return packs.plan_identity(LoaderParams(), 4)

    ours = identity(packs_of(two))
    assert PlanIdentity.from_dict(ours.as_dict()) == ours
    assert ours.differences(ours) == []
    heavier = identity(packs_of(two, a={"weight": 3.0}, b={"weight": 1.0}))
    assert heavier.differences(ours) == [
        "the weight of pack a is 3.0, the checkpoint has 0.0",
        "the weight of pack b is 1.0, the checkpoint has 0.0",
    ]
    again = pack_clips(tmp_path, toy_clips(9, 2, seed=7))
    assert identity(packs_of((two[0], again))).differences(ours) == [
        "the clips of pack b differ: its samples.parquet was packed again"
    ]
    alone = identity(Packs.single(two[0].samples, two[0].store))
    assert alone.differences(ours) == ["train.data has the packs none, the checkpoint has a, b"]
    filtered = identity(packs_of(two, "num_frames > 12"))
    assert filtered.differences(ours) == ["train.where is 'num_frames > 12', the checkpoint has ''"]


# -- train.where -------------------------------------------------------------------------------------------


def with_crops(packed: Packed, folder: Path) -> Path:
    """Writes a table like crops.parquet whose sharpness is the row number; unknown for the last and other splits."""
    clip_ids = read_samples(packed.samples, "train")["clip_id"].to_pylist()
    values = [*map(float, range(len(clip_ids) - 1)), None]
    for split in ("valid", "test"):
        others = read_samples(packed.samples, split)["clip_id"].to_pylist()
        clip_ids, values = clip_ids + others, values + [None] * len(others)
    folder.mkdir(exist_ok=True)
    path = folder / "crops.parquet"
    pq.write_table(
        pa.table({"clip_id": clip_ids[::-1], "sharpness": values[::-1], "num_frames": [1] * len(clip_ids)}),
        path,
    )
    return path


def test_a_condition_selects_training_clips_only_and_is_counted(
    two: tuple[Packed, Packed], tmp_path: Path
) -> None:
    crops = {
        name: {"crops": with_crops(packed, tmp_path / name)} for name, packed in zip("ab", two, strict=True)
    }
    packs = packs_of(two, "sharpness >= 3 -- a comment", **crops)
    assert packs.read("train")["clip_id"].to_pylist() == [f"a/train_{n:03d}" for n in range(3, 11)] + [
        f"b/train_{n:03d}" for n in range(3, 6)
    ]
    assert packs.left_out == {"a": (4, 12), "b": (4, 7)}
    assert packs.read("valid").num_rows == packs_of(two).read("valid").num_rows
    same = packs_of(two, "crops.sharpness >= 3 and samples.num_frames > 1 and num_frames > 1", **crops)
    assert same.read("train").equals(packs.read("train")), "num_frames is the column of samples"


def test_a_condition_selects_the_same_clips_of_a_table_in_many_pieces(
    two: tuple[Packed, Packed], monkeypatch: pytest.MonkeyPatch
) -> None:
    packs = packs_of(two, "hash(clip_id) % 10 < 6")
    whole = packs.read("train")
    monkeypatch.setattr(samples_module, "_PIECE_ROWS", 5)
    in_pieces = packs_of(two, packs.where)
    assert in_pieces.read("train").to_pylist() == whole.to_pylist()
    assert in_pieces.left_out == packs.left_out and in_pieces.training_hash == packs.training_hash


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("sharpnes > 1", "train.where is not a condition.*sharpnes"),
        ("num_frames >", "train.where is not a condition"),
        ("1); SELECT ('x') AS clip_id; --", "train.where is not a condition|must be one condition"),
        ("num_frames > 0 and exists (from read_csv('/etc/passwd'))", "train.where is not a condition"),
        ("num_frames > 100000", "train.where leaves no clip of .*samples.parquet"),
        ("random() < 0.3", r"random gives another answer each time; .* hash\(clip_id\) % 10 < 3"),
        ("clip_id <> '口' -- not now()\nand \"random\" () < 0.3", "random gives another answer each time"),
        ("num_frames > 1 and current_date > '2020-01-01'", "current_date gives another answer each time"),
        ("num_frames", "must be true or false for each clip, but 'num_frames' is INTEGER"),
        ("mouth_width_px > 40", "the pack names no crops and no clips"),
    ],
)
def test_a_wrong_condition_is_refused(two: tuple[Packed, Packed], where: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Packs([Pack("", two[0].samples, two[0].store)], where).read("train")


def test_a_random_part_of_the_clips_is_always_the_same(two: tuple[Packed, Packed]) -> None:
    pack = Pack("", two[0].samples, two[0].store)
    parts = [Packs([pack], "hash(clip_id) % 10 < 6").read("train")["clip_id"].to_pylist() for _ in range(2)]
    assert parts[0] == parts[1] and 0 < len(parts[0]) < 12


def test_a_text_or_comment_in_a_condition_may_have_the_name_of_a_function(two: tuple[Packed, Packed]) -> None:
    where = "label <> '口 now' and label <> 'it''s random()' -- as of today()"
    pack = Pack("", two[0].samples, two[0].store)
    assert Packs([pack], where).read("train").num_rows == 12


def test_a_table_of_another_pack_is_refused(two: tuple[Packed, Packed], tmp_path: Path) -> None:
    of_b = with_crops(two[1], tmp_path)
    with pytest.raises(
        ConfigError, match=r"pack a: train\.where: .*crops\.parquet lacks \d+ clips of .*samples"
    ):
        packs_of(two, "sharpness > 1", a={"crops": of_b}).read("train")


def test_a_missing_table_of_the_condition_is_named(two: tuple[Packed, Packed], tmp_path: Path) -> None:
    pack = Pack("", two[0].samples, two[0].store, crops=tmp_path / "crops.parquet")
    with pytest.raises(
        ConfigError, match=r"train\.where needs .*crops\.parquet, which is missing; run `pipeline crop`"
    ):
        Packs([pack], "num_frames > 1").read("train")


def with_audit(packed: Packed, folder: Path, label_of_last: str | None = None) -> Path:
    """Writes an audit of the first ten training clips; every third is doubtful."""
    rows = read_samples(packed.samples, "train").slice(0, 10).to_pylist()
    contents = [
        dict.fromkeys(AUDIT.names, 0.0)
        | {name: row[name] for name in ("clip_id", "label")}
        | {"reading": "", "fold": None, "contradiction": float(number), "is_doubtful": number % 3 == 0}
        for number, row in enumerate(rows)
    ]
    contents[-1]["label"] = label_of_last or contents[-1]["label"]
    folder.mkdir(exist_ok=True)
    write_table(folder / "audit.parquet", table_from_rows(contents, AUDIT), AUDIT)
    return folder / "audit.parquet"


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        ("audit.contradiction < 4 and not is_doubtful", [1, 2]),
        ("contradiction > 7", [8, 9]),
        ("is_doubtful is not true", [1, 2, 4, 5, 7, 8, 10, 11]),  # 10 and 11 were not audited
        ("num_frames > 0 and audit.clip_id is null", [10, 11]),
    ],
)
def test_a_condition_may_use_an_audit_that_lacks_clips(
    two: tuple[Packed, Packed], tmp_path: Path, where: str, numbers: list[int]
) -> None:
    pack = Pack("", two[0].samples, two[0].store, further={"audit": with_audit(two[0], tmp_path)})
    assert Packs([pack], where).read("train")["clip_id"].to_pylist() == [f"train_{n:03d}" for n in numbers]


def test_an_audit_of_a_former_label_says_nothing_of_the_clip(
    two: tuple[Packed, Packed], tmp_path: Path
) -> None:
    pack = Pack(
        "", two[0].samples, two[0].store, further={"audit": with_audit(two[0], tmp_path, "四四四四四")}
    )
    kept = Packs([pack], "contradiction > 7").read("train")
    assert kept["clip_id"].to_pylist() == ["train_008"], "the label of train_009 was corrected"


def test_another_audit_is_another_plan(two: tuple[Packed, Packed], tmp_path: Path) -> None:
    first, second = with_audit(two[0], tmp_path / "a"), with_audit(two[0], tmp_path / "b", "四四四四四")
    plans = [
        Packs(
            [Pack("", two[0].samples, two[0].store, further={"audit": path})], "contradiction > 7"
        ).training_hash
        for path in (first, first, second)
    ]
    assert plans[0] == plans[1] != plans[2]


def test_each_pack_has_its_own_audit(two: tuple[Packed, Packed], tmp_path: Path) -> None:
    entries = [
        DataPack(name=name, samples=str(packed.samples), shards=str(packed.shards), **audit)
        for name, packed, audit in zip(
            "ab", two, ({"audit": str(with_audit(two[0], tmp_path))}, {}), strict=True
        )
    ]
    default = Pack("", Path("none"), two[0].store)
    packs = Packs.of(entries[:1], default, MachineParams(), "audit.contradiction > 8")
    assert packs.read("train")["clip_id"].to_pylist() == ["train_009"]
    with pytest.raises(ConfigError, match=r"pack b: train\.where is not a .*the pack names no audit"):
        Packs.of(entries, default, MachineParams(), "audit.contradiction > 8").read("train")


@pytest.mark.parametrize("where", ["audit.contradiction < 2", "not is_doubtful"])
def test_a_condition_on_a_missing_audit_names_its_command(
    two: tuple[Packed, Packed], tmp_path: Path, where: str
) -> None:
    pack = Pack("", two[0].samples, two[0].store, further={"audit": tmp_path / "audit.parquet"})
    with pytest.raises(ConfigError, match=r"audit\.parquet is missing, `pipeline audit` writes it; example"):
        Packs([pack], where).read("train")
    assert Packs([pack], "num_frames > 12").read("train").num_rows, "other conditions need no audit"
    with pytest.raises(ConfigError) as refused:
        Packs([pack], "sharpnes > 1").read("train")
    assert "audit" not in str(refused.value)


def test_a_shard_of_an_unknown_pack_is_refused(two: tuple[Packed, Packed]) -> None:
    with pytest.raises(ShardError, match=r"'c/train/train-000000\.tar' is not a shard of the packs a, b"):
        packs_of(two).store.local("c/train/train-000000.tar")
    assert "a/train/train-000000.tar" in packs_of(two).store.names()

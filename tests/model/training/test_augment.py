"""Augmentation of clips: each change against another tool or its definition, and with its own switch."""

import math
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from model.losses import label_steps_needed
from model.networks.network_input import network_input
from model.settings import AugmentParams, ModelParams, TrainParams
from model.training.augment import ClipChange, augmented_input, draw_change, training_input
from model.vocabulary import Vocabulary
from shards.settings import LoaderParams
from shards.stream import ClipBatch
from tests.support.networks import ALL_ON

SMALL = ModelParams(frame_height=32, frame_width=32)
WINDOW = ModelParams(window_px=88, frame_height=88, frame_width=88)
NOTHING = ClipChange()
SWITCHES = {
    "flip": ("mirror",),
    "zoom_sigma": ("zoom_y", "zoom_x"),
    "rotation_deg": ("rotation_deg",),
    "shift_px": ("shift_y_px", "shift_x_px"),
    "speed_change": ("speed",),
    "gain_sigma": ("gain", "offset"),
    "time_masks_per_s": ("masks",),
}


def noise(num_clips: int, num_frames: int, height: int = 96, width: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_frames)
    return torch.randint(
        0, 256, (num_clips, num_frames, height, width), dtype=torch.uint8, generator=generator
    )


def smooth_picture(height: int = 96, width: int = 96) -> np.ndarray:
    """Returns a picture of large blobs that differs in every direction, and that resampling does not blur."""
    rng = np.random.default_rng(3)
    return cv2.GaussianBlur(rng.integers(0, 256, (height, width), np.uint8), (0, 0), 4)


# -- the draw ----------------------------------------------------------------------------------------------


def test_augmentation_is_a_function_of_seed_epoch_and_clip() -> None:
    first = draw_change(ALL_ON, 0, 1, "a", 3.0)
    assert first == draw_change(ALL_ON, 0, 1, "a", 3.0)
    for key in ((1, 1, "a"), (0, 2, "a"), (0, 1, "b")):
        other = draw_change(ALL_ON, *key, 3.0)
        differing = {name for name, value in asdict(other).items() if value != getattr(first, name)}
        assert differing >= {"zoom_y", "zoom_x", "rotation_deg", "speed", "gain", "offset"}
    assert draw_change(AugmentParams(flip=False), 0, 1, "a", 3.0) == NOTHING


@pytest.mark.parametrize("switch", SWITCHES)
def test_switching_one_change_off_leaves_the_others_as_they_were(switch: str) -> None:
    off = ALL_ON.model_copy(update={switch: 0})
    for number in range(50):
        on, without = (draw_change(params, 0, 1, f"clip{number}", 3.0) for params in (ALL_ON, off))
        assert without == replace(on, **{name: getattr(NOTHING, name) for name in SWITCHES[switch]})


def test_every_change_has_a_switch() -> None:
    """Fails for a new parameter without a change here, and for a new change without a switch."""
    assert {field.name for field in fields(ClipChange)} == {
        name for names in SWITCHES.values() for name in names
    }
    assert set(AugmentParams.model_fields) == {*SWITCHES, "time_mask_s"}


def test_draws_have_the_spread_of_the_parameters() -> None:
    params = ALL_ON.model_copy(update={"shift_px": 4.9, "rotation_deg": 7})
    drawn = [draw_change(params, 0, 0, str(number), 3.0) for number in range(4000)]
    assert np.mean([change.mirror for change in drawn]) == pytest.approx(0.5, abs=0.03)
    for name in ("shift_y_px", "shift_x_px"):  # whole pixels, all equally often
        shifts, counts = np.unique([getattr(change, name) for change in drawn], return_counts=True)
        assert shifts.tolist() == list(range(-4, 5))
        assert counts.min() > 4000 / 9 * 0.8 and counts.max() < 4000 / 9 * 1.2
    for name, low, high in (("speed", 0.9, 1.1), ("rotation_deg", -7, 7)):
        values = np.array([getattr(change, name) for change in drawn])
        assert (
            low <= values.min() < low + (high - low) / 100
            and high - (high - low) / 100 < values.max() <= high
        )
        assert values.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.05)
    for name in ("zoom_y", "zoom_x", "gain"):
        assert np.std(np.log([getattr(change, name) for change in drawn])) == pytest.approx(0.1, rel=0.05)
    assert len({change.zoom_y for change in drawn}) == 4000


@pytest.mark.parametrize(("masks_per_s", "duration_s"), [(1.0, 3.0), (1.0, 2.6), (0.5, 4.2), (2.0, 0.3)])
def test_time_masks_have_the_requested_number_and_length(masks_per_s: float, duration_s: float) -> None:
    params = AugmentParams(time_masks_per_s=masks_per_s, time_mask_s=0.4)
    drawn = [draw_change(params, 0, 0, str(number), duration_s).masks for number in range(3000)]
    numbers = np.array([len(masks) for masks in drawn])
    assert numbers.mean() == pytest.approx(masks_per_s * duration_s, abs=0.05)
    assert numbers.max() - numbers.min() <= 1
    start, length = np.array([mask for masks in drawn for mask in masks]).T
    assert length.min() >= 0 and length.max() * duration_s <= 0.4
    assert length.mean() * duration_s == pytest.approx(0.2, abs=0.01)
    assert start.min() >= 0 and (start + length)[length <= 1].max() <= 1


# -- changes of the picture --------------------------------------------------------------------------------


@pytest.mark.parametrize("standardise", ["given", "clip"])
@pytest.mark.parametrize(
    ("window_px", "frame_px"), [(96, 32), (64, 32), (96, 96), (88, 88), (72, 30), (96, 128)]
)
def test_without_changes_the_input_equals_that_of_scoring(
    window_px: int, frame_px: int, standardise: str
) -> None:
    sizes = {"window_px": window_px, "frame_height": frame_px, "frame_width": frame_px}
    params = SMALL.model_copy(update={**sizes, "standardise": standardise, "subtract_mean": 0.5})
    video, lengths = noise(2, 7), torch.tensor([7, 5])
    plain = network_input(video, lengths, params)
    off = AugmentParams(flip=False)
    changes = [draw_change(off, 0, 0, clip_id, 0.3) for clip_id in ("a", "b")]
    augmented, new_lengths = augmented_input(video, lengths, changes, params)
    assert torch.equal(augmented, plain)
    assert new_lengths.tolist() == [7, 5]
    # resampling without zoom and rotation changes nothing
    resampled, _ = augmented_input(video, lengths, [NOTHING, ClipChange(rotation_deg=1e-9)], params)
    torch.testing.assert_close(resampled, plain, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("shift_y_px", "shift_x_px"), [(0, 0), (4, -4), (-3, 1)])
def test_crops_and_mirrors_are_exact_slices(shift_y_px: int, shift_x_px: int, mirror: bool) -> None:
    video, lengths = noise(2, 5, 96, 100), torch.tensor([5, 4])
    change = ClipChange(mirror=mirror, shift_y_px=shift_y_px, shift_x_px=shift_x_px)
    augmented, _ = augmented_input(video, lengths, [change, NOTHING], WINDOW)
    top, left = 4 + shift_y_px, 6 + shift_x_px
    sliced = video[0, :, top : top + 88, left : left + 88]
    expected = (sliced.flip(2) if mirror else sliced).float() / 255
    assert torch.equal(augmented[0, 0], (expected - WINDOW.input_mean) / WINDOW.input_std)
    assert torch.equal(augmented[1:], network_input(video, lengths, WINDOW)[1:])


def test_a_shift_beyond_the_crop_repeats_its_border() -> None:
    video = noise(1, 2)
    params = ModelParams(input_mean=0, input_std=1)
    shifted = augmented_input(video, torch.tensor([2]), [ClipChange(shift_y_px=3, shift_x_px=-2)], params)[0]
    padded = np.pad(video[0].numpy(), [(0, 0), (3, 3), (2, 2)], mode="edge")[:, 6:, :96] / np.float32(255)
    np.testing.assert_allclose(shifted[0, 0], padded, atol=1e-6)


@pytest.mark.parametrize("frame_px", [32, 88])
def test_a_shifted_clip_is_resized_as_in_scoring(frame_px: int) -> None:
    """The exact crop, then the same area averaging: training and scoring have the same sharpness."""
    params = WINDOW.model_copy(update={"frame_height": frame_px, "frame_width": frame_px})
    video, lengths = noise(1, 3, 100, 100), torch.tensor([3])
    shifted, _ = augmented_input(
        video[:, :, 2:98, 2:98], lengths, [ClipChange(shift_y_px=2, shift_x_px=-1)], params
    )
    moved = network_input(video[:, :, 4:100, 1:97], lengths, params)
    margin = 4 * frame_px // 88  # the border is repeated there
    inner = slice(0, frame_px - margin)
    torch.testing.assert_close(shifted[..., inner, inner], moved[..., inner, inner], rtol=0, atol=1e-5)


CHANGES_IN_SPACE = [
    ClipChange(rotation_deg=10),
    ClipChange(rotation_deg=-30),
    ClipChange(zoom_y=1.2, zoom_x=0.9),
    ClipChange(rotation_deg=20, zoom_y=1.3, zoom_x=0.8, shift_y_px=3, shift_x_px=-2),
    ClipChange(rotation_deg=20, zoom_y=1.3, zoom_x=0.8, shift_y_px=3, shift_x_px=-2, mirror=True),
]


def picture_of(change: ClipChange, picture: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Returns the same change by OpenCV: first the shift, then zoom, rotation and mirror about the centre."""
    (height, width), (out_height, out_width) = picture.shape, window
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    turned = cv2.getRotationMatrix2D((0, 0), change.rotation_deg, 1)[:, :2]  # anticlockwise
    linear = np.diag([-1 if change.mirror else 1, 1]) @ turned @ np.diag([change.zoom_x, change.zoom_y])
    seen = middle + np.array([change.shift_x_px, change.shift_y_px])
    offset = np.array([(out_width - 1) / 2, (out_height - 1) / 2]) - linear @ seen
    return cv2.warpAffine(
        picture.astype(np.float32),
        np.column_stack([linear, offset]),
        (out_width, out_height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


@pytest.mark.parametrize("change", CHANGES_IN_SPACE)
def test_rotation_and_zoom_against_opencv(change: ClipChange) -> None:
    picture = smooth_picture(96, 104)
    params = ModelParams(window_px=88, frame_height=88, frame_width=88, input_mean=0, input_std=1)
    video = torch.from_numpy(np.stack([picture] * 2))[None]
    augmented, _ = augmented_input(video, torch.tensor([2]), [change], params)
    expected = picture_of(change, picture, (88, 88)) / 255
    np.testing.assert_allclose(augmented[0, 0, 1], expected, atol=0.003)  # OpenCV has a resolution of 1/32 px
    unturned = picture_of(replace(change, rotation_deg=-change.rotation_deg, zoom_y=1.0), picture, (88, 88))
    assert np.abs(unturned / 255 - expected).max() > 0.05, "a wrong direction would show"


def test_a_window_of_another_aspect_ratio_is_rotated_like_the_crop() -> None:
    """A circle stays the same: the face is rotated before it is resized to 48 by 96."""
    params = ModelParams(frame_height=48, frame_width=96, input_mean=0, input_std=1)
    rows, columns = np.mgrid[:96, :96] - 47.5
    disc = np.where(rows**2 + columns**2 < 40**2, 200, 40).astype(np.uint8)
    disc = cv2.GaussianBlur(disc, (0, 0), 2)
    video = torch.from_numpy(disc)[None, None]
    turned, _ = augmented_input(video, torch.tensor([1]), [ClipChange(rotation_deg=45)], params)
    torch.testing.assert_close(turned, network_input(video, torch.tensor([1]), params), rtol=0, atol=0.05)


def test_contrast_and_brightness_are_linear_in_the_normalised_levels() -> None:
    video, lengths = noise(2, 6), torch.tensor([6, 4])
    for standardise in ("given", "clip"):
        params = SMALL.model_copy(update={"standardise": standardise, "subtract_mean": 0.3})
        plain = network_input(video, lengths, params)
        changed, _ = augmented_input(video, lengths, [ClipChange(gain=1.3, offset=-0.2), NOTHING], params)
        torch.testing.assert_close(changed[0], plain[0] * 1.3 - 0.2)
        assert torch.equal(changed[1], plain[1]) and not changed[1, :, 4:].any()


# -- changes in time ---------------------------------------------------------------------------------------


def test_speed_stretches_time_and_leaves_padding_empty() -> None:
    video, lengths = noise(3, 8), torch.tensor([8, 8, 5])
    plain = network_input(video, lengths, SMALL)
    changes = [ClipChange(speed=2.0), ClipChange(speed=0.5), NOTHING]
    played, new_lengths = augmented_input(video, lengths, changes, SMALL)
    assert new_lengths.tolist() == [4, 16, 5] and played.shape[2] == 16
    torch.testing.assert_close(played[0, :, :4], plain[0, :, ::2])
    torch.testing.assert_close(played[1, :, 1], (plain[1, :, 0] + plain[1, :, 1]) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(played[1, :, 15], plain[1, :, 7])  # no frame follows the last one
    assert torch.equal(played[2, :, :5], plain[2, :, :5])
    assert not played[0, :, 4:].any() and not played[2, :, 5:].any()


@pytest.mark.parametrize("speed", [0.9, 0.97, 1.04, 1.1])
def test_speed_against_interpolation_by_numpy(speed: float) -> None:
    video, lengths = noise(1, 40, 32, 32), torch.tensor([40])
    params = ModelParams(window_px=32, frame_height=32, frame_width=32, input_mean=0, input_std=1)
    played, new_lengths = augmented_input(video, lengths, [ClipChange(speed=speed)], params)
    assert new_lengths.tolist() == [round(40 / speed)]
    frames = np.arange(round(40 / speed)) * speed
    expected = [np.interp(frames, np.arange(40), video[0, :, y, x] / 255) for y, x in ((3, 4), (30, 0))]
    np.testing.assert_allclose([played[0, 0, :, 3, 4], played[0, 0, :, 30, 0]], expected, atol=1e-4)


@pytest.mark.parametrize("subtract_mean", [0.0, 1.0])
def test_a_masked_frame_is_the_mean_frame_of_its_own_clip(subtract_mean: float) -> None:
    params = SMALL.model_copy(update={"subtract_mean": subtract_mean})
    video, lengths = noise(2, 12), torch.tensor([12, 8])
    plain = network_input(video, lengths, params)
    changes = [ClipChange(masks=((0.0, 0.25), (0.5, 0.1))), ClipChange(masks=((0.25, 0.25),))]
    masked, _ = augmented_input(video, lengths, changes, params)
    for clip, (num_frames, hidden) in enumerate(((12, {0, 1, 2, 6}), (8, {2, 3}))):
        mean = plain[clip, 0, :num_frames].mean(0)
        for frame in range(12):
            expected = mean if frame in hidden else plain[clip, 0, frame]
            torch.testing.assert_close(masked[clip, 0, frame], expected, rtol=1e-4, atol=1e-5)
        assert subtract_mean == 0 or float(mean.abs().max()) < 1e-5


# -- a batch of training -----------------------------------------------------------------------------------


def batch_of(clips: list[tuple[str, str, torch.Tensor]]) -> ClipBatch:
    """Returns a batch of clips: (clip_id, label, video)."""
    num_frames = [len(video) for _, _, video in clips]
    video_BTHW = torch.zeros(len(clips), max(num_frames), *clips[0][2].shape[1:], dtype=torch.uint8)
    for row, (_, _, video) in enumerate(clips):
        video_BTHW[row, : len(video)] = video
    clip_ids, labels = tuple(clip[0] for clip in clips), tuple(clip[1] for clip in clips)
    return ClipBatch(video_BTHW, torch.tensor(num_frames), clip_ids, labels, tuple(range(len(clips))))


def inputs_of(batch: ClipBatch, augment: AugmentParams, model: ModelParams = SMALL, epoch: int = 3) -> tuple:
    vocabulary = Vocabulary.of_labels(["一二三四"], with_syllables=True)
    job = SimpleNamespace(train=TrainParams(augment=augment), loader=LoaderParams(seed=5))
    samples = SimpleNamespace(num_rows=100)
    data = SimpleNamespace(
        fps=25.0,
        vocabulary=vocabulary,
        model=model,
        samples=samples,
        sound_tokens=None,
        labels_of=lambda batch: (batch.labels, np.ones(len(batch.labels), np.float32)),
    )
    return training_input(batch, job, data, epoch, torch.device("cpu"))


def test_a_clip_changes_in_the_same_way_in_any_batch() -> None:
    clips = [(f"clip{n}", "一二", noise(1, 30 + 7 * n)[0]) for n in range(4)]
    whole, lengths, _ = inputs_of(batch_of(clips), ALL_ON)
    for order in ([2], [3, 1], [1, 0, 2, 3]):
        part, part_lengths, _ = inputs_of(batch_of([clips[n] for n in order]), ALL_ON)
        for row, number in enumerate(order):
            assert part_lengths[row] == lengths[number]
            num_frames = int(lengths[number])
            torch.testing.assert_close(part[row, :, :num_frames], whole[number, :, :num_frames])
            assert not part[row, :, num_frames:].any()
    assert not torch.equal(whole, inputs_of(batch_of(clips), ALL_ON, epoch=4)[0])


@pytest.mark.parametrize("temporal_stride", [1, 2])
def test_a_clip_is_never_too_fast_for_ctc_to_spell_its_label(temporal_stride: int) -> None:
    model = SMALL.model_copy(update={"temporal_stride": temporal_stride})
    fastest = AugmentParams(flip=False, speed_change=0.5)
    vocabulary = Vocabulary.of_labels(["一二三四"], with_syllables=True)
    limited = 0
    for number in range(60):
        label = "一一二三四三"[: 1 + number % 6]
        needed = label_steps_needed(label, vocabulary)
        num_frames = (needed - 1) * temporal_stride + 1 + number % 4  # enough, or slightly more
        clip = (f"clip{number}", label, noise(1, num_frames)[0])
        _, (played,), targets = inputs_of(batch_of([clip]), fastest, model)
        assert -(-int(played) // temporal_stride) >= needed
        assert targets.num_characters_B.tolist() == [len(label)]
        drawn = draw_change(fastest, 5, 3, clip[0], num_frames / 25)
        limited += drawn.num_frames(num_frames) < played
        assert int(played) >= min(num_frames, drawn.num_frames(num_frames))
    assert limited > 10, "these labels are dense, so the limit applies"


@pytest.mark.gpu
def test_the_gpu_gives_what_the_cpu_gives(cuda: str) -> None:
    video, lengths = noise(4, 30), torch.tensor([30, 22, 30, 17])
    for params in (ALL_ON, ALL_ON.model_copy(update={"zoom_sigma": 0, "rotation_deg": 0})):
        changes = [draw_change(params, 0, 0, str(clip), 1.2) for clip in range(4)]
        here, new_lengths = augmented_input(video, lengths, changes, WINDOW)
        there, lengths_there = augmented_input(video.to(cuda), lengths, changes, WINDOW)
        assert lengths_there.tolist() == new_lengths.tolist()
        torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=2e-3)

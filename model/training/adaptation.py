"""Adapts a model to one person with few clips: statistics, then low-rank changes, as long as held-out clips gain.

How long to train is decided by cross-validation within the clips: each fold's clips are read by a model that was
adapted to the others. If no length reads them better than the model as it is, nothing is changed.

Shapes: B clips, T frames, H×W px.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from model.adapters import Changes
from model.decoding.reader import LipReader
from model.device import copy_of, fastest_threads
from model.losses import LossParams, joint_loss_B
from model.metrics import EditCounts, edit_counts
from model.networks.network import Outputs
from model.networks.network_input import targets_of
from model.settings import DecodeParams, TrainParams
from model.training.augment import augmented_input, draw_change, limit_speed
from shards.files import Progress

MIN_CLIPS, MAX_CLIPS = 5, 200
NUM_FOLDS = 5
STEPS = (0, 20, 40, 60, 80)
"""Lengths that cross-validation compares; 0: only the statistics."""
BATCH = 4
NORM_RATE, PRODUCT_RATE = 1e-2, 1e-3
"""Learning rates. A model of GRID's s1 and 8 clips of s26, CER by cross-validation: 65 % before, 52 % by statistics,
39 % with these rates; 40 % by norms alone; 41 % with 4e-3 for both, but then the loss rises again."""
WARMUP_STEPS = 8
PRIOR_S = 3.0
"""Video whose weight the model's own statistics have."""
OnStep = Callable[[], None]


class PersonClip(NamedTuple):
    """A clip of the person; `label` is "" without labels."""

    clip_id: str
    label: str
    clip_THW: NDArray[np.uint8]


@dataclass
class Length:
    """How clips that adaptation did not see are read after some steps."""

    steps: int | None
    """None: the model as it is."""
    loss: float = 0.0
    """Nats, over all clips."""
    counts: dict[str, EditCounts] = field(default_factory=dict)
    """By clip_id."""

    @property
    def cer(self) -> float:
        return sum(self.counts.values(), EditCounts()).cer


class Adaptation(NamedTuple):
    """The changes for a person, and what cross-validation found; the first length is the model as it is."""

    changes: Changes | None
    """None: no length reads better than the model as it is."""
    lengths: list[Length]
    best: Length


def adapt(
    reader: LipReader,
    clips: Sequence[PersonClip],
    train: TrainParams,
    decode: DecodeParams,
    seed: int,
    on_progress: Progress,
    num_threads: int = 0,
) -> Adaptation:
    """Returns the changes that read clips of this person best, by cross-validation; the same for the same `seed`.

    `train` is how the model was trained: its losses and its augmentation. `num_threads` is machine.threads.
    """
    if reader.device.type == "cpu":
        step = partial(_trial_step, reader, clips[:BATCH], train)
        torch.set_num_threads(num_threads or fastest_threads(reader.network, step)[0])
    lengths = [Length(None), *map(Length, STEPS)]
    num_folds = min(NUM_FOLDS, len(clips))
    fold_N = np.random.default_rng(seed).permutation(len(clips)) % num_folds
    done, total = 0, max(STEPS) * (num_folds + 1)

    def on_step() -> None:
        nonlocal done
        done += 1
        on_progress(done, total)

    for fold in range(num_folds):
        held = [clip for clip, own in zip(clips, fold_N, strict=True) if own == fold]
        others = [clip for clip, own in zip(clips, fold_N, strict=True) if own != fold]
        _score(reader, held, train, decode, lengths[0])
        for steps, changes in _training(reader, others, train, max(STEPS), seed, on_step):
            if steps in STEPS:
                length = lengths[1 + STEPS.index(steps)]
                _score(adapted(reader, changes), held, train, decode, length)
    best = min(lengths, key=lambda length: (length.cer, length.loss))
    if best.steps is None:
        return Adaptation(None, lengths, best)
    done = total - best.steps  # the last training may be shorter than those of the folds
    *_, (_, changes) = _training(reader, clips, train, best.steps, seed, on_step)
    return Adaptation(changes, lengths, best)


def _trial_step(
    reader: LipReader, batch: Sequence[PersonClip], train: TrainParams, network: nn.Module
) -> torch.Tensor:
    return _loss(reader, lambda arguments: network(*arguments), batch, train, 0, 0)


def adapt_statistics(reader: LipReader, clips: Sequence[PersonClip]) -> Changes:
    """Returns changes of the statistics alone, which need no labels."""
    unchanged = Changes.none_of(reader.network.state_dict(), torch.Generator(), rank=0)
    return replace(unchanged, statistics=_statistics(reader, clips))


def adapted(reader: LipReader, changes: Changes) -> LipReader:
    """Returns a reader with these changes; `reader` keeps its weights."""
    network = copy_of(reader.network)
    network.load_state_dict(changes.added_to(reader.network.state_dict()))
    return replace(reader, network=network)


@torch.no_grad()
def _statistics(reader: LipReader, clips: Sequence[PersonClip]) -> dict[str, torch.Tensor]:
    """Returns how far the batch normalisations' statistics move towards those of these clips."""
    network = copy_of(reader.network)
    norms = {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all clips
        norm.train()
    for clip in clips:  # one at a time: padding would count
        replace(reader, network=network).encode(*_padded([clip]))
    seconds = sum(len(clip.clip_THW) for clip in clips) / reader.fps
    ours, theirs = reader.network.state_dict(), network.state_dict()
    share = seconds / (seconds + PRIOR_S)
    return {
        name: share * (theirs[name] - ours[name])
        for norm in norms
        for name in (f"{norm}.running_mean", f"{norm}.running_var")
    }


def _training(
    reader: LipReader,
    clips: Sequence[PersonClip],
    train: TrainParams,
    num_steps: int,
    seed: int,
    on_step: OnStep,
) -> Iterator[tuple[int, Changes]]:
    """Yields the changes before the first step and after each one; the tensors learn on when it continues.

    Draws depend on seed, step and clips alone.
    """
    weights = reader.network.state_dict()
    changes = Changes.none_of(weights, torch.Generator().manual_seed(seed))
    changes = replace(changes, statistics=_statistics(reader, clips))
    network = copy_of(reader.network).requires_grad_(False).train()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    for tensor in changes.learnt:
        tensor.requires_grad_(True)
    factors = [factor for pair in changes.products.values() for factor in pair]
    optimizer = torch.optim.AdamW(
        [
            {"params": factors, "peak": PRODUCT_RATE},
            {"params": [*changes.norms.values()], "peak": NORM_RATE},
        ],
        weight_decay=0.0,
    )
    yield 0, changes
    with torch.random.fork_rng():
        for step, (epoch, batch) in zip(range(num_steps), _batches(clips, seed), strict=False):
            torch.manual_seed(seed * num_steps + step)  # of dropout
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * min(1.0, (step + 1) / WARMUP_STEPS)
            merged = changes.added_to(weights)
            loss = _loss(reader, partial(functional_call, network, merged), batch, train, seed, epoch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(changes.learnt, train.gradient_clip)
            optimizer.step()
            on_step()
            yield step + 1, changes


def _loss(
    reader: LipReader,
    forward: Callable[[tuple[Any, ...]], Outputs],
    batch: Sequence[PersonClip],
    train: TrainParams,
    seed: int,
    epoch: int,
) -> torch.Tensor:
    """Returns nats per character of the augmented clips; `forward` gets the arguments of the network."""
    changes = [
        limit_speed(
            draw_change(train.augment, seed, epoch, clip.clip_id, len(clip.clip_THW) / reader.fps),
            clip.label,
            len(clip.clip_THW),
            reader.vocabulary,
            reader.model,
        )
        for clip in batch
    ]
    video_BTHW, num_frames_B = _padded(batch)
    inputs, played_B = augmented_input(video_BTHW.to(reader.device), num_frames_B, changes, reader.model)
    labels = [clip.label for clip in batch]
    targets = targets_of(labels, reader.vocabulary, reader.device)
    loss_B = joint_loss_B(forward((inputs, played_B, targets)), targets, _losses(reader, train))
    return loss_B.sum() / sum(map(len, labels))


def _batches(clips: Sequence[PersonClip], seed: int) -> Iterator[tuple[int, list[PersonClip]]]:
    """Yields shuffled batches for ever, each with its epoch."""
    epoch = 0
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(len(clips))
        for first in range(0, len(clips), BATCH):
            yield epoch, [clips[number] for number in order[first : first + BATCH]]
        epoch += 1


@torch.no_grad()
def _score(
    reader: LipReader, clips: Sequence[PersonClip], train: TrainParams, decode: DecodeParams, length: Length
) -> None:
    """Adds the loss and the errors of `clips` to `length`."""
    for first in range(0, len(clips), BATCH):
        batch = clips[first : first + BATCH]
        video_BTHW, num_frames_B = _padded(batch)
        encoded_BSE, num_steps_B = reader.encode(video_BTHW, num_frames_B)
        targets = targets_of([clip.label for clip in batch], reader.vocabulary, reader.device)
        outputs = reader.network.outputs(encoded_BSE, num_steps_B, targets)
        length.loss += float(joint_loss_B(outputs, targets, _losses(reader, train)).sum())
        readings = reader.decode(encoded_BSE, num_steps_B, num_frames_B, decode)
        for clip, reading in zip(batch, readings, strict=True):
            length.counts[clip.clip_id] = edit_counts(reader.reference(clip.label, decode), reading.text)


def _losses(reader: LipReader, train: TrainParams) -> LossParams:
    """Returns the losses of the training, of the heads that the model has, without the right-to-left decoder."""
    heads = reader.heads
    syllables = 1.0 if heads == ["syllables"] else train.syllable_weight if "syllables" in heads else 0.0
    ctc = 1.0 if "decoder" not in heads else train.ctc_weight if "ctc" in heads else 0.0
    return LossParams(ctc, train.label_smoothing, 0.0, syllables)


def _padded(clips: Sequence[PersonClip]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the video (B, T, H, W), uint8, and the numbers of frames (B,)."""
    longest = max(len(clip.clip_THW) for clip in clips)
    video_BTHW = np.zeros((len(clips), longest, *clips[0].clip_THW.shape[1:]), np.uint8)
    for padded_THW, clip in zip(video_BTHW, clips, strict=True):
        padded_THW[: len(clip.clip_THW)] = clip.clip_THW
    return torch.from_numpy(video_BTHW), torch.tensor([len(clip.clip_THW) for clip in clips])

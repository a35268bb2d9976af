"""Learns the sound tokens of a run from the sound of its training clips, by k-means.

Shapes: N vectors, D features of a vector, V tokens.
"""

from functools import partial

import numpy as np
import pyarrow as pa
import torch

from model.checkpoints import load_checkpoint, reported_as_modified
from model.networks.sound_head import SoundTokens, nearest, sound_features
from model.runs import RunFolder
from model.training.last_checkpoint import newest_intact
from model.training.pixel_statistics import measured_rows
from model.training.ranks import SINGLE_PROCESS, Ranks
from model.training.training_data import TrainingJob
from shards.errors import ShardError, TrainingError
from shards.open_shards import OpenShards
from shards.sample_reader import CatalogueRow, read_sound
from shards.sound import BANDS
from shards.store import ShardStore

MAX_VECTORS = 60_000
"""Vectors that k-means sees, of about 200 clips: 300 for each of 200 tokens."""
MAX_ROUNDS = 40
_SMALLEST_DEVIATION = 1e-3


def with_sound_tokens(
    job: TrainingJob, run: RunFolder, samples: pa.Table, ranks: Ranks = SINGLE_PROCESS
) -> SoundTokens | None:
    """Returns the run's sound tokens; None without train.audio_weight.

    A resumed run takes them from its checkpoint. A fresh run learns them: the first rank learns, all ranks get its
    values, and all ranks must call this. Raises the errors of `learn_sound_tokens`, and CheckpointError.
    """
    if job.train.audio_weight == 0:
        return None
    num_features = 2 * BANDS
    values_N = torch.zeros((2 + job.train.audio_tokens) * num_features)
    if ranks.is_first:
        tokens = _resumed_tokens(job, run) or learn_sound_tokens(
            job.packs.store,
            samples,
            job.train.audio_tokens,
            job.train.seed,
            leave_out_bad=job.loader.max_bad_fraction > 0,
        )
        values_N = torch.cat([tensor.flatten() for tensor in tokens])
    mean_D, deviation_D, *centres = ranks.gathered(values_N)[0].split(num_features)
    return SoundTokens(mean_D, deviation_D, torch.stack(centres))


def _resumed_tokens(job: TrainingJob, run: RunFolder) -> SoundTokens | None:
    """Returns the tokens of the checkpoint that `job` resumes from; None for a new run."""
    if job.resume:
        state, path = load_checkpoint(job.resume, mapped=True), job.resume
    elif found := newest_intact(run, mapped=True):
        state, path, _ = found
    else:
        return None
    with reported_as_modified(path):
        # a checkpoint without sound is refused later, with a reason
        tokens = SoundTokens(**state["audio_head"]["tokens"]) if "audio_head" in state else None
    if tokens and tokens.centre_VD.shape == (job.train.audio_tokens, 2 * BANDS):
        return SoundTokens(*(tensor.clone() for tensor in tokens))
    return None


def learn_sound_tokens(
    store: ShardStore, samples: pa.Table, num_tokens: int, seed: int, leave_out_bad: bool = False
) -> SoundTokens:
    """Returns the tokens of the sound of about 200 clips of `samples`.

    Raises ShardError for a bad clip, unless `leave_out_bad` is set, and TrainingError if no clip has sound.
    """
    samples = samples.filter(samples["audio_sha256"].is_valid())
    shards, found = OpenShards(store), []
    for row in measured_rows(samples).tolist() if len(samples) else ():
        place = CatalogueRow.of(samples.slice(row, 1).to_pylist()[0])
        try:
            sound_TKM = shards.read(shards[place.shard], partial(read_sound, row=place))
        except ShardError:
            if not leave_out_bad:
                raise
            continue
        found.append(sound_features(torch.from_numpy(sound_TKM.copy())[None])[0])
    if not found:
        raise TrainingError(
            "train.audio_weight: no sound of the training clips can be read; run `pipeline verify`, or set it to 0"
        )
    features_ND = torch.cat(found)
    chosen = np.linspace(0, len(features_ND) - 1, min(len(features_ND), MAX_VECTORS)).round().astype(int)
    features_ND = features_ND[torch.from_numpy(chosen)]
    mean_D, deviation_D = features_ND.mean(dim=0), features_ND.std(dim=0, correction=0)
    deviation_D = deviation_D.clamp(min=_SMALLEST_DEVIATION)
    return SoundTokens(mean_D, deviation_D, k_means((features_ND - mean_D) / deviation_D, num_tokens, seed))


def k_means(vectors_ND: torch.Tensor, num_centres: int, seed: int) -> torch.Tensor:
    """Returns the centres (V, D) of Lloyd's algorithm after k-means++ (Arthur and Vassilvitskii 2007).

    A centre without vectors moves to one of the vectors that are farthest from their centres. With fewer vectors
    than centres, some centres are equal.
    """
    centre_VD = _first_centres(vectors_ND, num_centres, np.random.default_rng(seed))
    nearest_N = torch.full((len(vectors_ND),), -1)
    for _ in range(MAX_ROUNDS):
        before_N, nearest_N = nearest_N, nearest(vectors_ND, centre_VD)
        if torch.equal(before_N, nearest_N):
            break
        count_V = torch.bincount(nearest_N, minlength=num_centres)
        sum_VD = torch.zeros_like(centre_VD).index_add_(0, nearest_N, vectors_ND)
        distance_N = (vectors_ND - centre_VD[nearest_N]).square().sum(dim=1)
        centre_VD = torch.where(count_V[:, None] > 0, sum_VD / count_V[:, None].clamp(min=1), centre_VD)
        empty_E = (count_V == 0).nonzero()[:, 0]
        farthest_E = distance_N.argsort(descending=True, stable=True)[: len(empty_E)]
        centre_VD[empty_E[: len(farthest_E)]] = vectors_ND[farthest_E]
    return centre_VD


def _first_centres(vectors_ND: torch.Tensor, num_centres: int, rng: np.random.Generator) -> torch.Tensor:
    """Draws vectors, each with a probability by its squared distance from the nearest centre so far."""
    chosen = [int(rng.integers(len(vectors_ND)))]
    distance_N = torch.full((len(vectors_ND),), torch.inf)
    for draw in rng.random(num_centres - 1):
        newest_N = (vectors_ND - vectors_ND[chosen[-1]]).square().sum(dim=1)
        distance_N = torch.minimum(distance_N, newest_N)
        sum_N = distance_N.double().cumsum(dim=0)
        place = int(torch.searchsorted(sum_N, float(draw * sum_N[-1]), right=True))
        chosen.append(min(place, len(vectors_ND) - 1))
    return vectors_ND[chosen].clone()

"""Seconds for one training step (forward, loss, backward, optimiser) by threads, precision and memory order.

Example: python bench/training_step.py --recipe demo

All variants run in one process, in turns, and ratios are given against the first. Clips are random: 12 of 50
frames for the demo's recipe, the recipe's batch of 75 frames for the others.
"""

import argparse
import statistics
import sys
import time

import torch
from rich.console import Console
from rich.table import Table

from model.device import Precision
from model.losses import LossParams, joint_loss_B
from model.network import build_network, num_parameters
from pipeline.params import check, parse_yaml, recipe_text
from shards.cores import usable_cores

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--frames", type=int, default=0, help="frames a clip; 0: 50 for the demo, else 75")
    arguments = parser.parse_args()
    params = check(parse_yaml(recipe_text(arguments.recipe), arguments.recipe), arguments.recipe)
    frames = arguments.frames or (50 if arguments.recipe == "demo" else 75)
    model, train = params.model, params.train
    num_tokens = 40 if arguments.recipe == "demo" else 3_500
    video = torch.randn(train.batch_size, 1, frames, model.frame_height, model.frame_width)
    num_frames = torch.full((train.batch_size,), frames)
    targets = [[4 + (i + k) % 30 for k in range(frames // 9)] for i in range(train.batch_size)]
    losses = LossParams(train.ctc_weight, train.label_smoothing, teacher_forcing=1.0)
    device = torch.device("cpu")
    mixed = Precision.choose(True, device)
    variants = [
        (threads, precision, order)
        for precision in dict.fromkeys([Precision(None), mixed])
        for order in ("contiguous", "channels last")
        for threads in sorted({1, usable_cores()})
    ]
    networks, seconds = [], [[] for _ in variants]
    for _ in variants:
        network = build_network(model, num_tokens, train.ctc_weight < 1)
        networks.append((network, torch.optim.AdamW(network.parameters(), lr=1e-4)))
    for turn in range(ROUNDS + 1):
        for (threads, precision, order), (network, optimizer), times in zip(
            variants, networks, seconds, strict=True
        ):
            torch.set_num_threads(threads)
            inputs = video
            if order == "channels last":
                inputs = video.contiguous(memory_format=torch.channels_last_3d)
            start = time.perf_counter()
            with precision.autocast(device):
                encoded, steps = network.encode(inputs, num_frames)
                loss = joint_loss_B(network, encoded, steps, targets, losses).sum() / train.batch_size
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if turn:
                times.append(time.perf_counter() - start)
    title = (
        f"recipe {arguments.recipe}: {num_parameters(networks[0][0]):,} parameters, batch {train.batch_size} of "
        f"{frames} frames, torch {torch.__version__}, Python {sys.version.split()[0]}"
    )
    table = Table("threads", "precision", "memory", "s a step", "of the first", title=title)
    first = statistics.median(seconds[0])
    for (threads, precision, order), times in zip(variants, seconds, strict=True):
        median = statistics.median(times)
        table.add_row(str(threads), precision.name, order, f"{median:.3f}", f"{median / first:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

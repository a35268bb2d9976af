"""`python -m benchmarks.decode`: seconds from encoder output to text for every decoder, in one run.

With untrained weights a decoder would never end. So the heads of a network of full size are biased towards a synthetic
sentence, in which each character has look-alikes with a similar probability.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

from benchmarks.options import print_progress, run
from benchmarks.tables import figures_table
from benchmarks.train import CONFORMERS, LARGE, SMALL
from benchmarks.versions import machine_facts
from model.decoding.kneser_ney import train
from model.decoding.reader import LipReader
from model.decoding.registry import GREEDY, HEADS_OF_DECODER
from model.device import Precision
from model.networks.network import LipNetwork
from model.pinyin import syllables_of
from model.settings import DecodeParams, ModelParams
from model.text import BLANK_ID, END_ID, Tokenizer
from model.vocabulary import Vocabulary
from pipeline.params import check, parse_yaml, recipe_text
from shards.errors import ConfigError
from shards.files import write_json
from shards.machine import usable_cores

PACKAGES = ("torch", "numpy")
RECIPE = "chinese_lips"
BEAMS = (1, 10, 40)
FIRST_HAN, NUM_CHARACTERS = 0x4E00, 4_500
CHARS_PER_S = 4.2
"""Characters per second of Chinese-LiPS."""
LOOK_ALIKES = 20
LM_SENTENCES, LM_WEIGHT = 2_000, 0.3
SURE, NEAR, BLANK = 12.0, 10.0, 14.0
"""Logits over a background of about exp(8): the true character has about 60 %, all look-alikes together 40 %."""


@dataclass
class DecodeBench:
    """All results; medians over the rounds."""

    machine: dict[str, str]
    on_gpu: bool
    preset: str
    clip_s: float
    num_chars: int
    """Length of the synthetic sentence."""
    batch_size: int = 1
    """Clips read at once; seconds are per clip."""
    encode_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    """From encoder output to text, by `decoder` or `decoder beam`."""

    def goals(self) -> list[dict[str, Any]]:
        """Returns the project's goals for batches of one clip; a figure is None if it was not measured here."""
        seconds = self.seconds if self.batch_size == 1 else {}
        joint_s = seconds.get("joint_beam 40") if self.on_gpu else None
        ctc_s = None if self.on_gpu else seconds.get("ctc_beam 40")
        rows = [
            (f"GPU: joint beam 40 of a {self.clip_s:g} s clip, s", joint_s, 1.0),
            ("CPU: CTC beam 40, share of the time the clip plays", ctc_s and ctc_s / self.clip_s, 1.0),
        ]
        return [
            {
                "name": name,
                "figure": figure,
                "goal": goal,
                "is_reached": None if figure is None else figure <= goal,
            }
            for name, figure, goal in rows
        ]


def bench_decode(
    out: Path,
    progress: Callable[[str], None],
    *,
    on_gpu: bool,
    preset: str = "",
    beams: Sequence[int] = BEAMS,
    rounds: int = 3,
    threads: int = 0,
    clip_s: float = 10.0,
    batch_size: int = 1,
    num_characters: int = NUM_CHARACTERS,
) -> DecodeBench:
    """Measures clips of `clip_s` seconds, `batch_size` at once, and writes results.json into `out`.

    An empty `preset` means the largest conformer on a GPU, the smallest on a CPU. Beam searches use a language model.
    Raises ConfigError if `preset` is not a conformer.
    """
    preset = preset or (LARGE if on_gpu else SMALL)
    if preset not in CONFORMERS:
        raise ConfigError(f"--model-preset {preset}: choose one of {', '.join(CONFORMERS)}")
    torch.set_num_threads(threads or usable_cores())
    progress(f"building a reader of {num_characters:,} characters, {preset}, and its language model")
    biased = _BiasedReader(
        preset, torch.device("cuda" if on_gpu else "cpu"), clip_s, num_characters, batch_size
    )
    machine = machine_facts(PACKAGES) | {"threads": str(torch.get_num_threads())}
    machine["gpu"] = torch.cuda.get_device_name() if on_gpu else "none"
    result = DecodeBench(machine, on_gpu, preset, clip_s, len(biased.sentence), batch_size)
    searches = [(name, beam) for name in HEADS_OF_DECODER if name not in GREEDY for beam in beams]
    variants = [(name, None) for name in GREEDY] + searches
    seen: dict[str, list[float]] = {}
    encodings = []
    for turn in range(rounds + 1):  # the first is the warm-up
        encodings.append(biased.encode())
        for name, beam in variants:
            title = name if beam is None else f"{name} {beam}"
            seconds = biased.decode(name, beam or 1)
            if turn:
                seen.setdefault(title, []).append(seconds)
                progress(f"round {turn} of {rounds}, {title}: {seconds:.3f} s")
    result.encode_s = statistics.median(encodings[1:])
    result.seconds = {title: statistics.median(turns) for title, turns in seen.items()}
    write_json(out / "results.json", asdict(result) | {"goals": result.goals()})
    return result


class _BiasedReader:
    """A reader whose heads are biased towards one sentence."""

    def __init__(
        self, preset: str, device: torch.device, clip_s: float, num_characters: int, batch_size: int = 1
    ) -> None:
        torch.manual_seed(0)
        characters = "".join(chr(FIRST_HAN + number) for number in range(num_characters))
        vocabulary = Vocabulary.of_labels([characters], with_syllables=True)
        values = parse_yaml(recipe_text(RECIPE), RECIPE)
        values["model"] |= {"preset": preset, "sizes": {}}
        params = check(values, RECIPE)
        model: ModelParams = params.model
        network = LipNetwork(model, vocabulary, ("ctc", "decoder", "syllables")).to(device).eval()
        num_chars = max(1, round(CHARS_PER_S * clip_s))
        self.sentence = "".join(characters[i] for i in torch.randint(num_characters, (num_chars,)))
        picks_SL = torch.randint(num_characters, (LM_SENTENCES, num_chars)).tolist()
        lm = train(("".join(characters[i] for i in picks) for picks in picks_SL), params.lm.order)
        num_frames = round(clip_s * params.crop.target_fps)
        size_px = params.crop.size_px
        self.video_BTHW = torch.randint(0, 256, (batch_size, num_frames, size_px, size_px), dtype=torch.uint8)
        self.num_frames_B = torch.full((batch_size,), num_frames)
        self.reader = LipReader(
            network,
            vocabulary,
            model,
            params.text,
            params.crop.target_fps,
            device,
            Precision(None),
            size_px,
            language_model=lm.of_tokens(vocabulary.characters),
        )
        self.position = 0
        self._bias(network, vocabulary, -(-num_frames // model.temporal_stride))

    def encode(self) -> float:
        """Returns the seconds of encoding per clip; keeps the output for `decode`."""
        start = time.perf_counter()
        with torch.no_grad():
            self.encoded = self.reader.encode(self.video_BTHW, self.num_frames_B)
        if self.reader.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / len(self.num_frames_B)

    def decode(self, name: str, beam: int) -> float:
        """Returns the seconds of decoding per clip."""
        params = DecodeParams.model_validate({"decoder": name, "beam": beam, "lm_weight": LM_WEIGHT})
        self.position = 0
        start = time.perf_counter()
        self.reader.decode(*self.encoded, self.num_frames_B, params)
        return (time.perf_counter() - start) / len(self.num_frames_B)

    def _bias(self, network: LipNetwork, vocabulary: Vocabulary, num_steps: int) -> None:
        """Adds hooks to the heads, so that they output the sentence, spread evenly over the clip."""
        assert vocabulary.syllables is not None
        device = self.reader.device
        heads = (
            (network.ctc_head, vocabulary.characters, list(self.sentence)),
            (network.syllable_head, vocabulary.syllables, [syllables_of(char)[0] for char in self.sentence]),
        )
        for head, table, units in heads:
            assert head is not None
            spoken_LV = _spoken(table, units)
            said_SV = torch.zeros(num_steps, table.num_tokens)
            said_SV[:, BLANK_ID] = BLANK
            spikes_L = ((torch.arange(len(units)) + 0.5) * num_steps / len(units)).long()
            said_SV[spikes_L] = spoken_LV
            _add_to_output(head, said_SV.to(device))
        assert network.decoder is not None
        ended_1V = torch.zeros(1, vocabulary.characters.num_tokens)
        ended_1V[0, END_ID] = BLANK
        spoken_LV = _spoken(vocabulary.characters, list(self.sentence))
        spoken_LV[:, END_ID] = -NEAR  # else the empty text wins, as it costs nothing in the language model
        spoken_LV = torch.cat([spoken_LV, ended_1V]).to(device)

        def say_next(_: nn.Module, __: object, logits_BKV: torch.Tensor) -> torch.Tensor:
            self.position += 1
            return logits_BKV + spoken_LV[min(self.position, len(spoken_LV)) - 1]

        network.decoder.output.register_forward_hook(say_next)


def _spoken(table: Tokenizer, units: Sequence[str]) -> torch.Tensor:
    """Returns the logits (L, V) of each unit and its look-alikes."""
    first = table.num_tokens - len(table.units)
    spoken_LV = torch.zeros(len(units), table.num_tokens)
    near_LN = torch.randint(first, table.num_tokens, (len(units), LOOK_ALIKES))
    spoken_LV.scatter_(1, near_LN, NEAR - torch.rand(len(units), LOOK_ALIKES) * 4)
    spoken_LV[torch.arange(len(units)), torch.tensor(table.encode(units))] = SURE
    return spoken_LV


def _add_to_output(head: nn.Linear, said_SV: torch.Tensor) -> None:
    head.register_forward_hook(lambda _, __, logits_BSV: logits_BSV + said_SV)


def print_decode_bench(result: DecodeBench, console: Console) -> None:
    """Prints the goals, then every decoder."""
    console.print(", ".join(f"{name} {value}" for name, value in result.machine.items()), style="dim")
    goals = figures_table("goals", "", "here", "goal", "")
    for goal in result.goals():
        here = "not run" if goal["figure"] is None else f"{goal['figure']:.3f}"
        comment = {True: "", False: "missed", None: "python -m benchmarks.decode"}[goal["is_reached"]]
        goals.add_row(goal["name"], here, f"≤ {goal['goal']:g}", comment)
    console.print(goals)
    title = f"a clip of {result.clip_s:g} s, {result.num_chars} characters; {result.preset}"
    if result.batch_size > 1:
        title += f"; {result.batch_size} clips at once, times per clip"
    table = figures_table(title, "", "seconds", "share of its duration")
    for name, seconds in {"encoding": result.encode_s, **result.seconds}.items():
        table.add_row(name, f"{seconds:.3f}", f"{seconds / result.clip_s:.4f}")
    console.print(table)


def command(
    out: Annotated[Path, typer.Option(help="results.json", metavar="DIR")] = Path("bench-decode"),
    model_preset: Annotated[
        str, typer.Option(help="a conformer; default: conformer_large on a GPU, conformer_tiny on a CPU")
    ] = "",
    batch: Annotated[int, typer.Option(min=1, help="number of clips read at once")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="rounds of every decoder; reports the median")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="number of CPU threads; 0: one per core")] = 0,
) -> None:
    """Measure the seconds from the encoder output of a 10 s clip to its text: every decoder, beams of 1, 10 and 40.

    Example: python -m benchmarks.decode --batch 32 --rounds 5
    """
    from model.device import choose_device
    from pipeline.console import stdout

    out.mkdir(parents=True, exist_ok=True)
    result = bench_decode(
        out,
        print_progress,
        on_gpu=choose_device("auto").type == "cuda",
        preset=model_preset,
        batch_size=batch,
        rounds=rounds,
        threads=threads,
    )
    print_decode_bench(result, stdout)


if __name__ == "__main__":
    run(command)

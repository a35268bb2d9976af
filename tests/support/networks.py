"""Small networks of both kinds with random weights, their readers, and augmentation with every option on."""

import torch

from model.decoding.kneser_ney import train
from model.decoding.reader import LipReader
from model.networks.network import LipNetwork
from model.settings import AugmentParams, Head, ModelParams
from model.text import UNKNOWN_ID, Tokenizer
from model.vocabulary import Vocabulary
from tests.support import exported

LM = train(["一二三", "二二四五", "五四三二一", "三"], order=3)

FRAMES = (23, 14, 9)

NUM_FRAMES_B = torch.tensor(FRAMES)


def reader_of(model: ModelParams, with_lm: bool = True, heads: tuple[Head, ...] | None = None) -> LipReader:
    network = small_network(model)
    if heads is not None:
        torch.manual_seed(0)
        network = LipNetwork(model, VOCABULARY, heads).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for head in (network.ctc_head, network.syllable_head, network.decoder):
            if head is not None:
                (head.output if head is network.decoder else head).bias[UNKNOWN_ID] -= 20.0
    lm = LM.of_tokens(VOCABULARY.characters) if with_lm else None
    return exported.reader_of(network, VOCABULARY, model, language_model=lm)


SMALL = ModelParams(
    frame_height=32,
    frame_width=32,
    sizes={"channels": (4, 6, 8, 10), "hidden_dim": 16, "pool_grid": 2, "num_lstm_layers": 2},
)

SMALL_CONFORMER = ModelParams(
    preset="conformer_tiny",
    frame_height=32,
    frame_width=32,
    sizes={
        "channels": (4, 6, 8, 10),
        "hidden_dim": 16,
        "feed_forward_dim": 24,
        "num_encoder_layers": 2,
        "conv_kernel": 7,
    },
)

VOCABULARY = Vocabulary(Tokenizer(tuple("一二三四五")), Tokenizer(("er", "san", "si", "wu", "yi"), " "))


def small_network(params: ModelParams = SMALL) -> LipNetwork:
    torch.manual_seed(0)
    network = LipNetwork(params, VOCABULARY, ("ctc", "decoder", "reverse_decoder", "syllables"))
    # running statistics that differ from (0, 1), so BatchNorm makes padding nonzero
    network.train()
    network.encode(torch.randn(3, 1, 9, 32, 32) + 1, torch.tensor([9, 9, 9]))
    return network.eval()


ALL_ON = AugmentParams(
    zoom_sigma=0.1,
    rotation_deg=10,
    shift_px=4,
    speed_change=0.1,
    gain_sigma=0.1,
    time_masks_per_s=1,
)

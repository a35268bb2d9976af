"""The page of `pipeline serve` has candidates to show."""

from pathlib import Path

import pytest

from pipeline.params import load_params
from pipeline.serve.worker import with_candidates
from recipes import FILES as RECIPES

ROOT = Path(__file__).parents[3]
FILES = ["params.yaml", *(f"recipes/{name}.yaml" for name in RECIPES)]


@pytest.mark.parametrize("recipe", FILES)
def test_every_recipe_gives_the_page_candidates(recipe: str) -> None:
    params = load_params(ROOT / recipe, flags={"decode.beam": 7, "decode.lm_weight": 0.5})
    chosen = with_candidates(params, ["decoder", "ctc"]).decode
    assert (chosen.decoder, chosen.beam, chosen.lm_weight) == ("ctc_beam", 7, 0.0)
    assert chosen.num_candidates > 1
    # not if the model has no CTC head, nor if decode.decoder is set
    assert with_candidates(params, ["decoder"]) == params
    named = load_params(ROOT / recipe, flags={"decode.decoder": "attention_beam"})
    assert with_candidates(named, ["decoder", "ctc"]) == named

"""Renders the cards' Markdown from `templates/`: the template holds the words, its caller computes the facts."""

from collections.abc import Mapping
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from stages.cards.licences import is_unknown, why_not_shared


def render(template: str, license: str, **values: Any) -> str:
    """Returns the text of `templates/<template>.md.j2`; values are inserted as they are, never as template code."""
    environment = Environment(
        loader=PackageLoader("stages.cards"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(spec=format, percent=_percent, megabytes=_megabytes)
    licence = None if is_unknown(license) else license
    return environment.get_template(f"{template}.md.j2").render(
        values, licence=licence, may_share=why_not_shared(license) is None
    )


def front_matter(matter: Mapping[str, Any]) -> str:
    """Returns the YAML that a card starts with."""
    return f"---\n{yaml.safe_dump(dict(matter), sort_keys=False, allow_unicode=True)}---\n"


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.2f} %"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1_000_000:.1f}"

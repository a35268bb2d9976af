"""What the licence of a corpus says of sharing its shards: they are derivatives of it."""

import re

from shards.errors import ConfigError
from shards.store import ShardStore

# parts of SPDX names, and of the names that people give to terms outside its list
_RESTRICTED = frozenset(
    {"NC", "NONCOMMERCIAL", "RESEARCH", "ACADEMIC", "EDUCATION", "PROPRIETARY", "PRIVATE"}
)
_UNKNOWN = frozenset({"", "UNKNOWN", "NONE", "NOASSERTION", "OTHER"})

# the names that Hugging Face takes as they are, lower case; any other becomes `other`, with a name beside it
_HUB_NAMES = re.compile(
    r"cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-[234]\.[05]|apache-2\.0|mit|odbl|odc-by|pddl|bsd-3-clause"
)


def is_unknown(license: str) -> bool:
    return license.strip().upper() in _UNKNOWN


def why_not_shared(license: str) -> str | None:
    """Why shards of a corpus under this licence do not belong where others can fetch them; None where they may.

    A part of the name says so (CC-BY-NC-SA-4.0, LicenseRef-…-research-use), or nothing is known of the licence.
    """
    if is_unknown(license):
        return "the licence of the corpus is unknown (corpus.license)"
    # "non-commercial" is one word here
    parts = re.split(r"[^A-Z0-9.]+", re.sub(r"NON[-_ ]COMMERCIAL", "NONCOMMERCIAL", license.upper()))
    found = _RESTRICTED.intersection(parts)
    return f"corpus.license is {license} ({min(found).lower()})" if found else None


def refuse_unlicensed(license: str, store: ShardStore, has_rights: bool) -> None:
    """Raises ConfigError where shards would go to a remote place that the licence gives no right to."""
    reason = why_not_shared(license)
    if store.is_remote and reason and not has_rights:
        raise ConfigError(
            f"nothing is written to {store.place('')}: {reason}, and mouth crops are derivatives of its videos, with "
            "faces of people in them. Set paths.shards to a folder of this machine; or, where nobody but those "
            "entitled can read that place, add --i-have-the-rights"
        )


def hub_licence(license: str) -> dict[str, str]:
    """The licence as the front matter of a Hugging Face card has it."""
    if is_unknown(license):
        return {"license": "unknown"}
    if _HUB_NAMES.fullmatch(license.lower()):
        return {"license": license.lower()}
    return {"license": "other", "license_name": license}

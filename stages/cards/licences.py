"""Decides whether the licence of a corpus allows sharing its shards, which are derivatives of it."""

import re

import yaml

from shards.errors import ConfigError
from shards.store import ShardStore

# SPDX names of licences that let everybody share what was derived. No other name gives a right, since
# a list of forbidden words would take "All rights reserved" for a permission.
_SHAREABLE = re.compile(
    r"CC0-1\.0|CC-PDDC|CC-BY(-SA)?-[1-4]\.[05]|PDDL-1\.0|ODBL-1\.0|ODC-BY-1\.0|CDLA-(PERMISSIVE|SHARING)-[12]\.0"
    r"|APACHE-2\.0|MIT|BSD-[23]-CLAUSE"
)
_UNKNOWN = frozenset({"", "UNKNOWN", "NONE", "NOASSERTION", "OTHER"})

# the names that Hugging Face takes as they are, lower case; any other becomes `other`, with the name in `license_name`
_HUB_NAMES = re.compile(
    r"cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-[234]\.[05]|apache-2\.0|mit|odbl|odc-by|pddl|bsd-3-clause"
)


def is_unknown(license: str) -> bool:
    return license.strip().upper() in _UNKNOWN


def why_not_shared(license: str) -> str | None:
    """Returns why shards of a corpus under this licence must not be shared; None where they may be shared.

    They may where the licence, or each one joined by AND and OR, is the SPDX name of one that lets everybody share.
    """
    if is_unknown(license):
        return "the licence of the corpus is unknown (corpus.license)"
    parts = [part.strip() for part in re.split(r" AND | OR |[()]", license.strip().upper())]
    if any(parts) and all(_SHAREABLE.fullmatch(part) for part in parts if part):
        return None
    return f"corpus.license is {license}, which does not allow everybody to share (or is not an SPDX name)"


def refuse_unlicensed(license: str, store: ShardStore, has_rights: bool) -> None:
    """Raises ConfigError where shards would be written to a remote store and the licence does not allow it."""
    if store.is_remote:
        refuse_sharing(
            license,
            store.place(""),
            has_rights,
            what="mouth crops are derivatives of its videos",
            instead="Set paths.shards to a folder of this machine; or, if",
        )


def refuse_sharing(license: str, place: str, has_rights: bool, *, what: str, instead: str = "If") -> None:
    """Raises ConfigError where the licence does not allow writing to `place`, outside of this machine."""
    if not has_rights and (reason := why_not_shared(license)):
        raise ConfigError(
            f"nothing is written to {place}: {reason}, and {what}, with faces of people in them. {instead} only people "
            "with the right to these clips can read that place, add --i-have-the-rights"
        )


def hub_licence(license: str) -> dict[str, str]:
    """Returns the licence for the front matter of a Hugging Face card."""
    if is_unknown(license):
        return {"license": "unknown"}
    if _HUB_NAMES.fullmatch(license.lower()):
        return {"license": license.lower()}
    return {"license": "other", "license_name": license}


def licence_of_card(card: str) -> str:
    """Returns the licence in the front matter of a Hugging Face card; empty if there is none."""
    parts = card.split("---\n", 2)
    matter = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None
    return str(matter.get("license_name") or matter.get("license", "")) if isinstance(matter, dict) else ""

"""What the licence of a corpus says of sharing its shards: they are derivatives of it."""

import re

from shards.errors import ConfigError
from shards.store import ShardStore

# SPDX names of licences that let everybody share what was derived. Any other name, known to us or not, gives no right:
# a list of forbidden words would take "All rights reserved" for a permission.
_SHAREABLE = re.compile(
    r"CC0-1\.0|CC-PDDC|CC-BY(-SA)?-[1-4]\.[05]|PDDL-1\.0|ODBL-1\.0|ODC-BY-1\.0|CDLA-(PERMISSIVE|SHARING)-[12]\.0"
    r"|APACHE-2\.0|MIT|BSD-[23]-CLAUSE"
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

    They may where the licence, or each one that AND and OR join, is the SPDX name of one that lets everybody share.
    """
    if is_unknown(license):
        return "the licence of the corpus is unknown (corpus.license)"
    parts = [part.strip() for part in re.split(r" AND | OR |[()]", license.strip().upper())]
    if any(parts) and all(_SHAREABLE.fullmatch(part) for part in parts if part):
        return None
    return f"corpus.license is {license}, which does not let everybody share (or is no SPDX name of such a licence)"


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

"""Opens the store of the shards: a local folder or a URL."""

import re
from pathlib import Path

from shards.errors import ConfigError
from shards.settings import MachineParams
from shards.store import SHARDS_KEY, FolderStore, WritableStore

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|[A-Za-z][A-Za-z0-9+-]*::")
_LACKS_A_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")


def open_store(place: str, machine: MachineParams, key: str = SHARDS_KEY) -> WritableStore:
    """Returns the store at `place`: a URL of a scheme that fsspec knows (s3://bucket/folder), or a folder.

    `key` is the setting that names it, for messages. Raises ConfigError if the scheme is unknown, its package is not
    installed, or the URL lacks a slash.
    """
    if lacking := _LACKS_A_SLASH.match(place):
        scheme, rest = lacking[1], place[lacking.end() :]
        if scheme.lower() in ("file", "local", "hdfs"):  # without a host the path begins with a slash
            rest = f"/{rest}"
        raise ConfigError(
            f"{key}: {place} is not a URL; write {scheme}://{rest}, or ./{place} for a folder with this name"
        )
    if URL.match(place):
        from shards.remote_store import RemoteStore  # imports fsspec, which a folder does not need

        return RemoteStore(place, machine, key=key)
    return FolderStore(Path(place))

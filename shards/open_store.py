"""Where the shards are: a folder of this machine, or a remote place."""

import re
from pathlib import Path

from shards.errors import ConfigError
from shards.settings import MachineParams
from shards.store import FolderStore, ShardStore

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|[A-Za-z][A-Za-z0-9+-]*::")
_LACKS_A_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")


def open_store(place: str, machine: MachineParams) -> ShardStore:
    """The store at `paths.shards`: a URL of any scheme that fsspec knows (s3://bucket/folder), or else a folder.

    Raises ConfigError where the scheme is unknown, or its package is not installed, or a URL lacks a slash.
    """
    if lacking := _LACKS_A_SLASH.match(place):
        scheme, rest = lacking[1], place[lacking.end() :]
        if scheme.lower() in ("file", "local", "hdfs"):  # without a host the path begins by a slash
            rest = f"/{rest}"
        raise ConfigError(
            f"paths.shards: {place} is no URL; write {scheme}://{rest}, or ./{place} for a folder of that name"
        )
    if _URL.match(place):
        from shards.remote_store import RemoteStore  # with fsspec, which a folder does without

        return RemoteStore(place, machine)
    return FolderStore(Path(place))

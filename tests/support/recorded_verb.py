"""Runs a verb in a process that records which values of params.yaml it reads and which files it opens."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Writes "read NAME" and "write NAME" for every file below RECORD_IN that Python code opens.
OPENS = """
import os, sys
_here = os.path.realpath(os.environ["RECORD_IN"]) + os.sep
_log = os.open(os.environ["RECORD_TO"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def _hook(event, arguments):
    if event != "open" or not isinstance(arguments[0], (str, bytes)):
        return
    name = os.path.realpath(os.fsdecode(arguments[0]))
    flags = arguments[2] if isinstance(arguments[2], int) else 0
    if name.startswith(_here):
        kind = "write" if flags & (os.O_WRONLY | os.O_RDWR) else "read"
        os.write(_log, f"{kind} {name[len(_here):]}\\n".encode())
sys.addaudithook(_hook)
"""
RUN = "from tests.support.recorded_verb import run_recorded; run_recorded(sys.argv[1])"
"""Runs the verb of the first argument."""


@dataclass(frozen=True)
class Recorded:
    """The `section.key` that a verb read, and the files that it read and wrote below the working directory."""

    keys: frozenset[str]
    read: frozenset[str]
    written: frozenset[str]


def run_recorded(verb: str) -> None:
    """Runs `pipeline verb` in this process and records every value of params.yaml that it reads in RECORD_TO."""
    import pipeline.params
    from pipeline.cli import app
    from pipeline.params import Params
    from shards.settings import Section

    owners: dict[int, tuple[str, Section]] = {}  # keeps the section, so that its id is not reused
    plain = Section.__getattribute__
    load, whole_dump, muted = pipeline.params.load_params, Params.model_dump, False
    with Path(os.environ["RECORD_TO"]).open("a", encoding="utf-8") as log:

        def note(section: Section, name: str) -> None:
            owner = owners.get(id(section))
            if owner is None or muted:
                return
            fields = type(section).model_fields
            # a dump reads every value
            names = list(fields) if name in ("model_dump", "model_dump_json", "__dict__") else [name]
            for field in names:
                if field in fields:
                    log.write(f"key {owner[0]}.{field}\n")

        def getattribute(self: Section, name: str) -> Any:
            note(self, name)
            value = plain(self, name)
            if name == "model_copy" and id(self) in owners:
                prefix = owners[id(self)][0]

                def copied(*arguments: Any, **more: Any) -> Any:
                    return register(value(*arguments, **more), prefix)

                return copied
            return value

        def register(section: Section, prefix: str) -> Section:
            owners[id(section)] = prefix, section
            for field in type(section).model_fields:
                inner = plain(section, field)
                if isinstance(inner, Section):
                    register(inner, f"{prefix}.{field}")
            return section

        def dump(self: Params, *arguments: Any, **more: Any) -> dict[str, Any]:
            # the effective configuration is only saved next to a result
            nonlocal muted
            muted = True
            try:
                return whole_dump(self, *arguments, **more)
            finally:
                muted = False

        def load_params(*arguments: Any, **more: Any) -> Any:
            params = load(*arguments, **more)
            for field in type(params).model_fields:
                register(getattr(params, field), field)
            return params

        Section.__getattribute__ = getattribute  # type: ignore[method-assign, assignment]
        Params.model_dump = dump  # type: ignore[method-assign, assignment]
        pipeline.params.load_params = load_params
        app([verb], standalone_mode=False)

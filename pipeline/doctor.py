"""Checks a machine for what the pipeline needs, and gives the command or package that fixes a fault.

Native code is loaded in separate processes, so that a broken library is a finding and does not end the doctor.
"""

import json
import platform
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shards.machine import usable_cores

DISTRIBUTION = "lip-pipeline"
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
MIN_PYTHON = (3, 11)
ADVISED_MEMORY_GB = 4
ADVISED_DISK_GB = 5
PROBE_LIMIT_S = 120
"""A first import from a slow disk takes a minute; a longer one hangs."""


@dataclass(frozen=True)
class Finding:
    """One check. `fix` is None if nothing is wrong; `is_fatal`: the demo cannot run without it."""

    name: str
    value: str
    fix: str | None = None
    is_fatal: bool = False


@dataclass(frozen=True)
class SystemLibrary:
    """A library that comes with the system, not with a wheel, and the packages that contain it."""

    needed_by: str
    debian: str
    fedora: str

    @property
    def fix(self) -> str:
        return f"apt-get install {self.debian} (Debian, Ubuntu) or dnf install {self.fedora} (Fedora)"


# The libraries named in the ELF headers of cv2 and libmediapipe, except those that every glibc system has.
SYSTEM_LIBRARIES = {
    "libEGL.so.1": SystemLibrary("mediapipe", "libegl1", "libglvnd-egl"),
    "libGLESv2.so.2": SystemLibrary("mediapipe", "libgles2", "libglvnd-gles"),
    "libGL.so.1": SystemLibrary("OpenCV", "libgl1", "libglvnd-glx"),
    "libgthread-2.0.so.0": SystemLibrary("OpenCV", "libglib2.0-0", "glib2"),
    "libglib-2.0.so.0": SystemLibrary("OpenCV", "libglib2.0-0", "glib2"),
    "libxcb.so.1": SystemLibrary("OpenCV", "libxcb1", "libxcb"),
    "libX11.so.6": SystemLibrary("OpenCV", "libx11-6", "libX11"),
    "libstdc++.so.6": SystemLibrary("torch, OpenCV, mediapipe", "libstdc++6", "libstdc++"),
}

_IMPORTS = {
    "opencv-python": "cv2",
    "opencv-contrib-python": "cv2",
    "pyyaml": "yaml",
    "import-linter": "importlinter",
}
_IMPORT_CHECKS = ("av", "duckdb", "numpy", "opencv-python", "pyarrow")
"""Native packages whose import is checked; torch and mediapipe have separate checks."""

_TORCH = """
import json, torch
from model.device import cpu_computes_bfloat16
cuda = torch.cuda.is_available()
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count() if cuda else 0)]
print(json.dumps({
    "cpu": cpu_computes_bfloat16(),
    "cuda": bool(cuda and torch.cuda.is_bf16_supported(including_emulation=False)),
    "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GB" for gpu in gpus],
}))
"""
# Opens both landmarkers as stage crop does, so that this check and the stage agree.
_LANDMARKER = """
import av, numpy
from stages.mouths.landmarker import face_finder
from stages.videos.picture import SourceFrame
picture = av.VideoFrame.from_ndarray(numpy.zeros((240, 320, 3), numpy.uint8), format="rgb24")
for kind in ("litert", "mediapipe"):
    with face_finder(kind, 1) as find:
        print(len(find(SourceFrame(0, 0.0, picture))))
"""


def examine() -> list[Finding]:
    """Returns all findings, in the order in which to fix them. Takes a few seconds, mostly for the import of torch."""
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        torch = pool.submit(_probe, _TORCH)
        landmarker = pool.submit(_probe, _LANDMARKER)
        imports = {name: pool.submit(_probe, f"import {_IMPORTS.get(name, name)}") for name in _IMPORT_CHECKS}
        findings = [
            _python(),
            *_machine(),
            *_system_libraries(),
            *_packages({name: future.result() for name, future in imports.items()}),
            _opencv_wheels(),
            *_torch(torch.result()),
            _landmark_model(landmarker.result()),
            *_versioning(),
        ]
    return findings


def print_findings(findings: list[Finding], as_json: bool) -> None:
    """Prints a table on stdout, or JSON: a list of {name, value, fix, is_fatal}."""
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
        return
    console = Console(soft_wrap=False)
    table = Table(title="machine", title_justify="left")
    table.add_column("")
    table.add_column("check", no_wrap=True)
    table.add_column("found", overflow="fold")
    for finding in findings:
        mark, style = ("ok", "green") if finding.fix is None else ("advice", "yellow")
        if finding.fix is not None and finding.is_fatal:
            mark, style = "FAULT", "bold red"
        found = finding.value if finding.fix is None else f"{finding.value}\n-> {finding.fix}"
        # Text, not markup: a path or message may contain brackets
        table.add_row(Text(mark, style), Text(finding.name), Text(found))
    console.print(table)
    faults = sum(finding.fix is not None and finding.is_fatal for finding in findings)
    advice = sum(finding.fix is not None and not finding.is_fatal for finding in findings)
    console.print(f"{faults} faults, {advice} pieces of advice", highlight=False)


@dataclass(frozen=True)
class _Probe:
    code: int
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """The last line of stderr that is not empty: the message of an exception."""
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        if self.code < 0:
            return f"killed by signal {-self.code}"
        return lines[-1].strip() if lines else f"ended with code {self.code}"


def _probe(source: str) -> _Probe:
    """Runs Python `source` in a separate process with the same packages."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, timeout=PROBE_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return _Probe(1, "", f"no answer within {PROBE_LIMIT_S} s")
    return _Probe(done.returncode, done.stdout, done.stderr)


def _python() -> Finding:
    bits = struct.calcsize("P") * 8
    value = f"{platform.python_version()}, {bits} bit, {platform.system()} {platform.machine()}"
    good = sys.version_info >= MIN_PYTHON and bits == 64
    fix = None if good else "use a 64-bit Python 3.11 or later: make PYTHON=python3.11"
    return Finding("Python", value, fix, is_fatal=True)


def _machine() -> Iterator[Finding]:
    memory_gb = psutil.virtual_memory().total / 2**30
    short = memory_gb < ADVISED_MEMORY_GB
    fix = (
        f"{ADVISED_MEMORY_GB} GB are recommended; lower train.batch_size and machine.workers"
        if short
        else None
    )
    yield Finding("memory", f"{memory_gb:.1f} GB", fix)
    free_gb = shutil.disk_usage(Path.cwd()).free / 2**30
    fix = (
        f"{ADVISED_DISK_GB} GB are recommended; free disk space or work in another folder"
        if free_gb < ADVISED_DISK_GB
        else None
    )
    yield Finding("free disk", f"{free_gb:.0f} GB in {Path.cwd()}", fix)
    yield Finding("CPU cores", str(usable_cores()))


def _system_libraries() -> Iterator[Finding]:
    """Loads each library of the table, then lists further libraries that the loader does not find."""
    if not sys.platform.startswith("linux"):
        return  # on other systems the wheels contain these libraries
    missing = []
    for name, library in SYSTEM_LIBRARIES.items():
        # in a separate process: initialising a broken driver can abort it
        probe = _probe(f"import ctypes; ctypes.CDLL({name!r})")
        if probe.code != 0:
            missing.append(name)
        fix = None if probe.code == 0 else library.fix
        value = (
            f"for {library.needed_by}" if fix is None else f"{library.needed_by} needs it: {probe.complaint}"
        )
        yield Finding(name, value, fix, is_fatal=True)
    for name, needed_by in sorted(_unresolved().items()):
        if name not in SYSTEM_LIBRARIES:
            fix = (
                f"install the package that contains {name} (apt-file search {name}, dnf provides '*/{name}')"
            )
            yield Finding(name, f"{needed_by} needs it, and it is missing", fix, is_fatal=True)


def _unresolved() -> dict[str, str]:
    """Returns libraries that `ldd` does not find for OpenCV and mediapipe, and which of the two needs them."""
    ldd = shutil.which("ldd")
    if ldd is None:
        return {}
    missing = {}
    for package, pattern in (("cv2", "cv2*.so"), ("mediapipe", "**/libmediapipe*.so")):
        spec = util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            continue
        for file in Path(spec.submodule_search_locations[0]).glob(pattern):
            listed = subprocess.run([ldd, file], capture_output=True, text=True, check=False).stdout
            for name in re.findall(r"^\s*(\S+) => not found", listed, re.MULTILINE):
                missing[name] = package
    return missing


def _packages(imports: dict[str, _Probe]) -> Iterator[Finding]:
    """Checks that the direct dependencies are installed, importable (native ones) and of the tested versions."""
    tested = _tested_versions()
    try:
        needed = _requirements()
    except metadata.PackageNotFoundError:
        yield Finding("packages", f"{DISTRIBUTION} is not installed", _install(), is_fatal=True)
        return
    versions, others, broken = [], [], []
    for name in needed:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            broken.append(Finding(name, "is not installed", _install(), is_fatal=True))
            continue
        versions.append(f"{name} {version}")
        # a local tag (2.13.0+cpu) is a build of the same version
        wanted = tested.get(_canonical(name))
        if wanted is not None and version.partition("+")[0] != wanted:
            others.append(f"{name} {version} (tested: {wanted})")
        probe = imports.get(name)
        if probe is not None and probe.code != 0:
            fix = "fix the system libraries first; if they are correct: " + _install()
            broken.append(Finding(name, f"cannot be imported: {probe.complaint}", fix, is_fatal=True))
    yield from broken
    if others:
        yield Finding("untested versions", ", ".join(others), f"if something fails: {_install()}")
    yield Finding("packages", ", ".join(versions))


def _requirements() -> list[str]:
    """Returns the names of the direct dependencies in pyproject.toml."""
    listed = metadata.requires(DISTRIBUTION) or []
    matches = [re.match(r"[A-Za-z0-9._-]+", line) for line in listed if "extra ==" not in line]
    return [match[0] for match in matches if match]


def _tested_versions() -> dict[str, str]:
    """Returns the versions in constraints.txt by canonical name; empty if the program runs without its repository."""
    if not CONSTRAINTS.is_file():
        return {}
    pins = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", CONSTRAINTS.read_text("utf-8"), re.MULTILINE)
    return {_canonical(name): version for name, version in pins}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _install() -> str:
    return "pip install -c constraints.txt -e ."


def _opencv_wheels() -> Finding:
    """Checks that all OpenCV wheels have one version: they share the folder cv2, and the last installed one wins."""
    wheels = (
        "opencv-python",
        "opencv-contrib-python",
        "opencv-python-headless",
        "opencv-contrib-python-headless",
    )
    found = {}
    for wheel in wheels:
        try:
            found[wheel] = metadata.version(wheel)
        except metadata.PackageNotFoundError:
            continue
    value = ", ".join(f"{name} {version}" for name, version in found.items()) or "no wheel"
    good = bool(found) and len(set(found.values())) == 1
    fix = (
        "install all OpenCV wheels in the same version: pip install --force-reinstall -c constraints.txt "
        + " ".join(wheels[:2])
    )
    return Finding("OpenCV wheels", value, None if good else fix, is_fatal=True)


def _torch(probe: _Probe) -> Iterator[Finding]:
    if probe.code != 0:
        yield Finding("torch", f"cannot be imported: {probe.complaint}", _install(), is_fatal=True)
        return
    facts = json.loads(probe.stdout)
    where = [name for name, has in (("CPU", facts["cpu"]), ("GPU", facts["cuda"])) if has]
    yield Finding(
        "bfloat16",
        f"in hardware on {' and '.join(where)}" if where else "not in hardware; training is slower",
    )
    yield Finding("GPU", "; ".join(facts["gpus"]) or "torch finds none; not needed for the demo")


def _landmark_model(probe: _Probe) -> Finding:
    """Checks both landmarkers and the model file with one black picture, as stage crop runs them."""
    if probe.code == 0:
        return Finding("face landmarker", "the model file is intact; LiteRT and mediapipe can run it")
    fix = (
        "fix the faults above; if there are none: "
        "pip install --force-reinstall -c constraints.txt mediapipe ai-edge-litert"
    )
    return Finding("face landmarker", probe.complaint, fix, is_fatal=True)


def _versioning() -> Iterator[Finding]:
    git = shutil.which("git")
    fix = "apt-get install git or dnf install git; `make demo` also works without git, from an archive"
    yield Finding("git", git or "not found", None if git else fix)
    if not Path("dvc.yaml").is_file():
        return
    if not Path(".dvc").is_dir():
        yield Finding(
            "DVC", "the folder .dvc is missing", "run dvc init, or clone the repository again", is_fatal=True
        )
    elif git and _is_ignored(git, "dvc.lock"):
        fix = "remove dvc.lock from .gitignore; DVC does not run with it"
        yield Finding("DVC", "dvc.lock is git-ignored", fix, is_fatal=True)
    elif shutil.which("dvc") is None or shutil.which("pipeline") is None:
        fix = "add the bin folder of the environment to PATH (make demo does this): . .venv/bin/activate"
        yield Finding("DVC", "the programs dvc and pipeline are not on PATH", fix)
    else:
        yield Finding("DVC", "ready")


def _is_ignored(git: str, path: str) -> bool:
    return subprocess.run([git, "check-ignore", "-q", path], capture_output=True, check=False).returncode == 0

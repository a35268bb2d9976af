"""The command `pipeline serve`: how it starts, and that it leaves nothing when it is stopped."""

import re
import signal
import threading
from pathlib import Path

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.serve.run import listening
from shards.errors import ConfigError
from tests.support import forked
from tests.support.serving import PATIENCE_S, pipeline_serve, serve_arguments, speaking_checkpoint, until
from tests.support.small_disk import python_on_small_disk
from tests.support.videos import write_mouth

ROOT = Path(__file__).parents[3]


READ_ONLY = """
import subprocess, sys
subprocess.run(["mount", "-o", "remount,ro", sys.argv.pop(1)], check=True)
from pipeline.cli import main
main()
"""


@pytest.mark.usefixtures("on_small_disk")
def test_a_read_only_cache_is_one_message(tmp_path: Path) -> None:
    """A really read-only folder, which the worker process notices."""
    small = tmp_path / "small"
    arguments = serve_arguments(tmp_path / "none.pt", small / "cache")
    done = python_on_small_disk(small, "1m", READ_ONLY, small, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    opening, message = done.stderr.splitlines()
    assert opening.startswith("pipeline: opening ")
    place = re.escape(str(small / "cache" / "native.log"))
    assert re.fullmatch(rf"pipeline: machine\.cache_dir.*{place}\b.*\(Read-only file system\).*", message)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaking_checkpoint(tmp_path_factory.mktemp("checkpoint"), "一")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_mouth(tmp_path_factory.mktemp("videos") / "me.mp4", 25).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_server_leaves_nothing(
    checkpoint: Path, video: bytes, tmp_path: Path, number: signal.Signals
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with pipeline_serve(checkpoint, tmp_path, environment={"TMPDIR": str(temporary)}) as (process, url):
        read = httpx.post(f"{url}/api/read", files={"video": video}, timeout=PATIENCE_S)
        assert (read.status_code, read.json()["text"]) == (200, "一")
        candidates = read.json()["segments"][0]["candidates"]
        assert candidates[0]["text"] == "一" and len(candidates) > 1
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        meanwhile: list[object] = []
        # one video at the suspended reader, and one in the queue
        (worker,) = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        worker.suspend()
        threads = [threading.Thread(target=_post_for, args=(meanwhile, url, video)) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: httpx.get(f"{url}/api/health").json()["num_videos"] == 2)
        if number == signal.SIGKILL:
            worker.resume()
        process.send_signal(number)
        code = process.wait(20).returncode
        for thread in threads:
            thread.join(20)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert list(temporary.iterdir()) == []
    if number != signal.SIGKILL:
        assert meanwhile == ["stopping", "stopping"]


def _post_for(reasons: list[object], url: str, content: bytes) -> None:
    try:
        answer = httpx.post(f"{url}/api/read", files={"video": content}, timeout=PATIENCE_S)
        reasons.append(answer.json()["reason"])
    except httpx.HTTPError as error:
        reasons.append(error)


def test_a_missing_checkpoint_and_a_used_port_are_reported(tmp_path: Path) -> None:
    missing = forked.pipeline(ROOT, serve_arguments(tmp_path / "none.pt", tmp_path))
    assert (missing.returncode, missing.stdout) == (1, "") and "none.pt" in missing.stderr
    with listening("127.0.0.1", 0) as used:
        port = used.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: cannot listen"), listening("127.0.0.1", port):
            pass


def test_conflicting_flags_and_a_missing_extra_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    both = CliRunner().invoke(app, ["serve", "--checkpoint", "a.pt", "--onnx", "b.onnx"])
    assert isinstance(both.exception, ConfigError)
    assert re.search("--checkpoint and --onnx .*give only one", str(both.exception))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else name)
    lacking = CliRunner().invoke(app, ["serve"])
    assert isinstance(lacking.exception, ConfigError)
    assert re.search(r"uvicorn.*pip install 'lip-pipeline\[serve\]'", str(lacking.exception))


@pytest.mark.parametrize("verb", [["serve"], ["inference", str(ROOT / "README.md")], ["live"]])
def test_a_file_given_as_an_onnx_model_is_never_called_a_checkpoint(tmp_path: Path, verb: list[str]) -> None:
    """Its name would make it a checkpoint, whatever the option says."""
    (tmp_path / "model.bin").write_bytes(b"no model")
    refused = CliRunner().invoke(
        app, [*verb, "--onnx", str(tmp_path / "model.bin"), "--params", str(ROOT / "params.yaml")]
    )
    assert isinstance(refused.exception, ConfigError)
    assert re.match(
        rf"--onnx {tmp_path / 'model.bin'}: .* must end in \.onnx; rename the file", str(refused.exception)
    )


@pytest.mark.parametrize(("host", "is_open"), [("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)])
def test_a_public_host_gives_a_warning(capsys: pytest.CaptureFixture[str], host: str, is_open: bool) -> None:
    with listening(host, 0) as listener:
        assert listener.getsockname()[1] > 0
    assert ("everyone who can reach this machine" in capsys.readouterr().err) is is_open

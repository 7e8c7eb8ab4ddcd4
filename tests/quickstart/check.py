"""The quickstart's odd hours: models of one's own and of a hub that fails, signals at every moment, odd folders.

Run from anywhere, after a build with --profile dev. Starts a small hub on loopback; reaches nothing else.
"""

import hashlib
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy/quickstart.sh"
STATE = ROOT / ".quickstart"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = ROOT / "tests/models/tiny-heavy-q8_0.gguf"
BYTES = MODEL.read_bytes()
MARK = "HEARTH_CHECK_" + uuid.uuid4().hex
PATIENCE = 120


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as the quickstart uses; cuts the first download of every file in the middle."""

    protocol_version = "HTTP/1.1"
    asked = []
    cut = set()

    def handle(self):
        try:
            super().handle()
        except ConnectionError:
            pass  # a client that broke off

    def do_GET(self):
        Hub.asked.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        listing = re.fullmatch(rf"/api/models/me/(\w+)/tree/{COMMIT}\?recursive=true", self.path)
        if listing:
            self.answer(200, json.dumps(self.tree(listing[1])).encode())
        elif re.fullmatch(r"/api/models/me/\w+/refs", self.path):
            self.answer(200, json.dumps({"branches": [{"name": "main", "targetCommit": COMMIT}]}).encode())
        elif f"/resolve/{COMMIT}/" in self.path:
            self.download()
        else:
            self.answer(404, b"{}")

    def tree(self, repo):
        sha = hashlib.sha256(BYTES).hexdigest() if repo != "wrong" else "0" * 64
        names = {"split": ["tiny-Q8_0-00001-of-00002.gguf"], "empty": ["README.md"]}
        names = names.get(repo, ["mmproj-Q8_0.gguf", "tiny Q4_0.gguf", "sub folder/tiny-Q8_0.gguf"])
        return [{"type": "file", "path": name, "size": len(BYTES), "lfs": {"oid": sha, "size": len(BYTES)}} for name in names]

    def download(self):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-"))
        start, end = int(asked[1]), int(asked[2] or len(BYTES) - 1)
        headers = {"Content-Range": f"bytes {start}-{end}/{len(BYTES)}"} if "Range" in self.headers else {}
        self.answer(206 if headers else 200, BYTES[start : end + 1], headers, cut=self.path not in Hub.cut)
        Hub.cut.add(self.path)

    def answer(self, status, body, headers=None, cut=False):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut

    def log_message(self, *_):
        pass


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HEARTH_", "HF_"))}
    return {**kept, MARK: "1", **more}


def heed_signals():
    """A job started in the background ignores SIGINT, one under nohup SIGHUP, and a shell cannot trap what it inherits ignored."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def start(*options, script=SCRIPT, cwd="/", **more):
    return subprocess.Popen(
        [str(script), "--no-install", "--profile", "dev", *options],
        cwd=cwd, env=environment(**more), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", preexec_fn=heed_signals,
    )


def run(*options, **more):
    process = start(*options, **more)
    said, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, said


def left_behind():
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if MARK.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            pass
    return found


def gone(what):
    deadline = time.monotonic() + 10
    while left := left_behind():
        assert time.monotonic() < deadline, f"{what} left processes behind: {left}"
        time.sleep(0.05)
    assert not STATE.exists(), f"{what} left {STATE} behind"


def a_file_is_served_from_any_folder_even_with_a_space(_):
    with tempfile.TemporaryDirectory(prefix="a folder ") as folder:
        link = pathlib.Path(folder) / "the house"
        link.symlink_to(ROOT)
        shutil.copy(MODEL, pathlib.Path(folder) / "my model.gguf")
        status, said = run("--check", "--model", "my model.gguf", script=link / "deploy/quickstart.sh", cwd=folder)
    assert status == 0 and "check passed" in said, said
    status, said = run("--check", "--model", "missing.gguf")
    assert status == 1 and "no such model file: missing.gguf" in said, said


def a_cut_download_goes_on_and_is_kept(hub):
    with tempfile.TemporaryDirectory() as home:
        status, said = run("--check", "--model", "hf:me/tiny:Q8_0", HF_ENDPOINT=hub, HF_TOKEN="hf_secret", HF_HOME=home)
        assert status == 0 and "check passed" in said, said
        downloads = [(path, range) for path, range, _ in Hub.asked if path.endswith("/sub%20folder/tiny-Q8_0.gguf")]
        assert len(downloads) >= 2, downloads
        assert any(int(range.removeprefix("bytes=").split("-")[0]) > 0 for _, range in downloads), downloads
        assert all(token == "Bearer hf_secret" for *_, token in Hub.asked), Hub.asked
        assert "hf_secret" not in said
        before = len([asked for asked in Hub.asked if "/resolve/" in asked[0]])
        status, said = run("--check", "--model", "hf:me/tiny:Q8_0", HF_ENDPOINT=hub, HF_HOME=home)
        assert status == 0, said
        assert len([asked for asked in Hub.asked if "/resolve/" in asked[0]]) == before, "it was kept"


def what_is_not_the_model_is_refused(hub):
    with tempfile.TemporaryDirectory() as home:
        for repo, words in [
            ("me/wrong:Q8_0", "does not have the SHA-256"),
            ("me/split:Q8_0", "holds 1 of the 2 parts"),
            ("me/empty", "holds no GGUF file"),
            ("nobody/nothing", "does not exist"),
            ("not a name", "USER/REPO"),
        ]:
            status, said = run("--check", "--model", f"hf:{repo}", HF_ENDPOINT=hub, HF_HOME=home)
            assert status == 1 and words in said, (repo, said)
        assert not list(pathlib.Path(home).rglob("tiny-Q8_0.gguf")), "a wrong file is not kept"


def signals_during_a_build_leave_nothing(_):
    with tempfile.TemporaryDirectory() as folder:
        cargo = pathlib.Path(folder) / "cargo"
        cargo.write_text("#!/bin/sh\nsleep 300 &\necho building\nwait\n")
        cargo.chmod(0o755)
        for number, expected in [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]:
            # without HOME no ~/.cargo/env puts the real cargo before this one
            process = start(PATH=f"{folder}:{os.environ['PATH']}", HOME=folder)
            told = ""
            while told != "building\n":
                told = process.stdout.readline()
                assert told, "the build did not start"
            process.send_signal(number)
            process.communicate(timeout=10)
            assert process.returncode == expected, process.returncode
            gone(f"a build with {number.name}")


def signals_while_it_comes_up_and_runs_leave_nothing(_):
    for moment in ["starting the proxy", "the node joins", "Ctrl-C stops it"]:
        for number, expected in [(signal.SIGTERM, 143), (signal.SIGINT, 130)]:
            process = start()
            while moment not in (told := process.stdout.readline()):
                assert told, f"it ended before {moment!r}"
            process.send_signal(number)
            process.communicate(timeout=30)
            assert process.returncode == expected, (moment, process.returncode)
            gone(f"{moment!r} with {number.name}")


def a_second_one_leaves_the_first_alone(_):
    first = start()
    while "Ctrl-C stops it" not in (told := first.stdout.readline()):
        assert told, "the first did not start"
    status, said = run("--check")
    assert status == 1 and f"process {first.pid}" in said, said
    assert first.poll() is None and STATE.exists()
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=30)
    gone("the first of two")


def main():
    hub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    checks = [
        a_file_is_served_from_any_folder_even_with_a_space,
        a_cut_download_goes_on_and_is_kept,
        what_is_not_the_model_is_refused,
        signals_during_a_build_leave_nothing,
        signals_while_it_comes_up_and_runs_leave_nothing,
        a_second_one_leaves_the_first_alone,
    ]
    try:
        for check in checks:
            began = time.monotonic()
            check(f"http://127.0.0.1:{hub.server_port}")
            gone(check.__name__)
            print(f"ok {check.__name__.replace('_', ' ')} ({time.monotonic() - began:.1f} s)", flush=True)
    finally:
        hub.shutdown()
    print(f"{len(checks)} passed")


main()

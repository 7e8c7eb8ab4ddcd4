"""The administration API against its own description, with schemathesis: starts a proxy, makes an administrator's key, sends what
the description allows and what it forbids, and takes every difference for a failure. The last line counts the operations.

Run by tests/run.sh with the Python of tests/.venv/schemathesis. HEARTH_PROXY names the program, default target/debug/hearth-proxy.
"""

import json
import os
import pathlib
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROXY = os.environ.get("HEARTH_PROXY", str(ROOT / "target/debug/hearth-proxy"))
STARTS_WITHIN_S = 30
RUNS_WITHIN_S = 55
SETTINGS = """
[server]
listen = ["127.0.0.1:{port}"]
admin_listen = "off"
state_dir = "{state}"
[tunnel]
listen = "127.0.0.1:0"
[limits]
guard_per_minute = 1000000
guard_burst = 1000000
health_per_minute_per_ip = 1000000
health_per_minute_per_user = 1000000
[limits.plans.family]
text_per_day = 1000
"""


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def wait_until_it_answers(url, proxy):
    trusting = ssl._create_unverified_context()
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline:
        if proxy.poll() is not None:
            sys.exit(f"hearth-proxy ended with {proxy.returncode} before it answered")
        try:
            urllib.request.urlopen(f"{url}/healthz", context=trusting, timeout=1)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    sys.exit(f"hearth-proxy did not answer within {STARTS_WITHIN_S} s")


def status(url, key):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    try:
        return urllib.request.urlopen(request, context=ssl._create_unverified_context(), timeout=5).status
    except urllib.error.HTTPError as refused:
        return refused.code


def schemathesis(url, made, folder):
    key = made["key"]
    report = folder / "report.json"
    command = [
        str(pathlib.Path(sys.executable).with_name("st")), "--config-file", str(HERE / "schemathesis.toml"), "run", f"{url}/admin/v1/openapi.json",
        "--header", f"Authorization: Bearer {key}", "--tls-verify", "false", "--workers", "1", "--max-time", str(RUNS_WITHIN_S - 15),
        "--max-examples", os.environ.get("EXAMPLES", "25"), "--generation-database", "none", "--warnings", "off",
        "--report", "json", "--report-json-path", str(report), "--no-color", "--request-timeout", "10",
    ]
    if seed := os.environ.get("SEED"):
        command += ["--seed", seed]
    own = {"HEARTH_OWN": f"check {key} {made['record']['id']}", "SCHEMATHESIS_HOOKS": str(HERE / "hooks.py")}
    run = subprocess.run(command, cwd=folder, env={**os.environ, **own}, timeout=RUNS_WITHIN_S + 30, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return run.returncode, run.stdout


def main():
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hearth-admin-") as name:
        folder, port = pathlib.Path(name), free_port()
        settings, url = folder / "proxy.toml", f"https://127.0.0.1:{port}"
        settings.write_text(SETTINGS.format(port=port, state=folder / "state"))
        command = [PROXY, "--config", str(settings)]
        with open(folder / "proxy.log", "w") as log, subprocess.Popen([*command, "serve"], stdout=log, stderr=log) as proxy:
            try:
                wait_until_it_answers(url, proxy)
                made = subprocess.run([*command, "--json", "key", "create", "--admin", "--name", "check"], check=True, stdout=subprocess.PIPE, text=True)
                made = json.loads(made.stdout)
                code, text = schemathesis(url, made, folder)
                is_good = status(f"{url}/admin/v1/status", made["key"]) == 200
            finally:
                proxy.terminate()
        log = (folder / "proxy.log").read_text()
    if code != 0:
        print(text)
        sys.exit(f"the administration API differs from its description (schemathesis ended with {code})")
    if not is_good:
        sys.exit("the run ended its own key: what came after it tested nothing; run it again")
    if "panicked" in log:
        sys.exit(f"the proxy panicked:\n{log[-4000:]}")
    tested = re.search(r"Tested: *(\d+)|(\d+) operations?", text)
    cases = re.search(r"(\d+) generated", text)
    print("\n".join(text.splitlines()[-20:]))
    number = next((group for group in (tested.groups() if tested else []) if group), "0")
    print(f"{number} passed: operations of /admin/v1, {cases.group(1) if cases else '?'} requests, in {time.monotonic() - started:.0f} s")


main()

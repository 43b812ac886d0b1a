"""Fetches files of checkpoints, and shows how far it is while it runs.

What is elsewhere is fetched by a service of the host, which this starts and watches; what lies on the controller (or
was fetched there, for hosts that have no way out) is sent in pieces over the connection that Ansible has, each at its
place in the file, so that a run that was cut off goes on from there.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from fleet.fetch_job import Job, job_files
from fleet.fetch_progress import duration_words, progress_line, rate_words

display = Display()
PIECE_BYTES = 32 << 20
FIRST_POLL_S, LONGEST_POLL_S = 0.3, 5.0
SAY_EVERY_S = 10.0


class Teller:
    """Says how far a host is: soon after the start, then every ten seconds, and at the end."""

    def __init__(self, host: str, what: str) -> None:
        self._host, self._what = host, what
        self._begun = self._said = time.monotonic()
        self._due_s = 1.0

    def tell(self, done: int, total: int, rate: float | None = None) -> None:
        """How far it is now; said when it is time. Without ``rate``, the mean so far."""
        now = time.monotonic()
        if not total or now - self._said < self._due_s:
            return
        self._say(done, total, done / (now - self._begun) if rate is None else rate)
        self._said, self._due_s = now, SAY_EVERY_S

    def end(self, fetched: int, total: int) -> None:
        """It is all there; ``fetched`` bytes of it are from this run."""
        seconds = time.monotonic() - self._begun
        mean = f", in {duration_words(seconds)} at {rate_words(fetched / seconds)}" if fetched else ""
        self._say(total, total, 0, mean)

    def _say(self, done: int, total: int, rate: float, more: str = "") -> None:
        display.display(f"[{self._host}] {self._what}: {progress_line(done, total, rate)}{more}", color="bright gray")


class ActionModule(ActionBase):
    """The module's controller side; see DOCUMENTATION of the module."""

    _requires_connection = True
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Bring the files; fails with the one line that the host or the server gave."""
        result = super().run(tmp, task_vars)
        arguments = {"fetch_on": "host", "path": "/var/lib/l40s-fleet/models", **self._task.args}
        files = [{"source_path": "", "have_bytes": 0, "locations": [], **one} for one in arguments["files"]]
        left = sum(int(one["bytes"]) - int(one["have_bytes"]) for one in files)
        if not files or self._task.check_mode:
            return result | {"changed": bool(files), "msg": f"{left} bytes to fetch"}
        host = task_vars["inventory_hostname"]
        if arguments["fetch_on"] == "controller":
            files = self._fetch_here(host, arguments, files)
        # An empty file is nothing to send: the host makes it.
        here = [one for one in files if one["source_path"] and int(one["have_bytes"]) < int(one["bytes"])]
        elsewhere = [one for one in files if not one["source_path"]]
        if here:
            self._send(host, arguments, here, task_vars)
        if elsewhere:
            self._fetch_there(host, arguments, elsewhere, task_vars)
        return result | {"changed": True, "bytes": left}

    def _module(self, arguments, task_vars):
        """The module on the host; its failure becomes this task's."""
        answer = self._execute_module("fleet_checkpoint_fetch", module_args=arguments, task_vars=task_vars)
        if answer.get("failed"):
            raise AnsibleActionFail(answer.get("msg", "the module failed"), result=answer)
        return answer

    def _fetch_there(self, host, arguments, files, task_vars):
        wanted = {name: value for name, value in arguments.items() if name not in ("files", "fetch_on", "cache_dir")}
        self._module({**wanted, "files": files, "state": "started"}, task_vars)
        teller, pause = Teller(host, "fetches checkpoints"), FIRST_POLL_S
        before = sum(int(one["have_bytes"]) for one in files)
        while True:
            time.sleep(pause)
            pause = min(LONGEST_POLL_S, pause * 1.5)
            found = self._module({"state": "polled"}, task_vars)["fetch"]
            if found["state"] == "failed":
                raise AnsibleActionFail(found["error"])
            if found["state"] == "done":
                teller.end(found["total_bytes"] - before, found["total_bytes"])
                return
            teller.tell(found["bytes"], found["total_bytes"], found["bytes_per_s"])

    def _fetch_here(self, host, arguments, files):
        """Fetch on the controller what is elsewhere; returns the files as ones that lie here."""
        cache = Path(arguments.get("cache_dir", "~/.cache/l40s-fleet")).expanduser() / "blobs"
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Files of the host itself are no use here.
        remote = [
            {**one, "locations": [place for place in one["locations"] if not place[0].startswith("file:")]}
            for one in files
            if not one["source_path"]
        ]
        with (cache / ".lock").open("w") as lock:
            # Hosts that need the same file find it here when their turn comes.
            fcntl.flock(lock, fcntl.LOCK_EX)
            missing = [one for one in remote if not (cache / one["sha256"]).with_suffix(".whole").exists()]
            job = Job(str(cache), job_files(missing), arguments.get("tokens", {}), arguments.get("proxy", ""))
            if missing:
                self._run_here(host, cache / "progress.json", job.to_document())
            for one in missing:
                (cache / one["sha256"]).with_suffix(".whole").touch()
        return [{**one, "source_path": one["source_path"] or str(cache / one["sha256"])} for one in files]

    @staticmethod
    def _run_here(host, progress, document):
        progress.unlink(missing_ok=True)
        teller = Teller("localhost", f"fetches checkpoints for {host}")
        command = [sys.executable, "-m", "fleet.fetch_job", "-", str(progress)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            process.stdin.write(json.dumps(document))
            process.stdin.close()
            found = {"bytes": 0, "total_bytes": 0, "bytes_per_s": 0}
            while process.poll() is None:
                time.sleep(FIRST_POLL_S)
                found = json.loads(progress.read_text()) if progress.exists() else found
                teller.tell(found["bytes"], found["total_bytes"], found["bytes_per_s"])
            words = process.stderr.read().strip().splitlines()
        if process.returncode:
            raise AnsibleActionFail(words[-1] if words else f"fleet.fetch_job ended with {process.returncode}")
        teller.end(found["total_bytes"], found["total_bytes"])

    def _send(self, host, arguments, files, task_vars):
        """Send files in pieces, each to its place."""
        self._module({"path": arguments["path"], "state": "receiving"}, task_vars)
        total = sum(int(one["bytes"]) for one in files)
        done = begin = sum(int(one["have_bytes"]) for one in files)
        teller = Teller(host, "is sent checkpoints")
        for one in files:
            target = f"{arguments['path']}/.incoming/{one['sha256']}"
            position = int(one["have_bytes"])
            with open(one["source_path"], "rb") as source:
                source.seek(position)
                while piece := source.read(PIECE_BYTES):
                    self._write(target, position, piece)
                    position += len(piece)
                    done += len(piece)
                    teller.tell(done, total)
            if position != int(one["bytes"]):
                raise AnsibleActionFail(f"{one['source_path']}: is {position} bytes long, {one['bytes']} were planned")
        teller.end(done - begin, total)

    def _write(self, target, position, piece):
        """One piece to its place. What was written beyond it belongs to nothing and goes."""
        quoted = self._connection._shell.quote(target)
        command = f"umask 077 && dd of={quoted} bs=1048576 seek={position} oflag=seek_bytes iflag=fullblock status=none"
        answer = self._low_level_execute_command(command, in_data=piece)
        if answer["rc"]:
            raise AnsibleActionFail(f"{target}: {answer['stderr'].strip() or answer['stdout'].strip()}")

"""Configurations judged by the installed engine's own parser before they replace what runs.

The check is a transient unit of its own: an unprivileged user without network, and on GPU hosts without the device of
unified memory, so that no CUDA context can be made and no memory of a GPU be taken.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .instances import CONFIG, ENVIRONMENT
from .systemd import run_command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .instances import Desired
    from .systemd import RunCommand

PROGRAM = Path("/usr/local/lib/l40s-fleet/vllm-check-arguments")
LIMIT_S = 180
"""Importing the engine takes 5 to 30 s; the rest is quick."""
_MAX_LENGTH = 400
_ENGINE = re.compile(r'^FLEET_ENGINE_DIRECTORY="?([^"\n]+)"?$', re.MULTILINE)
_MODEL = re.compile(r"^model: *['\"]?(/[^'\"\n]+?)['\"]? *$", re.MULTILINE)
_ENVIRONMENT = ("HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1")
_CACHE = "l40s-fleet-check"
_PROPERTIES = (
    "DynamicUser=yes",
    # The engine remembers there what it found out about model classes, which takes it some seconds each.
    f"CacheDirectory={_CACHE}",
    f"RuntimeMaxSec={LIMIT_S}",
    "TimeoutStopSec=5",
    "UMask=0077",
    "CapabilityBoundingSet=",
    "NoNewPrivileges=yes",
    "PrivateNetwork=yes",
    "PrivateTmp=yes",
    "PrivateIPC=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "ProtectProc=invisible",
    "ProtectKernelTunables=yes",
    "ProtectControlGroups=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "SystemCallFilter=@system-service",
    "SystemCallErrorNumber=EPERM",
    "DevicePolicy=closed",
    # What NVML opens.
    "DeviceAllow=/dev/nvidiactl rw",
    "DeviceAllow=char-nvidia rw",
    "DeviceAllow=char-nvidia-frontend rw",
)


@dataclass(frozen=True)
class Judgement:
    """What the engine says of configurations.

    Attributes:
        refusals: by id, in the engine's words.
        unjudged: by id, why it could not say; only a start can tell.
    """

    refusals: Mapping[str, str] = field(default_factory=dict)
    unjudged: Mapping[str, str] = field(default_factory=dict)


def check_arguments(
    instances: Sequence[Desired],
    run: Callable[[Sequence[str]], RunCommand] = run_command,
    *,
    program: Path = PROGRAM,
    scratch: Path = Path("/run"),
) -> Judgement:
    """Have each instance's engine judge its configuration, all of one engine in one go.

    Instances whose engine or checkpoint is not on the host are passed over: in check mode a host may still be bare.
    """
    by_engine: dict[Path, list[Desired]] = {}
    for one in instances:
        engine, model = _ENGINE.search(one.files[ENVIRONMENT]), _MODEL.search(one.files[CONFIG])
        if engine and program.exists() and (model is None or Path(model[1]).is_dir()):
            by_engine.setdefault(Path(engine[1]), []).append(one)
    refusals: dict[str, str] = {}
    unjudged: dict[str, str] = {}
    for engine_directory in sorted(by_engine):
        python = engine_directory / "bin" / "python"
        if python.exists():
            answers = _ask(python, by_engine[engine_directory], run, program, scratch)
            refusals |= {name: answer["refusal"] for name, answer in answers.items() if "refusal" in answer}
            unjudged |= {name: answer["unjudged"] for name, answer in answers.items() if "unjudged" in answer}
    return Judgement(
        {name: text[:_MAX_LENGTH] for name, text in refusals.items()},
        {name: text[:_MAX_LENGTH] for name, text in unjudged.items()},
    )


def _ask(
    python: Path,
    instances: Sequence[Desired],
    run: Callable[[Sequence[str]], RunCommand],
    program: Path,
    scratch: Path,
) -> dict[str, dict[str, str]]:
    directory = Path(tempfile.mkdtemp(prefix="l40s-fleet-check-", dir=scratch))
    try:
        for path in (directory, *(directory / one.id for one in instances)):
            path.mkdir(exist_ok=True)
            path.chmod(0o755)
        for one in instances:
            for name in (CONFIG, ENVIRONMENT):
                (directory / one.id / name).write_text(one.files[name], encoding="utf-8")
                (directory / one.id / name).chmod(0o644)
        home = f"HOME=/var/cache/{_CACHE}"
        command = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect"]
        command += [f"--property={text}" for text in _PROPERTIES]
        command += [f"--setenv={text}" for text in (*_ENVIRONMENT, home)]
        status, output, error = run([*command, str(python), str(program), str(directory)])
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    try:
        answer: dict[str, dict[str, str]] = json.loads(output.strip().splitlines()[-1])
    except (IndexError, ValueError):
        pass
    else:
        return answer
    said = (error.strip().splitlines() or [f"no answer within {LIMIT_S} s"])[-1]
    return {one.id: {"unjudged": f"the check ended with status {status}: {said}"} for one in instances}

"""What the probe found before the first change, as rows of the preflight's table beside what the script printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .preflight import Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Of these site.yml can mend nothing, and a later stage would fail for them. Of what the driver lacks
# ``preflight_driver`` knows more, and a GPU that must not be used is left out of the plan.
_STOP = ("vgpu_guest", "shm", "disk")


def judge_documents(documents: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Return a row for each check of a host or a GPU that is degraded or blocked, in the order of the hosts.

    Args:
        documents: host documents, by host.
    """
    return [row for host, document in documents.items() for row in _rows(host, document)]


def _rows(host: str, document: Mapping[str, Any]) -> Iterator[Row]:
    for check in _failed(document):
        status = "blocked" if check["status"] == "blocked" and check["name"] in _STOP else "degraded"
        yield Row(host, check["name"], status, check["evidence"], check["remedy"])
    for gpu in document["gpus"]:
        for check in _failed(gpu):
            status = "not used" if check["status"] == "blocked" else "degraded"
            yield Row(host, f"GPU {gpu['index']} {check['name']}", status, check["evidence"], check["remedy"])


def _failed(subject: Mapping[str, Any]) -> list[dict[str, str]]:
    return [check for check in subject["health"]["checks"] if check["status"] in ("degraded", "blocked")]

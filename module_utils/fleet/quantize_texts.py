"""Finds on the controller the texts that models.yml names for calibration. Does I/O."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from .document_checks import faults_error, path_of
from .quantize_plan import Text
from .requests import relative_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .requests import ModelRequest


def calibration_texts(requests: Sequence[ModelRequest], models_file: str) -> dict[str, Text]:
    """The text of every model that names one.

    Raises:
        FleetError: one line for each text that is missing or no UTF-8.
    """
    found: dict[str, Text] = {}
    faults: list[tuple[str, str]] = []
    for index, request in enumerate(requests):
        if request.quantize is None or request.quantize.calibration is None:
            continue
        where = f"{models_file}: {path_of('models', index)}.quantize.calibration"
        path = Path(relative_to(models_file, request.quantize.calibration)).absolute()
        try:
            content = path.read_bytes()
            content.decode("utf-8")
        except UnicodeDecodeError:
            faults.append((where, f"{path} is no UTF-8 text"))
        except OSError as error:
            faults.append((where, f"{path}: {(error.strerror or str(error)).lower()}"))
        else:
            found[request.name] = Text(str(path), hashlib.sha256(content).hexdigest())
    if faults:
        raise faults_error(faults)
    return found

"""Goes through the steps of a job of fleet_quantize, and shows how far it is while it runs."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

# A job that says nothing new is shown again after so many looks of the module's wait_s.
_SILENT_LOOKS = 6


class ActionModule(ActionBase):  # type: ignore[misc]
    """Starts a job, watches it, and has its result judged."""

    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """The result of the last step."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        host = (task_vars or {}).get("inventory_hostname", "")
        arguments = self._task.args
        if arguments.get("step", "look") != "look":
            return {**result, **self._step(task_vars)}
        started = self._step(task_vars, step="start")
        if started.get("failed") or self._task.check_mode or started.get("outcome") != "running":
            return {**result, **started}
        name = f"{arguments['job']['model']} {arguments['job'].get('words', '')}".strip()
        seen, looks = 0.0, 0
        while True:
            now = self._step(task_vars, step="watch", seen=seen)
            if now.get("failed"):
                return {**result, **now}
            status = now["status"]
            looks = 0 if status.get("updated_at", 0.0) > seen else looks + 1
            if status and looks % _SILENT_LOOKS == 0:
                self._display.display(f"{host}: {name}: {progress_words(status)}")
            seen = status.get("updated_at", seen)
            if not now["running"]:
                break
        finished = self._step(task_vars, step="finish")
        if not finished.get("failed"):
            self._display.display(f"{host}: {name}: {finished['outcome']}: {finished['words']}")
        return {**result, **finished, "diff": started.get("diff", {})}

    def _step(self, task_vars: dict[str, Any] | None, **arguments: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._execute_module(
            module_name="fleet_quantize", module_args={**self._task.args, **arguments}, task_vars=task_vars
        )
        return found


def progress_words(status: dict[str, Any]) -> str:
    """A status in words."""
    if "failed" in status:
        return f"{status['step']} failed"
    words = f"{status['step']}"
    if status.get("unit"):
        words += f", {status['done']} of {status['of']} {status['unit']}"
    words += f", {duration(status['elapsed_s'])} so far"
    if status.get("left_s"):
        words += f", about {duration(status['left_s'])} left"
    return words


def duration(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

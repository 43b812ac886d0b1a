"""One process of a link test. It runs under the engine's Python, with the engine's torch, and prints one line of JSON.

The runner starts it from its text and kills it when it hangs; so nothing here waits with a limit of its own. With the
backend ``gloo`` the same steps run on CPUs and say nothing about GPUs: that is for the lab.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

# In front of the result, since libraries print to standard output as well.
MARK = "LINK-TEST-RESULT "
_COPY_BYTES = 64 << 20
_COPY_SECONDS = 0.3
_SLEEP_CYCLES = 10**13
_TIMED_S = 0.1
_MOST_ITERATIONS = 50


class Worker:
    """One rank.

    Args:
        request: ``task`` (``single``, ``pair`` or ``group``), ``backend`` (``nccl`` or ``gloo``), ``rank``, ``world``,
            ``store`` (a file for the rendezvous), ``sizes`` (bytes, for ``group``), ``hang`` (waits for ever, to see
            the time-out work), ``link_speed`` (the file in sysfs that shows a GPU's link, for ``single``).
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.torch: Any = importlib.import_module("torch")
        self.dist: Any = importlib.import_module("torch.distributed")
        self.cuda = request["backend"] == "nccl"
        self.rank, self.world = int(request["rank"]), int(request["world"])
        self.device = self.torch.device(f"cuda:{self.rank}" if self.cuda else "cpu")
        if self.cuda:
            self.torch.cuda.set_device(self.device)

    def run(self) -> dict[str, Any]:
        """Do the task and return its result."""
        if self.request.get("hang") and self.rank == self.world - 1:
            self._hang()
        if self.request["task"] == "single":
            result = self._copies(self.torch.device("cpu"), self.device)
            result |= {"link_speed": self._link_speed_at_work()}
        elif self.request["task"] == "pair" and self.cuda and self.rank == 0:
            result = self._copies(self.torch.device("cuda:0"), self.torch.device("cuda:1"))
            result["peer_access"] = bool(self.torch.cuda.can_device_access_peer(0, 1))
        else:
            result = {}
        self._join()
        self._reduced_right(1 << 20)
        if self.request["task"] == "pair":
            result["bytes_per_s"] = self._sent_bytes_per_s()
        if self.request["task"] == "group":
            result["all_reduce"] = [
                {"bytes": size, "seconds": self._all_reduce_s(size)} for size in self.request["sizes"]
            ]
        self.dist.destroy_process_group()
        return result

    def _hang(self) -> None:
        if self.cuda:
            # A kernel that does not end, as a copy between GPUs that cannot reach each other does.
            self.torch.cuda._sleep(_SLEEP_CYCLES)
            self.torch.cuda.synchronize()
        while True:
            time.sleep(3600)

    def _join(self) -> None:
        store = self.dist.FileStore(self.request["store"], self.world)
        options = {"device_id": self.device} if self.cuda else {}
        self.dist.init_process_group(
            self.request["backend"], store=store, rank=self.rank, world_size=self.world, **options
        )

    def _copies(self, a: Any, b: Any) -> dict[str, Any]:
        """Write a pattern at one end, carry it over and back, and compare it."""
        pattern = self.torch.arange(_COPY_BYTES // 4, dtype=self.torch.int32)
        at_a = pattern.to(a, copy=True)
        at_b = at_a.to(b, copy=True)
        back = at_b.add(1).to(a)
        wrong = [
            f"{where}: {count} of {pattern.numel()} words arrived wrong"
            for where, count in (
                (f"{a} to {b}", int((at_b.cpu() != pattern).sum())),
                (f"{b} to {a}", int((back.cpu() != pattern + 1).sum())),
            )
            if count
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return {"copy_bytes_per_s": _COPY_BYTES / self._seconds(lambda: at_b.copy_(at_a))}

    def _link_speed_at_work(self) -> str | None:
        """What sysfs says about the GPU's link while data crosses it: an idle link is shown slower than it is."""
        path = self.request.get("link_speed")
        if not path or not self.cuda:
            return None
        source = self.torch.empty(_COPY_BYTES, dtype=self.torch.uint8).pin_memory()
        target = self.torch.empty_like(source, device=self.device)
        until = time.monotonic() + _COPY_SECONDS
        speed = None
        while time.monotonic() < until:
            for _ in range(8):
                target.copy_(source, non_blocking=True)
            try:
                speed = Path(path).read_text(encoding="ascii").strip()
            except OSError:
                return None
            self._wait()
        return speed

    def _tensor(self, size_bytes: int) -> Any:
        # 16-bit elements, as engines reduce them; gloo's are 32-bit.
        dtype, width = (self.torch.bfloat16, 2) if self.cuda else (self.torch.float32, 4)
        return self.torch.zeros(max(1, size_bytes // width), dtype=dtype, device=self.device)

    def _reduced_right(self, size_bytes: int) -> None:
        tensor = self._tensor(size_bytes).add_(self.rank + 1)
        self.dist.all_reduce(tensor)
        expected = self.world * (self.world + 1) // 2
        wrong = int((tensor != expected).sum())
        if wrong:
            raise ValueError(f"all-reduce of {size_bytes} bytes: {wrong} of {tensor.numel()} elements are wrong")

    def _all_reduce_s(self, size_bytes: int) -> float:
        self._reduced_right(size_bytes)
        tensor = self._tensor(size_bytes)
        return self._seconds(lambda: self.dist.all_reduce(tensor), together=True)

    def _sent_bytes_per_s(self) -> float:
        size_bytes = _COPY_BYTES if self.cuda else _COPY_BYTES // 16
        tensor = self._tensor(size_bytes)
        exchange = self.dist.send if self.rank == 0 else self.dist.recv
        return size_bytes / self._seconds(lambda: exchange(tensor, 1 - self.rank), together=True)

    def _seconds(self, step: Callable[[], object], *, together: bool = False) -> float:
        """Seconds of one step: the median of three series, after a warm-up.

        Args:
            step: what is timed.
            together: all ranks do it, and so have to do it equally often.
        """
        for _ in range(3):
            step()
        self._wait()
        begun = time.perf_counter()
        step()
        self._wait()
        once_s = time.perf_counter() - begun
        if together:
            shared = self._tensor(8).float().fill_(once_s)
            self.dist.all_reduce(shared, op=self.dist.ReduceOp.MAX)
            once_s = float(shared[0])
        iterations = max(2, min(_MOST_ITERATIONS, int(_TIMED_S / max(once_s, 1e-6))))
        series = []
        for _ in range(3):
            begun = time.perf_counter()
            for _ in range(iterations):
                step()
            self._wait()
            series.append((time.perf_counter() - begun) / iterations)
        return sorted(series)[1]

    def _wait(self) -> None:
        if self.cuda:
            self.torch.cuda.synchronize()


def main() -> int:
    """Run the request of the command line; the result or the error goes to standard output, as one line."""
    try:
        result: dict[str, Any] = {"result": Worker(json.loads(sys.argv[1])).run()}
    except Exception as error:  # the runner has to hear of any failure
        lines = str(error).strip().splitlines() or [""]
        result = {"error": f"{type(error).__name__}: {lines[0]}"[:300]}
    sys.stdout.write(f"\n{MARK}{json.dumps(result)}\n")
    sys.stdout.flush()
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main())

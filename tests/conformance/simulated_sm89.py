"""Makes vLLM's own code believe that it runs on a host with eight L40S, on a machine without a GPU.

The wheel's Python files are enough: compiled modules are stubbed, since building a configuration calls no kernel.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types

GPUS = 8
TOTAL_BYTES = 47_663_399_567


class _Stub(types.ModuleType):
    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_args, **_kwargs: None


class _CompiledModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers for vLLM's compiled modules."""

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        leaf = name.rpartition(".")[2]
        if name.startswith("vllm.") and (leaf.endswith("_C") or "_C_" in leaf):
            return importlib.machinery.ModuleSpec(name, self)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def _answer_support_questions() -> None:
    """Compiled kernels are asked at import what they support: they are there for sm89."""
    import torch  # noqa: PLC0415

    namespace = torch._ops._OpNamespace
    original = namespace.__getattr__

    def answered(self: object, name: str) -> object:
        try:
            return original(self, name)
        except AttributeError:
            if "_supports_" in name:
                return lambda *_args: True
            raise

    namespace.__getattr__ = answered


def install() -> None:
    """Put the stubs and the platform in place. Call before anything of vLLM is used."""
    sys.meta_path.insert(0, _CompiledModules())
    _answer_support_questions()
    # After the stubs: importing vLLM looks for its compiled modules.
    import vllm.platforms  # noqa: PLC0415
    from vllm.platforms.cuda import CudaPlatformBase  # noqa: PLC0415
    from vllm.platforms.interface import DeviceCapability  # noqa: PLC0415

    class SimulatedL40S(CudaPlatformBase):
        """Eight GPUs of compute capability 8.9."""

        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(8, 9)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "NVIDIA L40S"

        @classmethod
        def get_device_uuid(cls, device_id: int = 0) -> str:
            return f"GPU-00000000-0000-0000-0000-00000000000{device_id}"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return TOTAL_BYTES

        @classmethod
        def device_count(cls) -> int:
            return GPUS

        @classmethod
        def is_fully_connected(cls, physical_device_ids: list[int]) -> bool:
            return False

        @classmethod
        def log_warnings(cls) -> None:
            """There is no NVML to ask."""

        @classmethod
        def mem_get_info(cls, device: object = None) -> tuple[int, int]:
            return TOTAL_BYTES, TOTAL_BYTES

        @classmethod
        def num_compute_units(cls, device_id: int = 0) -> int:
            return 142

    vllm.platforms._current_platform = SimulatedL40S()

    from vllm.model_executor.models import registry  # noqa: PLC0415

    # A new process would know nothing of the stubs.
    registry._run_in_subprocess = lambda function: function()

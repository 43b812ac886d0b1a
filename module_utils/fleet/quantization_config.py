"""How a checkpoint says that it is quantized: ``quantization_config`` of config.json."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .config_reader import ConfigReader
from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping

# What the weights look like once loaded, which is what memory and speed depend on. The method says who wrote them.
WeightFormat = Literal["int4", "int8", "fp8", "fp8_block", "mxfp4"]


@dataclass(frozen=True, slots=True)
class QuantizationFacts:
    """A quantized checkpoint, or online quantization by the engine.

    ``group_size`` is input elements per scale, -1 for one scale per output channel, 0 for one per tensor.
    ``ignored`` are names, or with ``re:`` patterns, of modules left in full precision. ``quantized_modules``, where it
    is not None, names the only linear modules that are quantized; routed experts always are. ``online`` weights are
    quantized by the engine while it loads.
    """

    method: str
    weight_format: WeightFormat
    weight_bits: int
    group_size: int = -1
    zero_points: bool = False
    activation_bits: int | None = None
    act_order: bool = False
    ignored: tuple[str, ...] = ()
    block_shape: tuple[int, int] | None = None
    quantizes_head: bool = False
    quantized_modules: tuple[str, ...] | None = None
    online: bool = False

    def skips(self, module_names: tuple[str, ...]) -> bool:
        """Whether a linear module with these checkpoint names stays in full precision."""
        if self.quantized_modules is not None and not any(
            quantized in name for quantized in self.quantized_modules for name in module_names
        ):
            return True
        return any(_matches(pattern, name) for pattern in self.ignored for name in module_names)


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return pattern == name or name.startswith(f"{pattern}.") or name.endswith(f".{pattern}") or f".{pattern}." in name


def quantization_from_config(config: Mapping[str, object], *, where: str) -> QuantizationFacts:
    """Read ``quantization_config``.

    Raises:
        FleetError: a method or format that no sm89 engine serves, or a malformed value.
    """
    reader = ConfigReader(config, where)
    method = reader.text("quant_method").lower()
    build = _METHODS.get(method)
    if build is None:
        raise FleetError(
            f"{where}: quant_method", f"unknown method {method!r}, known are {', '.join(sorted(_METHODS))}"
        )
    return build(reader)


def _awq(reader: ConfigReader) -> QuantizationFacts:
    bits = reader.integer("bits", reader.optional_integer("w_bit") or 4)
    if bits != 4:
        raise FleetError(f"{reader.where}: bits", f"AWQ has 4 bits, got {bits}")
    return QuantizationFacts(
        method="awq",
        weight_format="int4",
        weight_bits=4,
        group_size=reader.integer("group_size", reader.optional_integer("q_group_size") or 128, minimum=-1),
        zero_points=reader.flag("zero_point", default=True),
        ignored=reader.texts("modules_to_not_convert"),
    )


def _gptq(reader: ConfigReader) -> QuantizationFacts:
    """Read GPTQ's configuration, which may leave it to the tensors which linear modules are quantized.

    The engine looks for them in the checkpoint's headers. From a config.json alone it finds none, and neither do we:
    ``checkpoint.py`` fills them in where there is an index or headers.
    """
    bits = reader.integer("bits")
    if bits not in (4, 8):
        raise FleetError(f"{reader.where}: bits", f"the Marlin kernels take 4 or 8 bits, got {bits}")
    return QuantizationFacts(
        method="gptq",
        weight_format="int4" if bits == 4 else "int8",
        weight_bits=bits,
        group_size=reader.integer("group_size", minimum=-1),
        zero_points=not reader.flag("sym", default=True),
        act_order=reader.flag("desc_act", default=False),
        quantizes_head=reader.flag("lm_head", default=False),
        quantized_modules=_gptq_modules(reader),
    )


def _gptq_modules(reader: ConfigReader) -> tuple[str, ...]:
    modules = reader.items("modules_in_block_to_quantize")
    flat = [name for item in modules for name in (item if isinstance(item, list) else [item])]
    return tuple(str(name) for name in flat)


def _fp8(reader: ConfigReader) -> QuantizationFacts:
    block = reader.integers("weight_block_size")
    if block and len(block) != 2:
        raise FleetError(f"{reader.where}: weight_block_size", f"must be two numbers, got {list(block)}")
    return QuantizationFacts(
        method="fp8",
        weight_format="fp8_block" if block else "fp8",
        weight_bits=8,
        group_size=block[1] if block else 0,
        activation_bits=8,
        ignored=reader.texts("modules_to_not_convert") or reader.texts("ignored_layers"),
        block_shape=(block[0], block[1]) if block else None,
    )


def _mxfp4(reader: ConfigReader) -> QuantizationFacts:
    return QuantizationFacts(
        method="mxfp4",
        weight_format="mxfp4",
        weight_bits=4,
        group_size=32,
        ignored=reader.texts("modules_to_not_convert"),
    )


def _compressed_tensors(reader: ConfigReader) -> QuantizationFacts:
    groups = reader.mapping("config_groups")
    if not groups:
        raise FleetError(f"{reader.where}: config_groups", "missing")
    schemes = {_scheme(group, f"{reader.where}: config_groups.{name}") for name, group in sorted(groups.items())}
    if len(schemes) > 1:
        raise FleetError(f"{reader.where}: config_groups", "groups of different precision are not supported")
    weight_format, bits, group_size, zero_points, activation_bits, act_order, block = schemes.pop()
    return QuantizationFacts(
        method="compressed-tensors",
        weight_format=weight_format,
        weight_bits=bits,
        group_size=group_size,
        zero_points=zero_points,
        activation_bits=activation_bits,
        act_order=act_order,
        ignored=reader.texts("ignore"),
        block_shape=block,
    )


_Scheme = tuple[WeightFormat, int, int, bool, "int | None", bool, "tuple[int, int] | None"]


def _scheme(group: object, where: str) -> _Scheme:
    if not isinstance(group, dict):
        raise FleetError(where, "must be a mapping")
    weights = ConfigReader(group, where).mapping("weights")
    if weights is None:
        raise FleetError(f"{where}.weights", "missing")
    reader = ConfigReader(weights, f"{where}.weights")
    bits = reader.integer("num_bits")
    kind = reader.text("type", "int")
    strategy = reader.text("strategy", "tensor")
    inputs = ConfigReader(group, where).mapping("input_activations")
    activation_bits = ConfigReader(inputs, f"{where}.input_activations").integer("num_bits") if inputs else None
    block = reader.integers("block_structure")
    match (kind, bits, activation_bits):
        case ("int", 4, None):
            weight_format: WeightFormat = "int4"
        case ("int", 8, None | 8):
            weight_format = "int8"
        case ("float", 8, None | 8):
            weight_format = "fp8_block" if strategy == "block" else "fp8"
        case _:
            raise FleetError(where, f"no engine on sm89 serves {kind}{bits} weights with {activation_bits}-bit inputs")
    group_size = {"group": reader.optional_integer("group_size") or 128, "tensor": 0, "channel": -1}.get(strategy, -1)
    return (
        weight_format,
        bits,
        group_size,
        weight_format in ("int4", "int8") and not reader.flag("symmetric", default=True),
        activation_bits,
        reader.text("actorder", "") == "group",
        (block[0], block[1]) if len(block) == 2 else None,
    )


_METHODS = {
    "awq": _awq,
    "awq_marlin": _awq,
    "gptq": _gptq,
    "gptq_marlin": _gptq,
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "compressed-tensors": _compressed_tensors,
}

# What a name in models.yml or on vLLM's command line makes of a checkpoint in full precision. The INT4 and INT8 entries
# are what this repository's quantize role writes; fp8 is also what the engine does online.
PLANNED: dict[str, QuantizationFacts] = {
    "fp8": QuantizationFacts(
        method="fp8",
        weight_format="fp8",
        weight_bits=8,
        group_size=0,
        activation_bits=8,
        ignored=("lm_head",),
        online=True,
    ),
    "int8": QuantizationFacts(
        method="compressed-tensors",
        weight_format="int8",
        weight_bits=8,
        group_size=-1,
        activation_bits=8,
        ignored=("lm_head",),
    ),
    "awq": QuantizationFacts(
        method="awq", weight_format="int4", weight_bits=4, group_size=128, zero_points=True, ignored=("lm_head",)
    ),
    "gptq": QuantizationFacts(method="gptq", weight_format="int4", weight_bits=4, group_size=128, ignored=("lm_head",)),
    "mxfp4": QuantizationFacts(
        method="mxfp4", weight_format="mxfp4", weight_bits=4, group_size=32, ignored=("lm_head",)
    ),
}


def planned_quantization(name: str, *, where: str) -> QuantizationFacts:
    """The quantization that ``name`` stands for.

    Raises:
        FleetError: no such name.
    """
    key = {"awq_marlin": "awq", "gptq_marlin": "gptq", "compressed-tensors": "int8"}.get(name, name)
    if key not in PLANNED:
        raise FleetError(where, f"unknown quantization {name!r}, known are {', '.join(sorted(PLANNED))}")
    return PLANNED[key]

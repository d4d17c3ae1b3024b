"""The compiled engine's C interface, native/vgg.h: structs, functions, error codes, and measurements of the machine."""

import ctypes
import os
import struct
from functools import cache
from pathlib import Path
from typing import Any

from ..arrays import Array
from ..errors import Error, one_line
from ..files import digest
from .engine import native_library

INTERFACE = 5  # VGG_INTERFACE of native/vgg.h
NO_MEMORY = 1  # the error code VGG_NO_MEMORY
# The names in native/dispatch.cpp, and those with instructions for bfloat16.
INSTRUCTIONS = ("auto", "amx", "avx512bf16", "avx512vnni", "avx512", "avx2vnni", "avx2", "neonbf16", "portable")
WITH_BFLOAT16 = ("amx", "avx512bf16", "neonbf16")

MISSING = (
    "this installation of vgg has no native engine, as there was no wheel for this platform and no C++ compiler; install a "
    "compiler and then vgg again"
)


class LayerStruct(ctypes.Structure):
    _fields_ = (
        ("operation", ctypes.c_int32), ("activation", ctypes.c_int32), ("inputs", ctypes.c_int32), ("outputs", ctypes.c_int32),
        ("kernel", ctypes.c_int32), ("kind", ctypes.c_int32), ("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p),
        ("scale", ctypes.c_void_p), ("group", ctypes.c_int64), ("numbers", ctypes.c_double * 4), ("zero", ctypes.c_void_p),
        ("output_scale", ctypes.c_float), ("output_zero", ctypes.c_int32),
    )  # fmt: skip


class OutputStruct(ctypes.Structure):
    _fields_ = (("step", ctypes.c_int32), ("values", ctypes.c_void_p))


class ComparisonStruct(ctypes.Structure):
    _fields_ = (
        ("step", ctypes.c_int32), ("area", ctypes.c_int32 * 4), ("weight", ctypes.c_void_p), ("differences", ctypes.c_void_p),
        ("moments", ctypes.c_void_p),
    )  # fmt: skip


def check(code: int, task: str) -> None:
    """Raise the exception of an error code of the C interface: MemoryError or Error. `task` is what needed memory."""
    if code == NO_MEMORY:
        raise MemoryError(f"not enough memory for {task}")
    if code:
        raise Error(library().vgg_error().decode())


@cache
def library() -> Any:
    """The compiled engine, with its functions' types. Raises Error if it is not the library of this version of vgg."""
    path = native_library()
    if path is None:
        raise Error(MISSING)
    try:
        if _is_truncated(path):
            raise OSError("the file is incomplete")
        loaded = ctypes.CDLL(str(path))
        numbers = [ctypes.c_int32() for _ in range(4)]
        loaded.vgg_interface(*map(ctypes.byref, numbers))
    except (OSError, AttributeError) as error:
        raise Error(f"{path}: can't load the native engine ({one_line(error)}); reinstall vgg") from None
    found = [one.value for one in numbers]
    expected = [INTERFACE, *map(ctypes.sizeof, (LayerStruct, OutputStruct, ComparisonStruct))]
    if found != expected:
        raise Error(
            f"{path}: the native engine is of another version of vgg (interface {found}, not {expected}); reinstall vgg"
        )
    pointer, integer, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    for name, result, *arguments in (
        ("vgg_error", text),
        ("vgg_instructions", integer, text, pointer),
        ("vgg_open", integer, text, integer, integer, pointer),
        ("vgg_add", integer, pointer, pointer),
        ("vgg_close", None, pointer),
        ("vgg_run", integer, pointer, pointer, integer, integer, integer, pointer, integer),
        ("vgg_compare", integer, pointer, pointer, integer, integer, integer, pointer, integer, pointer, integer),
        ("vgg_times", integer, pointer, pointer),
        ("vgg_peak", integer, text, integer, ctypes.c_double, pointer),
        ("vgg_bandwidth", integer, text, integer, pointer, ctypes.c_int64, pointer),
    ):
        function = getattr(loaded, str(name))
        function.restype, function.argtypes = result, arguments
    return loaded


def _is_truncated(path: Path) -> bool:
    """Whether an ELF file ends before its table of sections, its last part: the system would end the process that loads it."""
    with open(path, "rb") as file:
        head = file.read(64)
    if len(head) < 64 or head[:5] != b"\x7fELF\x02":
        return False  # the system refuses it by itself, or it is another system's format
    (start,), (size, count) = struct.unpack_from("<Q", head, 40), struct.unpack_from("<HH", head, 58)
    return bool(start + size * count > path.stat().st_size)


@cache
def build() -> str:
    """The digest of the compiled engine's file, which changes with its kernels."""
    path = native_library()
    return digest(path)[:16] if path else ""


def chosen_instructions() -> str:
    """The instruction set that the kernels use: the best one available, or the one that VGG_INSTRUCTIONS names."""
    name, chosen = os.environ.get("VGG_INSTRUCTIONS", "auto"), ctypes.c_char_p()
    if library().vgg_instructions(name.encode(), ctypes.byref(chosen)):
        reason = library().vgg_error().decode()
        raise Error(f"VGG_INSTRUCTIONS={name}: {reason}; choose from {', '.join(available_instructions())}")
    return (chosen.value or b"").decode()


def available_instructions() -> list[str]:
    """The values of VGG_INSTRUCTIONS that this machine supports: instruction sets, and `auto` for the best of them."""
    chosen = ctypes.c_char_p()
    return [name for name in INSTRUCTIONS if not library().vgg_instructions(name.encode(), ctypes.byref(chosen))]


def peak(threads: int, seconds: float) -> float:
    """The most multiply-adds per second that `threads` threads compute in registers."""
    result = ctypes.c_double()
    check(library().vgg_peak(chosen_instructions().encode(), threads, seconds, ctypes.byref(result)), "the measurement")
    return result.value


def bandwidth(threads: int, memory: Array) -> float:
    """Bytes per second that `threads` threads read from memory; `memory` is float32 and contiguous."""
    result, name = ctypes.c_double(), chosen_instructions().encode()
    code = library().vgg_bandwidth(name, threads, memory.ctypes.data, memory.size, ctypes.byref(result))
    check(code, "the measurement")
    return result.value

"""Machine code for this very processor, made by LLVM when a model is loaded: nothing is compiled beforehand or kept.

llvmlite brings LLVM. Such code runs on torch's own threads, the ones of its OpenMP: no others are started, and they
sleep when torch's do.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from pathlib import Path

import torch
from llvmlite import binding, ir

NEEDED = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})  # features; others are made use of where they are


@functools.cache
def features() -> frozenset[str]:
    """What this processor can do, in LLVM's words."""
    return frozenset(name for name, there in binding.get_host_cpu_features().items() if there)


def multiplies_pairs() -> bool:
    """Whether it multiplies pairs of bfloat16 in one instruction, and does it quickly.

    Intel's take two cycles for each, in which they do four multiplications of float32 numbers, as many (Sapphire
    Rapids: products of 4 rows take a quarter less time by those).
    """
    return "avx512bf16" in features() and str(binding.get_host_cpu_name()).startswith("znver")


def _may_make_code() -> None:
    """Raise an OSError where the system forbids a process to make code, as hardened ones may: LLVM would abort."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        start = ctypes.c_char.from_buffer(page)
        protect = ctypes.CDLL(None).mprotect
        failed = protect(ctypes.c_void_p(ctypes.addressof(start)), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC)
        del start
        if failed:
            raise OSError("this system forbids programs to make code")


class Compiled:
    """The functions of a module, compiled; the code stays as long as this does.

    Attributes:
        by: what compiled it.

    Raises:
        OSError, RuntimeError: it can't be.
    """

    def __init__(self, module: ir.Module) -> None:
        _may_make_code()
        self.by = ".".join(map(str, (*binding.llvm_version_info, binding.get_host_cpu_name())))
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        target = binding.Target.from_default_triple()
        machine = target.create_target_machine(
            cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3, jit=True
        )
        parsed = binding.parse_assembly(str(module))
        builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
        builder.getModulePassManager().run(parsed, builder)
        self._engine = binding.create_mcjit_compiler(parsed, machine)
        self._engine.finalize_object()

    def address(self, name: str) -> int:
        """Where a function begins."""
        return int(self._engine.get_function_address(name))


class Threads:
    """torch's threads, to run machine code on all of them at once.

    Raises:
        OSError, AttributeError: torch has no OpenMP here, or another one.
    """

    def __init__(self) -> None:
        library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
        self._parallel = ctypes.CDLL(str(library)).GOMP_parallel  # of whichever library torch has it from
        self._parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._parallel.restype = None

    def run(self, function: int, argument: int) -> None:
        """Have each thread call a function, by address, with one argument; done when all are."""
        self._parallel(function, argument, torch.get_num_threads(), 0)

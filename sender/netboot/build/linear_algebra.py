"""A stand-in for OpenBLAS, a quarter of the agent's size, which it never uses.

numpy's wheels link OpenBLAS for products of matrices of floating-point numbers. The agent computes with integers only.
The stand-in has the dot product with which numpy checks its library when it is imported; every other function says
that it is missing, and ends the program.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError
from sender.netboot.host_programs import run_host_program

LIBRARY: Final = "libscipy_openblas*.so*"
COMPANIONS: Final = ("libgfortran*.so*", "libquadmath*.so*")
"""Libraries that only OpenBLAS needs."""
_DOT: Final = "scipy_cblas_sdot64_"
_UNDEFINED: Final = re.compile(r"\sUND\s+(scipy_[A-Za-z0-9_]+)")

_TEXT: Final = """\
.section .note.GNU-stack,"",@progbits
.section .rodata
message: .ascii "diskcast: this live system has no linear algebra; please report this\\n"
.set message_bytes, . - message
.text
# float sdot(int64 n, const float *x, int64 step_x, const float *y, int64 step_y)
.globl {dot}
.type {dot}, @function
{dot}:
    xorps %xmm0, %xmm0
    testq %rdi, %rdi
    jle 2f
1:  movss (%rsi), %xmm1
    mulss (%rcx), %xmm1
    addss %xmm1, %xmm0
    leaq (%rsi,%rdx,4), %rsi
    leaq (%rcx,%r8,4), %rcx
    decq %rdi
    jnz 1b
2:  ret
{others}
    movl $1, %eax
    movl $2, %edi
    leaq message(%rip), %rsi
    movl $message_bytes, %edx
    syscall
    ud2
"""


def replace_openblas(site: Path, files: Iterable[Path], work: Path) -> None:
    """Replace numpy's OpenBLAS in a directory of Python packages.

    Args:
        site: the directory.
        files: the ELF files in it.
        work: a directory for intermediate files.

    Raises:
        ConfigurationError: this numpy has no OpenBLAS, or more than one.
    """
    libraries = list((site / "numpy.libs").glob(LIBRARY))
    if len(libraries) != 1:
        raise ConfigurationError(
            "numpy's wheel is unknown to this version of diskcast: it has no OpenBLAS library"
        )
    [library] = libraries
    users = [path for path in files if path.is_relative_to(site / "numpy")]
    output = run_host_program(["readelf", "--dyn-syms", "--wide", *users])
    symbols = sorted(set(_UNDEFINED.findall(output)) - {_DOT})
    others = "".join(f".globl {name}\n.type {name}, @function\n{name}:\n" for name in symbols)
    source, parts = work / "linear_algebra.s", work / "linear_algebra.o"
    source.write_text(_TEXT.format(dot=_DOT, others=others))
    run_host_program(["as", "--64", "-o", parts, source])
    run_host_program(["ld", "-shared", "--build-id=none", "-soname", library.name, "-o", library, parts])
    for pattern in COMPANIONS:
        for path in (site / "numpy.libs").glob(pattern):
            path.unlink()

"""Every FEC kernel as a test parameter: what only the fastest one gets right would break the other machines."""

from __future__ import annotations

from typing import Final

import pytest

from protocol.errors import MissingDependencyError
from protocol.fec.gf256 import Kernel, NumpyKernel
from protocol.fec.isal import IsalKernel, libraries


def _parameter(library: str, name: str) -> object:
    try:
        return pytest.param(IsalKernel(library, name), id=name)
    except MissingDependencyError as error:
        return pytest.param(None, id=name, marks=pytest.mark.skip(reason=str(error)))


ORACLE: Final[Kernel] = NumpyKernel()

ISAL_KERNELS: Final = [_parameter(library, name) for library, name in libraries()]
"""The system's ISA-L, skipped where it isn't installed, and pyeclib's."""

KERNELS: Final = [*ISAL_KERNELS, pytest.param(ORACLE, id=ORACLE.name)]

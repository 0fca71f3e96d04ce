"""The forward pass compiled by `torch.compile`, on CPUs to C++ and on GPUs to Triton; compiling is part of the build's bill."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jouleboard.recipes.interface import About, Declaration
from jouleboard.runtime import Compiled, Mode, Passes, Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class Compile(Declaration, tag="compile", tag_field="step", frozen=True, kw_only=True):
    """`passes: decode` compiles decode steps alone; `all` prefills and the scoring of given texts too.

    Numbers of rows and tokens are dynamic in the graphs, so there are two of each kind, for one row and for several, and none is
    compiled in a window. Needs `static-cache` before it.
    """

    about: ClassVar[About] = About(stage="runtime", changes=("work",), sets="compiled")

    passes: Passes
    mode: Mode = "default"

    def run_with(self, runtime: Runtime, found: Mapping[str, Any]) -> Runtime:  # noqa: ARG002 - follows from the fields
        """Set what is compiled."""
        return runtime.replaced(compiled=Compiled(passes=self.passes, mode=self.mode))

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - changes how the model is run
        """Leave the model as it is: it is compiled when it is finished."""
        return {}

    def missing(self, device: str) -> str | None:
        """Say which of a compiler's parts is missing; None: none."""
        why = super().missing(device)
        if why is not None:
            return why
        if device.startswith("cuda"):
            return None if importlib.util.find_spec("triton") else "the package triton is not installed, which compiles for GPUs"
        # As torch chooses it: CXX, or g++.
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            return f"there is no C++ compiler: {compiler} is not on the PATH (install g++, or set CXX)"
        header = Path(sysconfig.get_path("include")) / "Python.h"
        return None if header.is_file() else f"{header} is missing, which compiled code includes (install the development files of Python)"

"""Make a machine with one simulated GPU that other processes can run on, and print its environment as JSON.

    python -m tests.simulated_gpu machine FOLDER --library DIR

FOLDER gets the control file and the load file; DIR the library, named by the digest of its source and built only where
it is not there yet. Exit code 1 with one line on stderr where there is no C compiler.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.simulated_gpu import (
    LIBRARY,
    SOURCE,
    VARIABLE,
    Gpu,
    SimulatedGpu,
    build,
    compilers_at_hand,
    search_path,
    square,
)

MACHINE = Gpu(
    name="SIMULATED GPU", trace=square(high_w=430, low_w=330, period_s=1.7), idle_w=70.0, tick_s=0.1,
    numbers={"limit_mw": 700_000, "default_limit_mw": 700_000, "max_limit_mw": 700_000, "memory_bytes": 80 * 10**9},
)
"""The machine of the hardware profile `simulated-gpu`; it draws its trace while the driver says that it works."""


def kept_library(folder: Path) -> Path:
    """Return the library below a folder, built with the first compiler that can; a reader never sees half of it.

    Raises:
        RuntimeError: there is no compiler, or none can build it.
    """
    key = hashlib.sha256(SOURCE.read_bytes() + platform.machine().encode()).hexdigest()[:16]
    target = folder / key / LIBRARY
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    problems = []
    for compiler in compilers_at_hand():
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as place:
            made = Path(place) / LIBRARY
            try:
                build(compiler, made)
            except (subprocess.CalledProcessError, OSError) as error:
                problems.append(f"{' '.join(compiler)}: {getattr(error, 'stderr', None) or error}".strip())
                continue
            made.replace(target)
            return target
    raise RuntimeError("; ".join(problems) or "there is no C compiler (cc, gcc, clang, or the package ziglang)")


def main(words: list[str]) -> int:
    """Make the machine."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulated_gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["machine"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--library", type=Path, required=True)
    args = parser.parse_args(words)
    try:
        library = kept_library(args.library)
    except RuntimeError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    args.folder.mkdir(parents=True, exist_ok=True)
    machine = SimulatedGpu(args.folder.resolve(), MACHINE)
    print(json.dumps({VARIABLE: str(machine.file), "LD_LIBRARY_PATH": search_path(library, os.environ)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

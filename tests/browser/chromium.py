"""Install the browser that the tests of the site look through: Debian's chromium, where it is not there yet.

    python tests/browser/chromium.py      needs apt-get and root where chromium is missing; says so and ends with 3 where it has neither
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PROGRAM = "chromium"
FONTS = "fonts-noto-cjk"
NO_CHANCE = 3
"""Exit code where it cannot be installed here."""


def main() -> int:
    """Install chromium, and a font with Chinese characters beside it."""
    if shutil.which(PROGRAM) is not None:
        return 0
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        print("chromium is missing, and only root on Debian can install it here: apt-get install chromium", file=sys.stderr)
        return NO_CHANCE
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True, env=quiet)
    subprocess.run(["apt-get", "install", "-qq", "-y", PROGRAM, FONTS], check=True, env=quiet)
    return 0


if __name__ == "__main__":
    sys.exit(main())

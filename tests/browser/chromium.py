"""Install what the tests of the site look through, where it is not there yet: Debian's chromium, and the validator of `site/package.json` for Node.

    python tests/browser/chromium.py      needs apt-get and root where a program is missing; says so and ends with 3 where it has neither
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = {"chromium": ("chromium", "fonts-noto-cjk"), "npm": ("nodejs", "npm")}
"""Debian's packages by the program that shows that they are there."""
NO_CHANCE = 3
"""Exit code where one cannot be installed here."""
SITE = Path(__file__).parents[2] / "site"


def main() -> int:
    """Install chromium with a font that has Chinese characters, Node, and the validator."""
    missing = [package for program, packages in PACKAGES.items() if shutil.which(program) is None for package in packages]
    if missing and (shutil.which("apt-get") is None or os.geteuid() != 0):
        print(f"{', '.join(missing)}: missing, and only root on Debian can install it here: apt-get install {' '.join(missing)}", file=sys.stderr)
        return NO_CHANCE
    if missing:
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=True, env=quiet)
        subprocess.run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing], check=True, env=quiet)
    if not (SITE / "node_modules" / "html-validate").is_dir():
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(SITE)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Copy what the pages load, and what their tests load, out of what npm fetched: a maintainer's step, never a user's.

    cd site && npm ci --ignore-scripts && python vendor.py      then look at `git diff static/vendor vendor.json`

npm checks each archive against the digest in `package-lock.json`; `vendor.json` keeps the digest of each file that was taken from it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHIPPED = {
    "static/vendor/datatables.min.js": "datatables.net/js/dataTables.min.js",
    "static/vendor/datatables.LICENSE.txt": "datatables.net/License.txt",
    "../tests/browser/vendor/axe.min.js": "axe-core/axe.min.js",
    "../tests/browser/vendor/axe.LICENSE.txt": "axe-core/LICENSE",
}
"""Where each file goes, and where it is below `node_modules`."""


def main() -> None:
    """Copy every file and write down what it was."""
    locked = json.loads((HERE / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    found = {}
    for target, source in SHIPPED.items():
        package = source.partition("/")[0]
        place = HERE / target
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HERE / "node_modules" / source, place)
        entry = locked[f"node_modules/{package}"]
        found[target] = {"package": package, "version": entry["version"], "integrity": entry["integrity"], "licence": entry["license"],
                         "member": source.partition("/")[2], "sha256": hashlib.sha256(place.read_bytes()).hexdigest()}
    (HERE / "vendor.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Where the data folders and the cache are: the copy inside the installed package when there is one, else the checkout.

The wheel carries `tasks/`, `hardware/`, `suite/{corpora,factors,models,plans,recipes,sites,workloads}` and `site/` as `jouleboard/_data/...`
(hatch `force-include`); in a checkout or an editable install they lie two levels above this file. While a bundle is run,
its declarations stand in for all of them: the variable `JOULEBOARD_BUNDLE` names it, and workers inherit that.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

_PACKAGE = Path(__file__).resolve().parent
BUNDLE_VARIABLE = "JOULEBOARD_BUNDLE"
"""Set by `jouleboard run DIR` after it has checked the bundle, and by nobody else."""
_FOLDERS = {
    "corpora": "suite/corpora",
    "factors": "suite/factors",
    "models": "suite/models",
    "recipes": "suite/recipes",
    "plans": "suite/plans",
    "sites": "suite/sites",
    "workloads": "suite/workloads",
    "tasks": "tasks",
    "hardware": "hardware",
    "site": "site",
}
_NOT_BUNDLED = frozenset({"site", "factors"})
"""What decides how results are shown, and not what is computed."""


def data_folder(name: str, *, package: Path = _PACKAGE) -> Path:
    """Return the folder of one kind of data file (`corpora`, `factors`, `models`, `recipes`, `plans`, `sites`, `workloads`, `tasks`, `hardware`, `site`).

    Args:
        name: a key of the kinds above.
        package: the folder of the import package; only tests pass another one.
    """
    bundle = bundle_folder()
    if bundle is not None and name not in _NOT_BUNDLED:
        return bundle / "data" / _FOLDERS[name]
    packaged = package / "_data" / _FOLDERS[name]
    return packaged if packaged.is_dir() else package.parents[1] / _FOLDERS[name]


def bundle_folder() -> Path | None:
    """Return the bundle that is being run, or None. Weights and items come from it then, and from nowhere else."""
    named = os.environ.get(BUNDLE_VARIABLE)
    return Path(named) if named else None


def below_data(name: str) -> str:
    """Return where one kind of data file lies below a checkout, and below `data/` in a bundle."""
    return _FOLDERS[name]


def checkout(*, package: Path = _PACKAGE) -> Path | None:
    """Return the root of the checkout that this code runs from, or None when it was installed from a wheel."""
    root = package.parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "suite").is_dir() else None


def cache_folder() -> Path:
    """Return the cache: `$JOULEBOARD_CACHE`, else the platform's cache folder (`~/.cache/jouleboard` on Linux)."""
    override = os.environ.get("JOULEBOARD_CACHE")
    return Path(override).expanduser().resolve() if override else Path(platformdirs.user_cache_dir("jouleboard"))

"""The folder of a site under construction: names that are checked, pages in every language, and the swap with the old site at the end.

    with sitefolder.under_construction(Path("_site")) as site:
        site.page("index.html", "index.html.j2", inputs=[digests], views=views)     # index.html and zh/index.html

A page whose inputs are those of the former build is taken over from it, after its bytes were compared with what that build wrote down.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import jinja2

from jouleboard import costs, formats, pieces, storage, translating, views
from jouleboard.errors import JouleboardError
from jouleboard.paths import data_folder
from jouleboard.printing import PrintingEnvironment
from jouleboard.translating import LANGUAGES, Language

MARKER = ".jouleboard-site"
"""A file that only a build of ours leaves: without it a folder is never replaced."""
MARKER_TEXT = "A site that `jouleboard build` made; the next build replaces this whole folder.\n"
KEPT = ".jouleboard-pages.json"
"""What each rendered file was made from, and its digest: the next build renders what changed."""
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,119}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A rendered file."""

    inputs: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The folder under construction; nothing is written outside it."""

    root: Path
    envs: Mapping[str, jinja2.Environment]
    """By the code of the language."""
    former: Path | None = None
    """The site that is there, to take pages from; None: everything is rendered."""
    known: Mapping[str, Made] = field(default_factory=dict)
    """Of the former site, by name."""
    made: dict[str, Made] = field(default_factory=dict)
    code: str = ""
    """Digest of all that renders."""
    folders: set[Path] = field(default_factory=set)
    """Those that were made and are inside the root."""

    def place(self, name: str) -> Path:
        """Return the path of a file of the site, its folder made; each part of its name is checked."""
        parts = name.split("/")
        if name not in {MARKER, KEPT} and not all(_SEGMENT.fullmatch(part) for part in parts):
            raise JouleboardError(
                f"{name!r} cannot be a path of the site",
                remedy="names of boards and entries are letters, digits, dots, dashes and slashes",
            )
        path = self.root.joinpath(*parts)
        # A folder is looked at once: nothing but this build writes below the root.
        if path.parent not in self.folders:
            if not path.resolve().is_relative_to(self.root.resolve()):
                raise JouleboardError(f"{name!r} leads out of the site", remedy="take the link out of the folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            self.folders.add(path.parent)
        return path

    def write(self, name: str, text: str) -> None:
        """Write one text file; what has no UTF-8 form (a lone surrogate) is written as JSON would escape it."""
        self.place(name).write_bytes(_utf8(text))

    def keep(self, name: str, inputs: str, make: Callable[[], str]) -> None:
        """Write a file, taken over from the former site where its inputs are the same; `inputs` must hold all that `make` reads."""
        key = _sha(f"{self.code} {inputs}".encode())
        path, known = self.place(name), self.known.get(name)
        old = None if self.former is None else self.former / name
        if known is not None and known.inputs == key and old is not None and old.is_file() and not old.is_symlink():
            found = old.read_bytes()
            if _sha(found) == known.sha256:
                path.write_bytes(found)
                self.made[name] = known
                return
        fresh = _utf8(make())
        path.write_bytes(fresh)
        self.made[name] = Made(inputs=key, sha256=_sha(fresh))

    def page(self, name: str, template: str, *, inputs: str, later: Callable[[], dict[str, object]] = dict, **values: object) -> None:
        """Render one page in every language.

        Args:
            name: of the English page, below the root.
            template: its template. It sees `root` (the way to the root), `home` (the way to the front page of its language),
                `language`, and `others` (the same page in the other languages).
            inputs: digest of all that the values say.
            later: gives more of them, where working them out takes time that a page that is taken over need not spend; called once.
            values: what the template shows.
        """
        worked_out = cache(later)
        for language in LANGUAGES:
            own = f"{language.folder}{name}"
            home, root = "../" * name.count("/"), "../" * own.count("/")

            def make(language: Language = language, root: str = root, home: str = home) -> str:
                return self.envs[language.code].get_template(template).render(
                    root=root, home=home, language=language, page=name, languages=LANGUAGES,
                    others=[(one, f"{root}{one.folder}{name}") for one in LANGUAGES], **values, **worked_out())

            self.keep(own, inputs, make)

    def finish(self) -> None:
        """Write down what was made."""
        kept = {name: [one.inputs, one.sha256] for name, one in sorted(self.made.items())}
        self.write(KEPT, json.dumps(kept, indent=0, sort_keys=True) + "\n")


def environment(language: Language = LANGUAGES[0]) -> jinja2.Environment:
    """Return the template environment of a language: everything is escaped, an undefined name is an error."""
    env = PrintingEnvironment(
        loader=jinja2.FileSystemLoader(data_folder("site") / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=formats.finalize,
        extensions=translating.EXTENSIONS,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    translating.install(env, translating.catalogue(data_folder("site") / "locale", language.code))
    env.globals["trust"] = {}
    env.filters |= formats.FILTERS | {"by_tier": views.by_tier, "standing": views.standing, "trial_cost": costs.headline_cost}
    pieces.install(env)
    return env


@contextmanager
def under_construction(out: Path) -> Iterator[Site]:
    """Give a fresh site that takes the place of `out` at the end, all of it or nothing.

    Raises:
        JouleboardError: `out` is something else than a former site.
        StorageError: the folder cannot be written; a former site is still there.
    """
    out = out.resolve()
    _refuse(out)
    with storage.within(out.parent), _beside(out) as fresh:
        site = Site(root=fresh, envs={one.code: environment(one) for one in LANGUAGES},
                    former=out if (out / KEPT).is_file() else None, known=_known(out / KEPT), code=_code())
        site.write(MARKER, MARKER_TEXT)
        yield site
        site.finish()
        _swap(fresh, out)


def _known(path: Path) -> dict[str, Made]:
    """Read what a former build wrote down; what cannot be read is no help and no harm."""
    try:
        found = json.loads(path.read_bytes())
        return {str(name): Made(inputs=str(inputs), sha256=str(sha)) for name, (inputs, sha) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _code() -> str:
    """Digest everything that decides how a page looks: this package, the templates, the catalogues."""
    folders = (Path(__file__).resolve().parent, data_folder("site"))
    files = sorted(path for folder in folders for path in folder.rglob("*")
                   if path.suffix in {".py", ".j2", ".po"} and "node_modules" not in path.parts)
    return _sha(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _refuse(out: Path) -> None:
    """Refuse to replace what no build made; an empty folder is nobody's."""
    if not out.exists() or (out.is_dir() and ((out / MARKER).is_file() or not any(out.iterdir()))):
        return
    raise JouleboardError(
        "exists and is not a site that `jouleboard build` made, so it is not replaced",
        file=out,
        remedy="choose another --out, or move what is there",
    )


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """Give a fresh folder on the same file system as `out`, gone afterwards unless it was moved."""
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"))
    # mkdtemp makes folders that only the owner can read; a site is for everybody.
    fresh.chmod(0o755)
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _swap(fresh: Path, out: Path) -> None:
    """Put the fresh site in the place of the old one; the old one comes back if that fails."""
    if not out.exists():
        fresh.rename(out)
        return
    with _beside(out) as aside:
        old = aside / "old"
        out.rename(old)
        try:
            fresh.rename(out)
        except BaseException:
            old.rename(out)
            raise

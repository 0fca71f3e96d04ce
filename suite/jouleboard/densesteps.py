"""Steps that give dense weights: each is applied once, in windows of its own, and kept with its bill for every later run.

The cache has a folder for each step of each recipe, named by the digest of all that decides what comes out and what it cost:
the base's weights, the steps up to this one, the code, the versions of the libraries, the hardware profile and the threads::

    variants/3f0c9a1be2d47756.../weights/          safetensors, configuration, tokenizer
    variants/3f0c9a1be2d47756.../step.json         what it found out, and its bill; written last: without it nothing is there
    variants/3f0c9a1be2d47756.../state/            what a long step needs to go on; pieces.json: the windows of its pieces

A long step is applied in pieces. The window of a piece is closed and on disk before the next piece begins, so that a run that is
killed loses the open piece only, and the bill holds exactly the work that counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from jouleboard import bills, models, paths, protocol, scratch, silence, storage, store
from jouleboard.declared import Count, Noun
from jouleboard.plan import CALIBRATION, torch_device
from jouleboard.recipes import Recipe
from jouleboard.session import Session
from jouleboard.sources import file_sha256
from jouleboard.windows import Window

PIECE_S = 300.0
"""Work of a long step between two windows: what a killed run may lose."""
LIBRARIES = ("torch", "transformers", "numpy", "safetensors")
"""What besides our own code decides what comes out."""
CODE = ("recipes", "training", "preparing.py", "structure.py", "structure_modules.py", "structure_tuned.py", "structure_tuned_modules.py", "engines/loading.py")
STEP, PIECES, COMMITTED = "step.json", "pieces.json", "committed"


class Piece(Noun, frozen=True, kw_only=True):
    """One window of work on a step."""

    window: Window
    peak_memory_bytes: Count


class Kept(Noun, frozen=True, kw_only=True):
    """A finished step."""

    step: dict[str, Any]
    claims: tuple[str, ...]
    weights_sha256: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """Where the rest of a recipe begins."""

    folder: Path
    """Dense weights that the steps before gave."""
    steps: tuple[dict[str, Any], ...] = ()
    """Those steps, with what they found out and their bills."""
    claims: tuple[str, ...] = ()
    windows: tuple[Window, ...] = ()
    """Of all their pieces."""


def begin(session: Session, recipe: Recipe) -> Begun:
    """Apply the steps of a recipe that give dense weights, those that are not in the cache.

    Raises:
        JouleboardError: a step cannot be applied here, or its worker failed.
        OutOfTimeError: this piece of the run is over; what is finished is kept.
        StorageError: the cache cannot be written.
    """
    done = Begun(folder=session.dense.folder)
    chain = [step for step in recipe.steps if step.about.stage == "dense"]
    for number in range(1, len(chain) + 1):
        home = paths.cache_folder() / "variants" / key(session, recipe, number)
        with _alone(home, session):
            kept = _read(home)
            if kept is None:
                kept = _apply(session, recipe, number - 1, home, done.folder)
            else:
                session.display.say(f"  {recipe.id}: {kept.step['step']} is in the cache, with its bill")
        windows = tuple(piece.window for piece in kept.pieces)
        bill = msgspec.to_builtins(bills.of_windows(windows)) | {
            "tokens": int(kept.step.get("tokens", 0)), "pieces": len(kept.pieces),
            "peak_memory_bytes": max(piece.peak_memory_bytes for piece in kept.pieces)}
        done = Begun(folder=home / "weights", steps=(*done.steps, kept.step | {"bill": bill}),
                     claims=(*done.claims, *kept.claims), windows=(*done.windows, *windows))
    return done


def key(session: Session, recipe: Recipe, steps: int) -> str:
    """Return the digest that names what the first steps of a recipe give on this hardware.

    Args:
        session: names the base's weights, the hardware and the threads.
        recipe: the recipe.
        steps: how many of its steps.
    """
    family = session.family
    return store.digest({
        "weights": session.dense.weights_sha256, "dtype": recipe.dtype, "steps": msgspec.to_builtins(recipe.steps[:steps]),
        "code": code_sha256(), "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "hardware": store.digest(family.hardware), "threads": family.plan.threads, "calibration": file_sha256(_calibration()),
        "checkpoint": _checkpoint_sha256(session, recipe) if recipe.steps[0].needs_source is not None else None,
        "corpora": [file_sha256(session.corpora[name]) for step in recipe.steps[:steps] if (name := step.trains_on) is not None],
    })[:32]


@cache
def code_sha256() -> str:
    """Return the digest of the code that applies steps."""
    package = Path(__file__).parent
    files = [path for name in CODE for path in ((package / name).rglob("*.py") if (package / name).is_dir() else [package / name])]
    return store.digest({str(path.relative_to(package)): file_sha256(path) for path in sorted(files)})


def _checkpoint_sha256(session: Session, recipe: Recipe) -> str:
    """Return the digest of a ready-made checkpoint's files: what lies at a path may change."""
    place = Path(str(session.checkpoint(recipe)))
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    return store.digest([[path.name, file_sha256(path)] for path in files])


def _calibration() -> Path:
    return paths.data_folder("tasks") / CALIBRATION


def _apply(session: Session, recipe: Recipe, index: int, home: Path, folder: Path) -> Kept:
    """Apply one step in a worker of its own, piece by piece, and keep what it gave."""
    step, family = recipe.steps[index], session.family
    corpus = step.trains_on
    request = protocol.Prepare(
        folder=str(folder), base=str(session.dense.folder), target=str(home / "weights"), step=msgspec.to_builtins(step),
        dtype=recipe.dtype, calibration=str(_calibration()), corpus=None if corpus is None else str(session.corpora[corpus]),
        checkpoint=session.checkpoint(recipe) if step.needs_source is not None else None, state=str(home / "state"),
        threads=family.plan.threads, device=torch_device(family.hardware), piece_s=PIECE_S,
    )
    pieces = _pieces(home / "state")
    worker = session.workforce.start(f"{recipe.id}-prepare", session.folder.logs / f"{recipe.id}.log")
    try:
        while True:
            session.require_time(0.0, f"building {recipe.id}")
            _commit(home / "state", pieces)
            measured = worker.measure(
                request, protocol.Prepared, meter=session.meter, name="build", quiet_s=silence.weights_s(folder),
                progress=partial(session.display.advance, f"{recipe.id} {type(step).__struct_config__.tag}"))
            reply, window = measured.reply, measured.there()
            pieces.append(Piece(window=bills.without_trace(window), peak_memory_bytes=reply.peak_memory_bytes))
            if reply.weights_sha256 is not None:
                break
    finally:
        worker.close()
    kept = Kept(step=reply.step, claims=reply.claims, weights_sha256=reply.weights_sha256, pieces=tuple(pieces))
    store.write_atomic(home / STEP, msgspec.json.encode(kept))
    shutil.rmtree(home / "state", ignore_errors=True)
    return kept


def _read(home: Path) -> Kept | None:
    """Return a finished step, or None where it is not there whole."""
    try:
        kept = msgspec.json.decode((home / STEP).read_bytes(), type=Kept)
    except (OSError, msgspec.DecodeError):
        return None
    return kept if models.whole(home / "weights", kept.weights_sha256) else None


def _pieces(state: Path) -> list[Piece]:
    """Return the windows of the pieces that are done; none where that cannot be read: then the step begins anew."""
    try:
        return msgspec.json.decode((state / PIECES).read_bytes(), type=list[Piece])
    except (OSError, msgspec.DecodeError):
        return []


def _commit(state: Path, pieces: list[Piece]) -> None:
    """Keep the windows first, and then the number of pieces that a step may go on behind: no work counts without its bill."""
    store.write_atomic(state / PIECES, msgspec.json.encode(pieces))
    store.write_atomic(state / COMMITTED, str(len(pieces)).encode())


@contextlib.contextmanager
def _alone(home: Path, session: Session) -> Iterator[None]:
    """Wait for another run that makes the same weights, and then hold the folder."""
    with storage.writing(home):
        home.mkdir(parents=True, exist_ok=True)
        file = (home / "lock").open("a")
    with file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    session.display.say("  another run is making the same weights: waiting for it")
                    told = True
                session.require_time(0.0, "waiting for another run")
                time.sleep(1.0)
            except OSError as error:
                if error.errno not in scratch.NO_LOCKS:
                    raise
                # Both would make the same, and either result appears whole.
                break
        yield

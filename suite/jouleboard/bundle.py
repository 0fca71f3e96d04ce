"""Gather everything that a plan needs on a machine without a network into one folder, whole and named by digest.

A bundle on disk::

    DIR/README.txt start.py portable/     what a person reads and calls on the other machine
    DIR/data/      the declarations that the plan uses
    DIR/inputs/    dense weights and prepared items
    DIR/wheels/    Python packages, for one Python and platform
    DIR/parts/     all of these cut into parts instead, where that was asked for
    DIR/manifest.json    every file with size and digest; written last
    DIR/.work/     while it is being made
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jouleboard import (
    __version__,
    bundlecontents,
    bundlewheels,
    catalogue,
    commands,
    corpora,
    environment,
    models,
    paths,
    plan,
    protocol,
    scratch,
    silence,
    sources,
    storage,
    store,
    tasks,
)
from jouleboard.bundlecontents import Content, Inputs
from jouleboard.bundlewheels import Wanted, Wheels
from jouleboard.bundlewrite import Writer, link_or_move, write_manifest
from jouleboard.declared import Model
from jouleboard.errors import PlanError, RecipeError, StorageError
from jouleboard.models import Dense
from jouleboard.portable import files
from jouleboard.portable.manifest import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    MAX_FILES,
    BundleError,
    Manifest,
    Named,
    check_names,
    is_loose,
    part_name,
    read_manifest,
)
from jouleboard.progress import Display
from jouleboard.units import Workforce

WORK = ".work"
MAX_PARTS = 9999
MB = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleOptions:
    """The words of `jouleboard bundle`."""

    run: commands.RunOptions
    """The words that it shares with `jouleboard run`."""
    out: Path
    wanted: Wanted | None
    """None: no wheels."""
    part_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Everything that a bundle holds, and the manifest's other fields."""

    contents: tuple[Content, ...]
    """In the manifest's order."""
    facts: dict[str, Any]


def make(options: BundleOptions) -> int:
    """Write a bundle, or go on with one that was interrupted; what is there whole is kept.

    Raises:
        JouleboardError: something cannot be had, or the folder is another's, full or not writable.
    """
    chosen = commands.adapt(catalogue.plan(options.run.plan or commands.DEFAULT_PLAN), options.run)
    inputs = bundlecontents.load(chosen, options.run.hardware)
    # What is wrong with the plan is said here and not on the other machine; whether a recipe runs is for that one to say.
    with contextlib.suppress(RecipeError):
        plan.families(chosen, inputs.hardware[0])
    wanted = None if options.wanted is None else options.wanted.checked()
    display = Display()
    with _working(options.out, display) as work:
        gathered = _gather(inputs, wanted, options, work, display)
        found = _write(gathered, options, display)
    _say(found, options)
    return 0


@contextlib.contextmanager
def _working(out: Path, display: Display) -> Iterator[Path]:
    """Hold the folder alone; the kernel gives the lock back however the process ends. Its working folder goes when all is done."""
    work = out / WORK
    if out.exists() and not out.is_dir():
        raise PlanError("is no folder", file=out, field="--out", remedy="name a folder")
    if out.is_dir() and any(out.iterdir()) and not work.is_dir() and _manifest(out) is None:
        raise PlanError("holds something else than a bundle", file=out, field="--out", remedy="name a new or empty folder")
    try:
        work.mkdir(parents=True, exist_ok=True)
        file = (work / "lock").open("w")
    except OSError as error:
        raise StorageError(f"cannot be written ({error.strerror})", file=out, field="--out",
                           remedy="name a folder that you may write to") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise PlanError("another `jouleboard bundle` works in this folder", file=out, field="--out",
                            remedy="wait for it, or name another folder") from None
        except OSError as error:
            if error.errno not in scratch.NO_LOCKS:
                raise storage.problem(error, work / "lock") from None
            display.say(f"{out}: this file system has no locks; let no other `jouleboard bundle` write there meanwhile")
        yield work
        shutil.rmtree(work)


def _manifest(out: Path) -> Manifest | None:
    try:
        return read_manifest(out)
    except BundleError:
        return None


# --- gathering --------------------------------------------------------------------------------------------------------


def _gather(inputs: Inputs, wanted: Wanted | None, options: BundleOptions, work: Path, display: Display) -> Gathered:
    with display.phase("items", ", ".join(task.id for task in inputs.tasks)):
        prepared = {task.id: tasks.prepare(task, say=lambda line: display.say(f"  {line}")) for task in inputs.tasks}
    texts = {corpus.id: corpora.prepare(corpus, say=lambda line: display.say(f"  {line}")) for corpus in inputs.corpora}
    with display.phase("weights", ", ".join(model.id for model in inputs.models)):
        dense = {model.id: _dense(model, inputs.plan.threads, work, display) for model in inputs.models}
    if wanted is not None:
        wanted = replace(wanted, extras=bundlecontents.extras(inputs))
    wheels, key = _wheels(wanted, options.out, work, display)
    contents = [*bundlecontents.declarations(inputs),
                *bundlecontents.starter(inputs, python=None if wheels is None else wheels.target.python,
                                        in_parts=options.part_bytes is not None)]
    for task in inputs.tasks:
        contents += bundlecontents.items(task, prepared[task.id])
    for corpus in inputs.corpora:
        contents += bundlecontents.texts(corpus, texts[corpus.id])
    for model in inputs.models:
        contents += bundlecontents.weights(model, dense[model.id])
    if wheels is not None:
        contents += [bundlecontents.content(f"wheels/{file.name}", file, movable=options.part_bytes is None)
                     for file in wheels.files]
    contents.sort(key=lambda one: one.named.path)
    try:
        check_names([one.named.path for one in contents])
    except ValueError as error:
        raise PlanError(f"a file cannot go into a bundle: {error}", field="--model",
                        remedy="give the model's files plain names: letters, digits, '.', '_' and '-'") from None
    commit, dirty = environment.code_state(paths.checkout())
    facts = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "plan": inputs.plan.id, "hardware": options.run.hardware,
        "target": None if wheels is None else wheels.target._asdict(),
        "packages": {"jouleboard": __version__, **plan.versions()} if wheels is None else wheels.packages,
        "made_from": {
            "jouleboard": __version__, "code_commit": commit, "code_dirty": dirty, "wheels": key,
            "models": {model.id: {"source": bundlecontents.public_source(model),
                                  "weights_sha256": dense[model.id].weights_sha256} for model in inputs.models},
            "tasks": {task.id: {"source": bundlecontents.public_source(task), "documents": prepared[task.id].documents,
                                "data_sha256": prepared[task.id].data_sha256} for task in inputs.tasks},
            "corpora": {name: {"data_sha256": corpora.proof(file).data_sha256} for name, file in texts.items()},
        },
    }
    return Gathered(contents=tuple(contents), facts=facts)


def _dense(model: Model, threads: int, work: Path, display: Display) -> Dense:
    """Let a short-lived worker do what needs torch."""
    with contextlib.closing(Workforce(threads=threads)) as workforce:
        def helper() -> models.Helper:
            worker = workforce.start("convert", work / "convert.log")
            return models.Helper(
                convert=lambda source, target: worker.ask(
                    protocol.Convert(model=model, source=str(source), target=str(target)), protocol.Converted,
                    quiet_s=silence.weights_s(source, times=silence.DENSER)).weights_sha256,
                fingerprint=lambda folder: worker.ask(
                    protocol.Fingerprint(model=model, folder=str(folder)), protocol.Converted,
                    quiet_s=silence.weights_s(folder)).weights_sha256)

        return models.prepare(model, helper, say=lambda line: display.say(f"  {line}"))


def _wheels(wanted: Wanted | None, out: Path, work: Path, display: Display) -> tuple[Wheels | None, str | None]:
    """Return the wheels and a key of what was asked for: the same key means the same wheels."""
    if wanted is None:
        return None, None
    about = f"for Python {wanted.python or 'as here'} on {wanted.platform or 'a machine like this one'}"
    with display.phase("wheels", about):
        own = bundlewheels.own_wheel(work)
        pins = bundlewheels.constraints()
        key = store.digest([sources.file_sha256(own), pins, *bundlewheels.wanted_here(wanted)])
        folder = work / f"wheels-{key[:16]}"
        folder.mkdir(exist_ok=True)
        complete = folder / "complete"
        if complete.exists() or _use_again(out, key, folder):
            display.say("  those that are here already")
            found = bundlewheels.found(wanted, folder)
        else:
            found = bundlewheels.gather(wanted, own, pins, folder, say=display.say)
        complete.touch()
        display.say(f"  {len(found.files)} wheels, {sum(file.stat().st_size for file in found.files) / MB:.0f} MB")
        return found, key


def _use_again(out: Path, key: str, folder: Path) -> bool:
    """Take the wheels of the bundle that is there, where they are those that are wanted; whether all of them are whole."""
    there = _manifest(out)
    if there is None or json.loads((out / MANIFEST).read_bytes())["made_from"].get("wheels") != key:
        return False
    wheels = [file for file in there.files if file.path.startswith("wheels/")]
    whole = [file for file in wheels if files.fault(out, file, files.Tally("", 0, files.quiet)) is None]
    for file in whole:
        link_or_move(out / file.path, folder / Path(file.path).name)
    return len(whole) == len(wheels)


# --- writing ----------------------------------------------------------------------------------------------------------


def _write(gathered: Gathered, options: BundleOptions, display: Display) -> Manifest:
    out, contents = options.out, gathered.contents
    loose = [one for one in contents if options.part_bytes is None or is_loose(one.named.path)]
    packed = [one for one in contents if options.part_bytes is not None and not is_loose(one.named.path)]
    names = {one.named.path for one in loose}
    writer = Writer(out, display)
    total = sum(one.named.size for one in contents)
    if options.part_bytes is not None:
        names |= _part_names(sum(one.named.size for one in packed), options.part_bytes)
    with display.phase("write", f"{len(contents)} files, {total / MB:.0f} MB"):
        held = _same(out, gathered)
        if not held:
            # Half of one bundle and half of another must never look like a whole one.
            (out / MANIFEST).unlink(missing_ok=True)
        writer.sweep(names)
        writer.loose(loose)
        parts = writer.parts(packed, options.part_bytes) if options.part_bytes is not None else ()
        value = {**gathered.facts, "files": [one.named._asdict() for one in contents],
                 "parts": [part._asdict() for part in parts]}
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        if not held or (out / MANIFEST).read_bytes() != text:
            write_manifest(out / MANIFEST, text)
        return read_manifest(out)


def _part_names(size: int, part_bytes: int) -> set[str]:
    count = -(-size // part_bytes)
    if count > min(MAX_PARTS, MAX_FILES):
        raise PlanError(f"would make {count} parts, at most {MAX_PARTS} are allowed", field="--part-size",
                        remedy=f"at least {-(-size // MAX_PARTS // MB)} MB")
    return {part_name(number) for number in range(1, count + 1)}


def _same(out: Path, gathered: Gathered) -> bool:
    """Whether the manifest that is there names the very files that are going to be written."""
    there = _manifest(out)
    return there is not None and there.files == tuple(one.named for one in gathered.contents)


def _say(found: Manifest, options: BundleOptions) -> None:
    in_parts: Sequence[Named] = found.parts
    size = sum(file.size for file in found.files)
    print(f"bundle    {options.out}: {len(found.files)} files, {size / MB:.0f} MB"
          + (f", in {len(in_parts)} parts" if in_parts else ""))
    if found.target is not None and found.target.left_out:
        print(f"left out  {', '.join(found.target.left_out)}: the other machine brings them itself")
    print(f"manifest  SHA-256 {found.sha256}")
    print(f"next      copy {options.out} to the other machine and call there: python3 start.py")

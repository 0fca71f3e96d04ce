"""The command line of entries: `check`, `preview`, `submit`, `withdraw`, `export` and `schema`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    _check_parser(commands)
    _submit_parser(commands)
    _withdraw_parser(commands)
    _preview_parser(commands)
    _export_parser(commands)
    schema = commands.add_parser("schema", help="the format of reports and items: JSON Schema, or every field in words",
                                 description="Print the format of what entries are made of, as it is in this version.")
    schema.add_argument("what", choices=["report", "item", "withdrawal", "fields", "codes"],
                        help="a JSON Schema; `fields` and `codes` print the pages docs/report-format.md and docs/check-codes.md")
    schema.set_defaults(function=_schema)


def _check_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = commands.add_parser(
        "check", help="recompute every figure of reports from their raw records",
        description="Check data files and reports: names, schema, digests, and every figure recomputed from the raw records. Nothing that "
        "a report names is run or fetched. Exit 1 when anything is wrong, with all problems, each with the code of its rule.")
    check.add_argument("paths", nargs="*", metavar="PATH", type=Path,
                       help="report, entry or folder of entries (default: all data files and reports/)")
    check.add_argument("--base", metavar="REF", help="check only the entries that a branch adds since it left REF (origin/main), by the rules "
                       "for new ones; published entries may not change, nor code together with entries. PATH: a folder of the checkout")
    check.add_argument("--codes", action="store_true", help="list every reason code with its rule, and end")
    check.add_argument("--json", action="store_true", help="print the problems as JSON")
    check.set_defaults(function=_check)


def _submit_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    submit = commands.add_parser(
        "submit", help="copy a run's entries into reports/, and say how to propose them",
        formatter_class=argparse.RawDescriptionHelpFormatter, description="""\
Copy what `jouleboard run` wrote into the folder of published entries, and print the git commands that propose it:

  1. every entry below RUN is checked as `jouleboard check` does; with any problem nothing is copied (exit code 1);
  2. complete entries are published with their base, measured in the same session, and failed variants with --failed;
     others and entries without energy trials stay where they are, and are named;
  3. names of this host and its user, paths and addresses are taken out, and what becomes public is shown; then each is
     checked once more, as a new entry: rules of today, declared model, recipe, tasks and hardware, no copy of another;
  4. each goes to reports/HARDWARE/MODEL/RECIPE/UTC-DIGEST/, whole or not at all; an entry that is there already is left
     alone, so the same command may be run again;
  5. nothing is sent anywhere and git is not run: read what was copied, then run the printed commands yourself; title and
     text of the pull request are printed too.

Refused (exit code 2, nothing copied): anything SIMULATED, models without a public source, and provisional entries
without --provisional.
""")
    submit.add_argument("run", type=Path, metavar="RUN", help="a run's folder (runs/quick), or one entry with its base")
    submit.add_argument("--reports", type=Path, metavar="DIR", help="folder of published entries (default: reports/ of the checkout)")
    submit.add_argument("--submitter", metavar="NAME", help="your account, where you will open the pull request; it is published")
    submit.add_argument("--provisional", action="store_true", help="publish provisional entries too; every page marks them")
    submit.add_argument("--failed", action="store_true", help="publish variants that failed too: boards show what does not work")
    submit.add_argument("--replaces", nargs="+", type=Path, default=[], metavar="ENTRY", help="folders of your published entries that entries of this "
                        "run correct: same hardware, model and recipe; they leave the boards")
    submit.add_argument("--dry-run", action="store_true", help="show what would be published, and copy nothing")
    submit.set_defaults(function=_submit)


def _withdraw_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    withdraw = commands.add_parser("withdraw", help="take a published entry off the boards, with a reason",
                                   description="Write the file beside a published entry that says that it no longer counts, and why, and print the git "
                                   "commands that propose it. The entry itself is never changed. To correct one, measure again and `submit --replaces`.")
    withdraw.add_argument("entry", type=Path, metavar="ENTRY", help="its folder: reports/HARDWARE/MODEL/RECIPE/UTC-DIGEST")
    withdraw.add_argument("--reason", required=True, metavar="TEXT", help="a sentence for everybody to read; it is published")
    withdraw.set_defaults(function=_withdraw)


def _preview_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    preview = commands.add_parser("preview", help="the site with a branch's entries, and the ranks they take",
                                  description="Build the site as it would be with the entries that a branch adds, and write beside it which "
                                  "ranks they take and whom they move (ranks.md).")
    preview.add_argument("path", nargs="?", type=Path, default=Path(), metavar="PATH", help="a folder of the checkout (default: the one you are in)")
    preview.add_argument("--base", required=True, metavar="REF", help="what the branch left (origin/main)")
    preview.add_argument("--out", type=Path, metavar="DIR", default=Path("_preview"), help="where to write (default: _preview)")
    preview.set_defaults(function=_preview)


def _export_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = commands.add_parser("export", help="published entries as a table: CSV, Parquet or JSON",
                                 description="Write one row for each sound entry, cell of trials and task; units stand in the names of the columns, "
                                 "an empty field was not measured. `jouleboard.reader` reads entries in a notebook.")
    export.add_argument("--reports", type=Path, metavar="DIR", default=None, help="folder of reports (default: reports/)")
    export.add_argument("--format", choices=["csv", "json", "parquet"], default="csv", help="of the table (default: csv)")
    export.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: to the terminal)")
    export.set_defaults(function=_export)


def _check(args: argparse.Namespace) -> int:
    from jouleboard import boards  # noqa: PLC0415

    return boards.codes() if args.codes else boards.check(args.paths, as_json=args.json, base=args.base)


def _preview(args: argparse.Namespace) -> int:
    from jouleboard import boards  # noqa: PLC0415

    return boards.preview(args.path, args.base, args.out)


def _export(args: argparse.Namespace) -> int:
    from jouleboard import boards, export  # noqa: PLC0415

    return export.export(args.reports or boards.default_reports(), args.format, args.out)


def _submit(args: argparse.Namespace) -> int:
    from jouleboard import submit  # noqa: PLC0415

    return submit.submit(args.run, args.reports, submit.Wishes(
        submitter=args.submitter, provisional=args.provisional, failed=args.failed, replaces=tuple(args.replaces), dry_run=args.dry_run))


def _withdraw(args: argparse.Namespace) -> int:
    from jouleboard import withdraw  # noqa: PLC0415

    return withdraw.withdraw(args.entry, args.reason)


def _schema(args: argparse.Namespace) -> int:
    from jouleboard import describe  # noqa: PLC0415

    print(describe.PAGES[args.what](), end="")
    return 0

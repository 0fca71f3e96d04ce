"""Run the command line as `python -m jouleboard`."""

from jouleboard.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

"""What the README says is so: its commands exist, parse, and are what continuous integration runs."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from jouleboard import catalogue, cli, recipes
from jouleboard.plan import families, limited

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def marked(name: str) -> str:
    found = re.findall(rf"<!-- {name} -->\n```sh\n(.*?)\n```\n<!-- end -->", README, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def everyday() -> list[str]:
    return [line.split("#")[0].strip() for line in README.splitlines() if re.match(r"jouleboard \w", line)]


def test_ci_runs_the_readmes_test_command_and_nothing_else():
    script = (ROOT / ".ci/run").read_text()
    extract = next(line for line in script.splitlines() if line.startswith("command="))
    shown = subprocess.run(["bash", "-c", f'{extract}; printf %s "$command"'], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout
    assert shown.strip() == marked("test-command")


@pytest.mark.parametrize("name", ["quick-command", "test-command"])
def test_a_command_of_the_first_screen_is_one_line_and_names_an_environment_that_exists(name):
    command = marked(name)
    assert "\n" not in command
    assert README.index(command) < 2600, "not on the first screen"
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    named = re.search(r"tox run -e (\w+)", command)
    assert f"testenv:{named[1] if named else tox['tox']['env_list']}" in tox


@pytest.mark.parametrize("command", everyday())
def test_an_everyday_command_parses_and_names_things_that_exist(command):
    args = cli.parser().parse_args(shlex.split(command)[1:])
    if args.command == "run":
        plan = catalogue.plan(args.plan or "quick")
        assert limited(plan, args.limit)
        for name in args.recipe or ():
            assert recipes.load(name)
        for name in args.tasks or ():
            assert catalogue.task(name)
        if args.model:
            assert catalogue.model(args.model)


def test_the_readme_names_every_command_group_and_the_picture_exists():
    assert len(everyday()) >= 6
    pictures = re.findall(r'<img src="([^"]+)"', README)
    assert pictures
    for target in pictures:
        assert (ROOT / target).is_file()


def test_the_default_plan_needs_nothing_but_a_package_registry():
    plan = catalogue.plan("quick")
    hardware = catalogue.hardware("x86-vm")
    family = families(plan, hardware)[0]
    assert len(family.recipes) == 5
    assert family.base.id == "bf16"
    kinds = {type(row.task.source).__name__ for row in family.tasks}
    assert kinds <= {"PackageSource", "GeneratedSource"}, "the default plan must not need a hub"
    assert type(family.model.source).__name__ == "PackageSource"

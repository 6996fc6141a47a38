"""Compare two versions of the same work, alternately in one run, and print the ratio of their times.

    python -m benchmarks
    python -m benchmarks ibot_step attmask_cost --json ratios.json

A ratio is the median over pairs of (time of the first version / time of the second), so that a machine that slows down slows
both. Peak memory is of a process that runs one version alone.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.measure import measure
from benchmarks.rows import ROWS
from lib.results.runs import provenance
from lib.train import default_device


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which of: {', '.join(ROWS)}; the default is all")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of measurements (default 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--device", help="the default is a GPU if there is one")
    options = parser.parse_args(arguments)
    unknown = set(options.rows) - set(ROWS)
    if unknown:
        parser.error(f"rows: got {', '.join(sorted(unknown))}, accepts {', '.join(ROWS)}")
    device = torch.device(options.device or default_device())
    print(f"{'row':16} {'first / second':58} {'time':>7} {'range':>15} {'memory':>7}  asked")
    results = {}
    for name in options.rows or ROWS:
        row = ROWS[name]
        found = measure(row, device, options.pairs)
        results[name] = found
        memory = f"{found['memory_ratio']:.2f}" if "memory_ratio" in found else ""
        spread = f"{found['time_ratio_low']:.2f} - {found['time_ratio_high']:.2f}"
        print(f"{name:16} {row.title:58} {found['time_ratio']:7.2f} {spread:>15} {memory:>7}  {row.asked}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"rows": results, **provenance(device)}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

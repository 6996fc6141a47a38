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

from benchmarks.measure import measure, peak_bytes
from benchmarks.rows import ROWS
from lib import paths
from lib.engine.processes import default_device
from lib.results.provenance import provenance
from lib.results.records import append_line


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which of: {', '.join(ROWS)}; the default is all")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of measurements (default 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--record", action="store_true", help="keep the ratios that claims are about in records/small/cost.jsonl")
    parser.add_argument("--device", help="the default is a GPU if there is one")
    parser.add_argument("--peak-of", type=int, choices=(0, 1), help=argparse.SUPPRESS)  # asked by measure, of a process of its own
    options = parser.parse_args(arguments)
    unknown = set(options.rows) - set(ROWS)
    if unknown:
        parser.error(f"rows: got {', '.join(sorted(unknown))}, accepts {', '.join(ROWS)}")
    device = torch.device(options.device or default_device())
    if options.peak_of is not None:
        print(peak_bytes(ROWS[options.rows[0]], options.peak_of, device))
        return 0
    print(f"{'row':16} {'first / second':58} {'time':>7} {'range':>15} {'memory (second)':>15}  asked")
    results, made = {}, provenance(device)
    for name in options.rows or ROWS:
        row = ROWS[name]
        results[name] = found = measure(name, row, device, options.pairs)
        for pair, ratio in enumerate(found["pairs"] if options.record and row.metric else []):
            line = {
                "key": f"{name}-{made['finished']}-{pair}",
                "command": f"python -m benchmarks {name}",
                "config": {"row": name, "seed": pair},
                "metrics": {row.metric: ratio},
            }
            append_line(paths.RECORDS / "small" / "cost.jsonl", line | made)
        memory = f"{found['memory_ratio']:.2f} ({found['memory_bytes'][1] / 1e9:.1f} GB)" if "memory_ratio" in found else ""
        spread = f"{found['time_ratio_low']:.2f} - {found['time_ratio_high']:.2f}"
        print(f"{name:16} {row.title:58} {found['time_ratio']:7.2f} {spread:>15} {memory:>15}  {row.asked}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"rows": results, **made}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs a soak: tenants submit, read and check batches while an antagonist does harm, as its seed says.

    make soak [SEED=1] [SECONDS=1800] [OUT=soak.json] [LOGS=folder]

The same seed makes the same faults in the same order; what they meet is up to the machine. Prints a report, and writes
it to OUT as JSON. Exit status 1: something was lost, doubled or wrong; the logs are kept then.
"""

import argparse
import json
import random
import shutil
import tempfile
from pathlib import Path

from soak import trial


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--seconds", type=float, default=1_800)
    parser.add_argument("--out", type=Path, help="file for the report, JSON")
    parser.add_argument("--logs", type=Path, help="folder for the logs, which are kept then")
    options = parser.parse_args()
    home = options.logs or Path(tempfile.mkdtemp(prefix="promptmill-soak-"))
    home.mkdir(parents=True, exist_ok=True)
    print(f"seed {options.seed}, logs in {home}", flush=True)
    report = trial.run(options.seed, options.seconds, home)
    print(f"\n{report.page()}")
    if options.out:
        options.out.write_text(json.dumps(report.facts(), indent=2) + "\n")
    if report.is_good and not options.logs:
        shutil.rmtree(home)
    return 0 if report.is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())

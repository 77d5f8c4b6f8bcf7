"""Lays the pages out in a folder, from which `make site` builds the site: `python docs/site.py build/pages`.

They keep their places, so that a link means the same on the site and in the repository. What is no page and is on none
stays out.
"""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATTERNS = ("*.md", "docs/**/*.md", "docs/**/*.svg", "docs/**/*.png", "docs/**/*.json")


def lay_out(folder: Path) -> None:
    """Afterwards `folder` has the pages, and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    for pattern in PATTERNS:
        for source in ROOT.glob(pattern):
            target = folder / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]))

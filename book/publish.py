"""Copy a finished reproduction into the repository: its results for the book, its picture and table for the README.

.venv/bin/python book/publish.py runs/figure1-small
"""

import json
import re
import shutil
import sys
from pathlib import Path

from se_core.figures import table

ROOT = Path(__file__).parent.parent

run = Path(sys.argv[1])
results = json.loads((run / "results.json").read_text())
shutil.copy(run / "results.json", ROOT / "book" / "results" / f"{run.name}.json")
for picture in ("figure1", "attacked_digits"):
    shutil.copy(run / f"{picture}.png", ROOT / "book" / "_static" / f"{picture}-{results['provenance']['profile']}.png")
readme = ROOT / "README.md"
text = re.sub(
    r"(<!-- results -->\n).*?(<!-- /results -->)",
    lambda match: f"{match[1]}{table(results)}\n{match[2]}",
    readme.read_text(),
    flags=re.DOTALL,
)
readme.write_text(text)

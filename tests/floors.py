"""The oldest versions that pyproject.toml allows, as constraints for pip: `torch>=2.4` becomes `torch==2.4.*`.

python tests/floors.py    # what `make test-floor` installs
"""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
ranges = sum(project["optional-dependencies"].values(), project["dependencies"])
print(re.sub(r"^([\w.-]+)(?:\[\w+\])?>=([\d.]+).*$", r"\1==\2.*", "\n".join(r for r in ranges if ">" in r), flags=re.M))

"""Makes the benchmarks importable. At the end of the path: their names must not hide anyone else's."""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "benchmarks"))

from __future__ import annotations

import sys
from pathlib import Path

# tests are imported one by one, without packages: so that they find `check_toys`
sys.path.insert(0, str(Path(__file__).parent))

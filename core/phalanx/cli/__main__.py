"""``python -m phalanx.cli`` is the command ``phalanx``."""

import sys

from phalanx.cli import main

sys.exit(main())

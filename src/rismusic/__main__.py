"""``python -m rismusic``."""

import sys

from rismusic.cli import main

sys.exit(main())

"""``python -m datasets_scripts``."""

import sys

from datasets_scripts.cli import main

sys.exit(main())

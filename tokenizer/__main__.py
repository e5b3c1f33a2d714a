"""``python -m tokenizer``: the same as ``latok``."""

import sys

from tokenizer.cli import main

sys.exit(main())

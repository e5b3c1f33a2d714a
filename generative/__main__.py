"""``python -m generative``."""

import sys

from generative.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m vm`: the command for people and scripts."""

import sys

from vm.cli import main

if __name__ == "__main__":
    sys.exit(main())

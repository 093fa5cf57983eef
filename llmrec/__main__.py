"""`python -m llmrec`, which is `llmrec` where its script is not on the path."""

import sys

from llmrec.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""Target of `accelerate launch scripts/recommend.py --config …`: the same as `llmrec recommend`."""

import os
import sys

if __name__ == "__main__":
    # Python puts this directory on the path, where tokenize.py would hide the standard library's module.
    sys.path = [path for path in sys.path if path != os.path.dirname(os.path.realpath(__file__))]
    from llmrec.cli import main

    sys.exit(main(["recommend", *sys.argv[1:]]))

"""python -m ptmq_lightning.report DIR..."""

import sys

from ptmq_lightning.report.command import main

if __name__ == "__main__":
    sys.exit(main())

"""python train.py --help"""

from ptmq_lightning.compose.command import main

if __name__ == "__main__":
    main()

"""Runs `python -m pipeline`, which torchrun starts: `torchrun --nproc-per-node 2 -m pipeline train`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()

"""``python -m pynas`` is the command line, for launchers such as srun and torchrun."""

from pynas.cli import main

if __name__ == "__main__":
    main()

"""``python -m convexlab`` is the command line too."""

from convexlab.cli import main

if __name__ == "__main__":
    main(prog_name="convexlab")

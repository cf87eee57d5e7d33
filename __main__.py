"""`python -m pfdiff` is the command `pfdiff`."""

from .cli import command

if __name__ == "__main__":
    command()

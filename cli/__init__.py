"""The command line: a file for each command, five that they share."""

from .entry import app as app
from .entry import main as main

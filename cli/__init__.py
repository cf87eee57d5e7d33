"""The command line: a file for each command; what they share is in `arguments` and `output`."""

from .entry import app as app
from .entry import command as command
from .entry import main as main

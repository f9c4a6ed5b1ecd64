"""``python -m sender`` is ``diskcast``."""

from sender.cli import main

main()

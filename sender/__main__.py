"""Run ``diskcast`` as ``python -m sender``."""

from sender.cli import main

main()

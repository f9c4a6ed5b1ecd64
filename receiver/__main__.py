"""``python -m receiver`` is ``diskcast-agent``."""

from receiver.cli import main

main()

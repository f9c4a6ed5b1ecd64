"""Run the live system's program by ``python -m receiver.live``, as its process 1 does."""

import sys

from receiver.live.boot import main

sys.exit(main())

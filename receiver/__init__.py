"""The program ``diskcast-agent``: runs on the machine being imaged; receives, writes and verifies (trio)."""

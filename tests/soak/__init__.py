"""Long runs with faults at random times; the docstring of each module shows how to run it."""

"""Long runs that draw their moments at random: see the module of each for how to start it."""

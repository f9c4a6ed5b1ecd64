"""Fitting a verified image to its disk: backup GPT, partition growth, firmware boot entry."""

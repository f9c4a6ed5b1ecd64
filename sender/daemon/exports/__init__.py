"""Exports of images to formats of other programs."""

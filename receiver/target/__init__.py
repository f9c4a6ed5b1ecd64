"""The target of an image: selection, eligibility, opening, scanning, and the image on it."""

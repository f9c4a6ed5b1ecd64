"""Feedback of receivers: round-trip times, requests for repairs, and the limits of each member."""

"""What a receiver writes to: chosen, judged, opened, looked at, and the image as far as it is there."""

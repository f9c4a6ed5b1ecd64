"""The sender's rate: capacity estimates, congestion response, parity, stragglers."""

"""Forward error correction: systematic Reed-Solomon over GF(2^8) with a Cauchy matrix, any k of n symbols decode."""

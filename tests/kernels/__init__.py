"""Kernel tests: every stage compiled alone and compared with a float64 reference."""

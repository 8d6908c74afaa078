"""Goldens: what llama.cpp says of a model, stored, and how close a package comes to it."""

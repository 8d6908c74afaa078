"""Tests that need a GPU, and the script that runs them on one."""

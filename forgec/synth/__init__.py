"""Models without weights of their own: GGUF files of real shapes filled with random blocks.

For benchmarks and tests of size: ``shapes`` are numbers of published models, ``mixes`` the types that
llama.cpp gives their tensors, ``blocks`` random quantised bytes, ``write`` puts them into a file.
"""

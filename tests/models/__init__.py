"""Every architecture as a tiny random model, with llama.cpp's logits as fixtures."""

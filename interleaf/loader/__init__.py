"""Reading checkpoints: safetensors, GGUF, the hub, and the built-in model."""

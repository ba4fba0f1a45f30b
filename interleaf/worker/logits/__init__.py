"""Changes to logits before sampling, one file each: the built-in `interleaf.logits_processor.LogitsProcessor`s."""

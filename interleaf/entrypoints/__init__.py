"""Names of modules that users of vLLM type."""

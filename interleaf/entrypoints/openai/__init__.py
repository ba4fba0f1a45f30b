"""See `interleaf.entrypoints.openai.api_server`."""

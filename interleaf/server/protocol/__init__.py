"""Shapes of requests (pydantic models, checked strictly) and of responses (msgspec structs, fast to encode)."""

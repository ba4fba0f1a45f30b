"""Speculative decoding: who guesses a sequence's next tokens, and how many guesses are worth their time."""

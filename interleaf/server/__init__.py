"""The HTTP server: OpenAI's API, and Anthropic's messages, on an `AsyncEngine`.

A request goes through `middleware` (ids, keys, size limits), an endpoint family's file (`chat`,
`completions`, ...), `generation` (prompts and parameters to the engine) and back through
`streaming`. `protocol` has the shapes of requests and responses, `errors` every refusal.
"""

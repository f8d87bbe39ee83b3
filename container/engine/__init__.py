"""The engine: token ids in, token ids out.

It knows no HTTP, no text and no SageMaker, and imports nothing from the rest of `container` but `container.processes`.
`supervisor` runs in the server process and imports no torch, `worker` in the engine process. `sequence` and `messages`
are what both know.
"""

"""The engine: token ids in, token ids out.

It knows no HTTP, no text and no SageMaker, and imports nothing from the rest of `container`. One side of it
(`client`, `sequence`, `messages`) lives in the edge process and imports no torch; the other (`process`, `batching`,
`model`, `attention`, `sampling`) lives in the engine process.
"""

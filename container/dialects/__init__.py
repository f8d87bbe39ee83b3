"""Wire objects to items and results to wire objects, a module for each dialect.

They know no HTTP beyond a few headers, no tokens and no engine. Start at `document.read_call` for one document and at
`batch.read_line` for a line of many.
"""

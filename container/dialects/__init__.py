"""Wire objects to items and results to wire objects, one module a dialect.

They know no HTTP beyond a content type, no tokens and no engine. Start at `document.read_document` for one document and
at `batch.read_line` for a line of many.
"""

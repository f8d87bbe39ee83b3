"""A document too large to be read in the server process is read in a process of its own.

Decoding JSON holds Python's interpreter lock, and takes many times the document's size in memory. Here it delays no
`/ping`, and a document made to need gigabytes costs its own process only.
"""

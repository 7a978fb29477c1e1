"""The beginning of a mapping: which elements resources really carry, a made-up resource with them, and three files.

It never copies a value out of a resource: names of elements are all that it takes.
"""

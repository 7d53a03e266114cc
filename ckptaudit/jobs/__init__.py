"""The verbs, each in a module of its own, and the values that answer them.

This is the only room where the others meet.  Nothing is imported here: `scan` loads no numpy
and no layouts, and `inspect` no numpy before it reads weights.
"""

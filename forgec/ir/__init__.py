"""The graph of a model: ops, values, nodes, their invariants, and ways to print and draw them.

Families of models build graphs, passes rewrite them, the planner reads them. No module here knows a target or
reads weight data.
"""

"""Graph to graph: fusion, dead code and layout choice, verified after every step.

``pipeline.PIPELINE`` lists the passes in order; each lives in a module of its own.
"""

"""Finding launch geometries by measurement: candidates of a package's kernels, compiled, timed, written down.

``candidates`` enumerates and compiles them, ``measure`` times them on the device through the package's own
runtime, ``table`` keeps the best in the file that ``plan.tuning`` reads. The two halves may run on different
machines: compiling needs no device, timing needs no compiler.
"""

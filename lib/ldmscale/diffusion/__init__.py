"""The mathematics of sampling: noise schedule, samplers as coefficient tables, the sampling program.

``schedule`` and ``samplers`` need NumPy only, so a config can be checked without starting JAX.
"""

"""One module for each command of `rlvr`: its function `run` does what the command says.

Commands on a recipe take it and the arguments, the others the arguments alone.
"""

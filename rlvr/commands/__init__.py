"""One module per `rlvr` command, each with a function `run`.

Commands that work on a recipe get the recipe and the parsed arguments; the others get only the arguments.
"""

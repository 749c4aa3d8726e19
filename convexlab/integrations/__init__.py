"""Other people's trainers and loggers; each in a module of its own, which needs an extra of the package.

Nothing of an extra is imported before its module is.
"""

"""The command line ``ldmscale``: one module a command."""

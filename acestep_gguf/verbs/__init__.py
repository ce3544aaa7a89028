"""What the verbs of the command line do; cli.py has their options."""
